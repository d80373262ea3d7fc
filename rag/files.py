"""Paths as typed -> the files to read, each with a source name that does not depend on where its folder lies."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from rag.errors import InputError
from rag.limits import Limits
from rag.parsers._choose import parser_for, supported_suffixes

__all__ = ["FileListing", "FoundFile", "find_files", "read_file"]

IGNORE_FILE = ".ragignore"
_IGNORE_BYTES = 50_000
_IGNORE_LINES = 1_000
_IGNORE_STARS = 2
"""Of `*` in one name, and of `**`. The patterns become regular expressions, and nine stars take one name years: a
folder from elsewhere must not be able to stop whoever reads it.
"""
_MAGIC = frozenset("*?[")
_PIECE = 1_000_000
_LINK_ERRORS = frozenset((errno.ELOOP, errno.EMLINK, errno.ENOTDIR))


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """A file to read. `path` is absolute and resolved; `source` is its name in the index, with forward slashes.

    `parser` names the plugin that reads it.
    """

    path: Path
    source: str
    parser: str
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, kw_only=True)
class FileListing:
    """`files` sorted by source; `problems` as (source, error); how many files had a suffix that no parser reads."""

    files: tuple[FoundFile, ...] = ()
    problems: tuple[tuple[str, str], ...] = ()
    ignored: int = 0
    ignored_suffixes: tuple[str, ...] = ()


def find_files(
    paths: Sequence[str | Path],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    hidden: bool = False,
    limits: Limits | None = None,
) -> FileListing:
    """All readable files at `paths`: files, folders (walked to the bottom) and patterns such as `docs/**/*.md`.

    `include` and `exclude` are lines as in .gitignore, relative to each folder walked; so is a `.ragignore` file in
    it. Links inside a folder are followed to files in that folder only. Hidden names are left out unless `hidden`.
    Nothing here raises for a bad path: what cannot be read is among the problems.
    """
    search = _Search(
        include=_patterns(include) if include else None,
        exclude=_patterns(exclude),
        hidden=hidden,
        limits=limits or Limits(),
    )
    for typed in paths:
        search.take(os.fspath(typed))
    return search.listing()


def read_file(found: FoundFile, limits: Limits) -> bytes:
    """The bytes of a listed file, never more than the limit, whatever has become of the file since it was listed.

    InputError when it is gone, is no regular file any more, has grown over the limit, or when it or a folder above
    it has been replaced by a link.
    """
    limit = limits.max_file_bytes
    try:
        descriptor = _open_without_links(found.path)
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise InputError(f"{found.source}: no regular file any more")
            data = os.read(descriptor, min(facts.st_size, limit) + 1)
            while len(data) <= limit and (more := os.read(descriptor, min(_PIECE, limit + 1 - len(data)))):
                data += more
        finally:
            os.close(descriptor)
    except OSError as error:
        replaced = "it, or a folder above it, was replaced by a link while files were listed"
        reason = replaced if error.errno in _LINK_ERRORS else error.strerror or str(error)
        raise InputError(f"{found.source}: cannot be read: {reason}") from error
    if len(data) > limit:
        raise InputError(f"{found.source}: {limits.over('max_file_bytes', max(len(data), facts.st_size))}")
    return data


def _open_without_links(path: Path) -> int:
    """A descriptor of `path`, which holds no link: folder by folder, so that none can be put in its place meanwhile.

    Where a system cannot open relative to a folder, the path is opened at once. Never waits for a pipe's other end.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    if os.open not in os.supports_dir_fd:
        return os.open(path, flags)
    through = os.O_DIRECTORY | os.O_NOFOLLOW | getattr(os, "O_PATH", os.O_RDONLY)
    folder = os.open(path.anchor, through)
    try:
        for part in path.parts[1:-1]:
            inner = os.open(part, through, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(path.name, flags, dir_fd=folder)
    finally:
        os.close(folder)


class _NoPatterns:
    """What an empty list of patterns matches: nothing."""

    def match_file(self, name: str) -> bool:
        return False


def _patterns(lines: Sequence[str]) -> Any:
    if not lines:
        return _NoPatterns()
    from pathspec import GitIgnoreSpec

    return GitIgnoreSpec.from_lines(lines)


@dataclass
class _Search:
    """What one call of find_files has seen so far."""

    include: Any
    exclude: Any
    hidden: bool
    limits: Limits
    found: dict[Path, FoundFile] = field(default_factory=dict)
    problems: set[tuple[str, str]] = field(default_factory=set)
    ignored: set[Path] = field(default_factory=set)

    def take(self, typed: str) -> None:
        """Add what one typed path or pattern stands for."""
        try:
            self._take(Path(typed), typed)
        except (OSError, RuntimeError, ValueError) as error:  # too long, a circle of links, a NUL in it
            self._problem(typed, f"cannot be read: {getattr(error, 'strerror', None) or error}")

    def _take(self, path: Path, typed: str) -> None:
        if not os.path.lexists(path) and _MAGIC & set(typed):
            self._take_pattern(path)
            return
        source = _typed_name(path) or path.resolve().name
        if _bad_name(source):
            self._problem(source, "its name is not valid UTF-8; rename it")
        elif not path.exists():
            self._problem(typed, "a link to nothing" if path.is_symlink() else "no such file or folder")
        elif path.is_dir():
            self._walk(path)
        elif not (self.exclude.match_file(path.name) or (self.include and not self.include.match_file(path.name))):
            self._add(path, source, explicit=True)

    def listing(self) -> FileListing:
        files, problems, owners = [], set(self.problems), dict[str, Path]()
        for file in sorted(self.found.values(), key=lambda file: (file.source, file.path)):
            owner = owners.setdefault(file.source, file.path)
            if owner == file.path:
                files.append(file)
            else:
                error = f"{file.path} would have the same name as {owner}; name their common parent folder instead"
                problems.add((file.source, error))
        suffixes = sorted({path.suffix.lower() for path in self.ignored})
        return FileListing(
            files=tuple(files),
            problems=tuple(sorted(problems)),
            ignored=len(self.ignored),
            ignored_suffixes=tuple(suffixes),
        )

    def _take_pattern(self, pattern: Path) -> None:
        """Walk the part before the first wildcard; the rest filters, and a folder that matches is taken whole."""
        at = next(i for i, part in enumerate(pattern.parts) if _MAGIC & set(part))
        base, rest = Path(*pattern.parts[:at]), "/".join(pattern.parts[at:])
        before = len(self.found) + len(self.problems) + len(self.ignored)
        if base.is_dir():
            self._walk(base, only=_patterns([f"/{rest}"]))
        if len(self.found) + len(self.problems) + len(self.ignored) == before:
            self._problem(pattern.as_posix(), "no file matches this pattern")

    def _walk(self, top: Path, only: Any = None) -> None:
        root = top.resolve()
        name = _typed_name(top)
        prefix = name if name is not None else root.name
        ignore = self._ignore_lines(root, prefix)
        skip = len(os.path.join(root, ""))
        for entry in self._below(root, prefix):
            inner = entry.path[skip:].replace(os.sep, "/")
            source = f"{prefix}/{inner}" if prefix else inner
            if self.exclude.match_file(inner) or ignore.match_file(inner):
                continue
            if (only and not only.match_file(inner)) or (self.include and not self.include.match_file(inner)):
                continue
            if _bad_name(inner):
                self._problem(source, "its name is not valid UTF-8; rename it")
            elif not entry.is_symlink():
                self._add(Path(entry.path), source, explicit=False, real=Path(entry.path))
            elif not os.path.exists(entry.path):
                self._problem(source, "a link to nothing")
            elif not Path(entry.path).resolve().is_relative_to(root):
                self._problem(source, "a link that leads out of its folder; it is not followed")
            elif not os.path.isdir(entry.path):
                self._add(Path(entry.path), source, explicit=False)

    def _ignore_lines(self, root: Path, prefix: str) -> Any:
        file, source = root / IGNORE_FILE, str(PurePosixPath(prefix) / IGNORE_FILE)
        usable: list[str] = []
        try:
            if not file.is_file():
                return _patterns([])
            if not file.resolve().is_relative_to(root):
                raise ValueError("a link that leads out of its folder")
            with file.open("rb") as stream:
                data = stream.read(_IGNORE_BYTES + 1)
            lines = data.decode("utf-8-sig").splitlines()
            if len(data) > _IGNORE_BYTES or len(lines) > _IGNORE_LINES:
                raise ValueError(f"more than {_IGNORE_BYTES:,} bytes or {_IGNORE_LINES:,} lines")
            for number, line in enumerate(lines, 1):
                if why := _ignore_problem(line):
                    self._problem(source, f"line {number} is not used: {why}")
                else:
                    usable.append(line)
            return _patterns(usable)
        except (OSError, ValueError) as error:
            self._problem(source, f"cannot be read: {error}")
            return _patterns([])

    def _below(self, root: Path, prefix: str) -> Iterator[os.DirEntry[str]]:
        """Every file, and every link, below `root`, folders in order of their names; links are not entered."""
        pending = [str(root)]
        while pending:
            current = pending.pop()
            try:
                with os.scandir(current) as entries:
                    children = sorted(entries, key=lambda entry: os.fsencode(entry.name))
            except OSError as error:
                inner = Path(current).relative_to(root).as_posix()
                self._problem(str(PurePosixPath(prefix) / inner), f"cannot be read: {error.strerror or error}")
                continue
            folders = []
            for entry in children:
                if entry.name.startswith(".") and not self.hidden:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    yield entry
            pending.extend(reversed(folders))

    def _add(self, path: Path, source: str, *, explicit: bool, real: Path | None = None) -> None:
        """`real` is `path` without links where that is known."""
        parser = parser_for(path.suffix)
        if parser is None:
            if explicit:
                known = ", ".join(supported_suffixes())
                self._problem(source, f"no parser reads {path.suffix or 'files without a suffix'}; readable: {known}")
            else:
                self.ignored.add(real or path.resolve())
            return
        real = real or path.resolve()
        try:
            facts = real.stat()
        except OSError as error:
            self._problem(source, f"cannot be read: {error.strerror or error}")
            return
        if not stat.S_ISREG(facts.st_mode):
            self._problem(source, "no regular file")
        elif not os.access(real, os.R_OK):
            self._problem(source, "cannot be read: permission denied")
        elif facts.st_size > self.limits.max_file_bytes:
            self._problem(source, self.limits.over("max_file_bytes", facts.st_size))
        else:
            size, changed = facts.st_size, facts.st_mtime_ns
            found = FoundFile(path=real, source=source, parser=parser, size_bytes=size, mtime_ns=changed)
            self.found.setdefault(real, found)

    def _problem(self, source: str, error: str) -> None:
        self.problems.add((_printable(source), _printable(error)))


def _ignore_problem(line: str) -> str:
    """Why a line of an ignore file cannot be used, "" when it can."""
    names = line.split("/")
    stars = max((name.count("*") for name in names if name != "**"), default=0)
    if not line.startswith("#") and max(stars, names.count("**")) > _IGNORE_STARS:
        return f"more than {_IGNORE_STARS} stars in one name, or more than {_IGNORE_STARS} of **"
    try:
        _patterns([line])
    except ValueError as error:
        return str(error)
    return ""


def _typed_name(path: Path) -> str | None:
    """The path as typed, with forward slashes; None when it is absolute or climbs, so that no name can hold it."""
    if path.is_absolute() or ".." in path.parts:
        return None
    return "" if path == Path(".") else path.as_posix()


def _bad_name(name: str) -> bool:
    return not name.isprintable() and any("\udc80" <= char <= "\udcff" for char in name)


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
