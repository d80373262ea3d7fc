"""The exceptions of Chunkwise, and the exit code that each one means on the command line.

    RagError                  1   a run-time failure
    +-- UsageError            2   the call itself is wrong
    +-- ConfigError           3   a config names something that is not there, or out of range
    +-- InputError            4   one input could not be read; the others go on
    +-- IndexDamagedError     5   the index on disk does not agree with itself
    +-- MissingError          6   a model or an extra is not installed
    +-- IndexLockedError      7   another process is writing

Every message says what happened, to which value, what is allowed, and what to do next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "ConfigError",
    "IndexDamagedError",
    "IndexLockedError",
    "InputError",
    "MissingError",
    "RagError",
    "UsageError",
    "missing_extra",
    "no_index",
]


class RagError(Exception):
    """Base of every error that Chunkwise raises on purpose."""

    exit_code = 1


class UsageError(RagError):
    """The call cannot be carried out as written."""

    exit_code = 2


class ConfigError(RagError):
    """A config, a plugin name or a plugin parameter is wrong."""

    exit_code = 3


class InputError(RagError):
    """One input file cannot be turned into a document."""

    exit_code = 4


class IndexDamagedError(RagError):
    """The index on disk is damaged, or written by a version that this one cannot read."""

    exit_code = 5


class MissingError(RagError):
    """A model file or an optional package is absent."""

    exit_code = 6


class IndexLockedError(RagError):
    """Another process holds the writer lock."""

    exit_code = 7


def missing_extra(package: str, extra: str, purpose: str) -> MissingError:
    """The error for an absent optional package, with the command that installs it."""
    return MissingError(f"{purpose} needs the package {package!r}. Run: pip install 'chunkwise[{extra}]'")


def no_index(directory: Path) -> UsageError:
    """The error for a folder without an index, with the command that makes one."""
    return UsageError(f"there is no index in {directory}. Create one with: rag ingest PATH --index {directory}")
