"""semchunk, offsets asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = ("semchunk", "tokenizers")
MODULES = ("semchunk", "tokenizers")


def plain(max_tokens: int, model: str) -> Callable[[str], Any]:
    import semchunk
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    chunker = semchunk.chunkerify(lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids), max_tokens)

    def split(text: str) -> Any:
        parts, offsets = chunker(text, offsets=True)
        return [(part, start, end) for part, (start, end) in zip(parts, offsets, strict=True)]

    return split


CHUNKERS = {"semchunk": plain}
