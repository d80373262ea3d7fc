"""The corpus of the crash suite: small files of several kinds, and what happens to them from phase to phase.

The same seed gives the same bytes and the same times of change, so that two runs can be compared byte by byte.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

PHASES = 5
FILES = 54
_EPOCH = 1_600_000_000
# fmt: off
_WORDS = (
    "river", "stone", "ledger", "travel", "policy", "invoice", "harbour", "engine", "winter", "orchard", "signal",
    "copper", "margin", "lantern", "contract", "vessel", "ankle", "bridge", "copper", "cloud", "Straße", "café",
    "naïve", "北京", "résumé", "zero-cost", "re-entry", "3.14", "X9",
)
# fmt: on


class Papers:
    """A folder of files. `advance(phase)` brings it from the state of phase - 1 to that of `phase`."""

    def __init__(self, folder: Path, seed: int, files: int = FILES, *, html: bool = True) -> None:
        self.folder = folder
        self.files = files
        self.kinds = (".md", ".txt", ".csv", ".html" if html else ".txt", ".md", ".json")  # HTML needs a child process
        self._random = random.Random(seed)
        self._clock = _EPOCH

    def advance(self, phase: int) -> None:
        """Phase 0 writes all files; 1 changes, moves and deletes; 2 makes files unreadable; 3 undoes that and more;
        4 touches and shares."""
        (self._write_all, self._change, self._spoil, self._mend, self._touch)[phase]()

    def names(self) -> list[str]:
        """Every file now, by relative path."""
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.folder).as_posix() for path in found)

    def _write_all(self) -> None:
        for number in range(self.files):
            self._write(self._name(number), number)
        self._put("empty.txt", b"")
        self._put("broken.json", b'{"half": ')

    def _change(self) -> None:
        for name in self._some(10):
            self._write(name, self._random.randrange(1000))
        for name in self._some(5):
            (self.folder / name).unlink()
        for name in self._some(5):
            target = self.folder / "moved" / Path(name).name
            target.parent.mkdir(exist_ok=True)
            (self.folder / name).rename(target)
        for number in range(self.files, self.files + 6):
            self._write(self._name(number), number)

    def _spoil(self) -> None:
        for name in self._some(3, ".json"):
            self._put(name, b"[1, 2")
        first, second = self._some(2, ".md")
        (self.folder / first).unlink()
        (self.folder / first).symlink_to("nowhere")
        self._put(second, b"text \x00 with a NUL \xff and bytes of no encoding " * 20)
        for name in self._some(4):
            self._write(name, self._random.randrange(1000))

    def _mend(self) -> None:
        self._put("broken.json", b'{"whole": "now it can be read", "number": 7}')
        for path in sorted(self.folder.rglob("*")):
            if path.is_symlink():
                path.unlink()
                self._write(path.relative_to(self.folder).as_posix(), 7)
        shutil.rmtree(self.folder / "c", ignore_errors=True)
        for name in self._some(3, ".csv"):
            self._write(name, self._random.randrange(1000))

    def _touch(self) -> None:
        for name in self._some(6):
            self._stamp(self.folder / name)  # a new time, the same bytes
        twin, original = "twin.md", self._some(1, ".md")[0]
        shutil.copyfile(self.folder / original, self.folder / twin)
        self._stamp(self.folder / twin)
        for name in self._some(2):
            path = self.folder / name
            self._put(name, bytes(reversed(path.read_bytes())))

    def _name(self, number: int) -> str:
        suffix = self.kinds[number % 6]
        return f"{'abc'[number % 3]}/file-{number:03d}{suffix}"

    def _some(self, count: int, suffix: str = "") -> list[str]:
        names = [name for name in self.names() if name.endswith(suffix) and "broken" not in name]
        return self._random.sample(names, min(count, len(names)))

    def _write(self, name: str, number: int) -> None:
        self._put(name, self._content(Path(name).suffix, number).encode())

    def _content(self, suffix: str, number: int) -> str:
        lines = [self._sentence() for _ in range(3 + number % 9)]
        if suffix == ".csv":
            rows = [f"{row},{line.replace(',', ' ')}" for row, line in enumerate(lines)]
            return "id,text\n" + "\n".join(rows) + "\n"
        if suffix == ".html":
            body = "".join(f"<p>{line}</p>" for line in lines)
            return f"<html><title>Page {number}</title><body><h1>Page {number}</h1>{body}</body></html>"
        if suffix == ".json":
            return "[" + ", ".join(f'{{"n": {row}, "text": "{line}"}}' for row, line in enumerate(lines)) + "]"
        if suffix == ".md":
            return f"# Note {number}\n\n" + "\n\n## Part\n\n".join(lines) + "\n"
        return "\n\n".join(lines)

    def _sentence(self) -> str:
        return " ".join(self._random.choice(_WORDS) for _ in range(self._random.randrange(8, 40))) + "."

    def _put(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self._stamp(path)

    def _stamp(self, path: Path) -> None:
        """A time of change of its own, years ago: no two versions of a file have the same."""
        self._clock += 1
        os.utime(path, (self._clock, self._clock))
