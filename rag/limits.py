"""What one input file may cost. Beyond these numbers a file is refused with a reason, never cut silently."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from rag.errors import ConfigError

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits per input file; all are positive. `max_seconds` and `max_address_bytes` hold in the child process that
    reads the formats whose readers may crash or hang.
    """

    max_file_bytes: int = 100_000_000
    max_characters: int = 50_000_000
    max_pages: int = 5_000
    max_cells: int = 1_000_000
    max_html_depth: int = 5_000
    """Open elements. Building the tree takes time quadratic in this: 0.02 s at 5,000, 16 s at twenty times it."""
    max_archive_members: int = 10_000
    max_archive_bytes: int = 1_000_000_000
    max_archive_ratio: int = 100
    ratio_free_bytes: int = 10_000_000
    """Archive members that unpack to less than this may be packed as tightly as they like."""
    max_seconds: float = 60.0
    max_address_bytes: int = 2_000_000_000

    def __post_init__(self) -> None:
        for field in fields(self):
            value, whole = getattr(self, field.name), field.name != "max_seconds"
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not value > 0:
                kind = "a whole number" if whole else "a number"
                raise ConfigError(f"limits: {field.name} must be {kind} > 0, not {value!r}")
        if self.max_address_bytes < 100_000_000:
            raise ConfigError(f"limits: max_address_bytes must be >= 100,000,000, not {self.max_address_bytes:,}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str = "limits") -> Limits:
        """The defaults with some values replaced; ConfigError names an unknown limit and the nearest known one."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise ConfigError(f"{where}: unknown limit {name!r}{hint}; limits: {', '.join(known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, int | float]:
        """Plain values, in the order above."""
        return asdict(self)
