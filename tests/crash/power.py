"""What a disk may hold after the power fails: replays a record of tests/crash/faults.c up to some point.

The model: what was synced is there. Of the writes to a file since its last sync any may be there and any may not,
also half of one. Names made, changed or removed since the last sync of their directory are there up to some point.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Operation:
    """`data` of a rename is the old path."""

    name: str
    offset: int
    path: str
    data: bytes


def read_record(path: Path) -> Iterator[Operation]:
    with path.open("rb") as stream:
        while line := stream.readline():
            name, offset, size, where = line.decode().rstrip("\n").split(" ", 3)
            yield Operation(name, int(offset), where, stream.read(int(size)))


def acknowledged(operations: list[Operation]) -> int:
    """Files that the standard error of this record acknowledges."""
    text = b"".join(operation.data for operation in operations if operation.name == "said").decode()
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("}\n")]
    return int(json.loads(lines[-1])["done"]) if lines else 0


@dataclass
class File:
    """`synced` is safe, `pending` (offset, data; data None: cut there) is not."""

    synced: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    size: int = 0

    def change(self, offset: int, data: bytes | None) -> None:
        offset = self.size if offset < 0 else offset
        self.pending.append((offset, data))
        self.size = offset if data is None else max(self.size, offset + len(data))

    def sync(self) -> None:
        for change in self.pending:
            _apply(self.synced, *change)
        self.pending.clear()

    def left(self, chances: random.Random, share: float) -> bytes:
        """The content after a power failure in which `share` of the pending writes came through."""
        content = bytearray(self.synced)
        for offset, data in self.pending:
            if chances.random() < share:
                half = data is not None and chances.random() < 0.2
                _apply(content, offset, data[: len(data) // 2] if half and data is not None else data)
        return bytes(content)


class Disk:
    """The files below `root`, what is safe and what is not."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names: dict[str, File] = {}
        self.safe: dict[str, File] = {}
        self.moves: list[tuple[str, str, File | None]] = []

    def load(self, directory: Path) -> None:
        """Start from the files of `directory`, all of them safe."""
        for path in directory.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                name = str(self.root / path.relative_to(directory))
                self.names[name] = File(synced=bytearray(content), size=len(content))
        self.safe = dict(self.names)

    def do(self, operation: Operation) -> None:
        name, path = operation.name, operation.path
        if name in ("create", "empty", "write") and path not in self.names:
            self._name(path, File())
        if name == "write":
            self.names[path].change(operation.offset, operation.data)
        elif name == "empty" and self.names[path].size:
            self.names[path].change(0, None)
        elif name == "truncate" and path in self.names:
            self.names[path].change(operation.offset, None)
        elif name == "unlink" and path in self.names:
            self._name(path, None)
        elif name == "rename" and operation.data.decode() in self.names:
            moved = self.names[operation.data.decode()]
            self._name(operation.data.decode(), None)
            self._name(path, moved)
        elif name == "sync" and path in self.names:
            self.names[path].sync()
        elif name == "sync":
            self._sync_folder(path)

    def _name(self, path: str, file: File | None) -> None:
        self.moves.append((str(Path(path).parent), path, file))
        if file is None:
            self.names.pop(path, None)
        else:
            self.names[path] = file

    def _sync_folder(self, folder: str) -> None:
        for move in self.moves:
            if move[0] == folder:
                _rename(self.safe, move)
        self.moves = [move for move in self.moves if move[0] != folder]

    def fail(self, target: Path, chances: random.Random, share: float) -> None:
        """Write to `target` what is left when the power fails now. SQLite's shared memory never is."""
        left = dict(self.safe)
        for move in self.moves[: round(share * len(self.moves))]:
            _rename(left, move)
        for name, file in left.items():
            place = target / Path(name).relative_to(self.root)
            if not name.endswith("-shm"):
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(file.left(chances, share))


def _rename(names: dict[str, File], move: tuple[str, str, File | None]) -> None:
    _, path, file = move
    if file is None:
        names.pop(path, None)
    else:
        names[path] = file


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        content.extend(bytes(offset - len(content)))
    else:
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data
