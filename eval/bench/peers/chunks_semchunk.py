"""semchunk, offsets asked for; it remembers what it has counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

PACKAGES = ("semchunk", "tokenizers")
MODULES = ("semchunk", "tokenizers")


def load(tokens: Any, options: dict[str, Any]) -> Callable[[str], Any]:
    import semchunk

    chunker = semchunk.chunkerify(tokens.count, tokens.max_tokens)

    def split(text: str) -> Any:
        parts, offsets = chunker(text, offsets=True)
        return [(part, start, end) for part, (start, end) in zip(parts, offsets, strict=True)]

    return split
