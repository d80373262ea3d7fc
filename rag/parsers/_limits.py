"""What one input file may cost. Beyond these numbers a file is refused with an InputError, never cut silently."""

from __future__ import annotations

__all__ = [
    "MAX_ADDRESS_BYTES",
    "MAX_ARCHIVE_BYTES",
    "MAX_ARCHIVE_MEMBERS",
    "MAX_ARCHIVE_RATIO",
    "MAX_CELLS",
    "MAX_CHARACTERS",
    "MAX_FILE_BYTES",
    "MAX_HTML_DEPTH",
    "MAX_PAGES",
    "MAX_SECONDS",
    "RATIO_FREE_BYTES",
]

MAX_FILE_BYTES = 100_000_000
MAX_CHARACTERS = 50_000_000
MAX_PAGES = 5_000
MAX_CELLS = 1_000_000
MAX_HTML_DEPTH = 5_000
"""Open elements. Building the tree takes time quadratic in this: 0.02 s at this depth, 16 s at twenty times it."""

MAX_ARCHIVE_MEMBERS = 10_000
MAX_ARCHIVE_BYTES = 1_000_000_000
MAX_ARCHIVE_RATIO = 100
RATIO_FREE_BYTES = 10_000_000
"""Members that unpack to less than this may be packed as tightly as they like."""

MAX_SECONDS = 60.0
MAX_ADDRESS_BYTES = 2_000_000_000
"""Both hold for the child process that reads the binary formats, the seconds per file."""
