"""Several compressors in a row, each on what the one before it left."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from rag.errors import ConfigError
from rag.protocols import Compressor, Corpus, TokenCounter, nested, service
from rag.spans.pieces import check_size, context_of, unchanged
from rag.text import assemble
from rag.types import Bubble, CompressedContext, Decision


@dataclass(frozen=True, kw_only=True)
class ChainCompressor(Compressor):
    """Runs `parts` in order, coarse to fine: sentences first, then words.

    `target` None: each part aims as it was told, so the rates of the parts multiply. Else the chain ends within
    `target`: of n parts with a target, the i-th aims at size * (target / size)^(i/n), equal steps, in place of its own
    target or rate; a bubble that is within `target` is left as it is. A part that rewrites text must be the last one,
    since what it writes is nowhere in the document. The ledger has the lines of all parts, each with the part's name.
    """

    verbatim: ClassVar[bool] = False
    """Its last part may rewrite."""

    parts: Any = nested("compressor", ("comi", "token-prune"))
    target: int | None = None
    counter: TokenCounter = service()

    def __post_init__(self) -> None:
        check_size("chain", self.target, 1.0)
        if (
            not isinstance(self.parts, tuple)
            or not self.parts
            or not all(hasattr(one, "compress") for one in self.parts)
        ):
            raise ConfigError(f"chain: parts must be a tuple of at least one compressor, not {self.parts!r}")
        if self.target is not None and not any("target" in _fields(part) for part in self.parts):
            raise ConfigError("chain: target is set, but none of the parts has a target")

    def compress(self, bubble: Bubble, corpus: Corpus) -> CompressedContext:
        size = self.counter.count(assemble(bubble.texts))
        if self.target is not None and self.target >= size:
            return unchanged(bubble, self.counter, "chain")
        lines: list[Decision] = []
        names: list[str] = []
        context = unchanged(bubble, self.counter, "chain")
        for part in self._aimed(size):
            if not all(piece.verbatim for piece in context.pieces):
                raise ConfigError(
                    f"chain: {names[-1]} has rewritten text, so {_name(part)} cannot prune it: put it last"
                )
            left = _left(bubble, context)
            context = part.compress(left, corpus)
            names.append(context.compressor)
            lines.extend(dataclasses.replace(one, reason=f"{names[-1]}: {one.reason}") for one in context.decisions)
        if all(piece.verbatim for piece in context.pieces):
            kept = {piece.chunk_id: piece.kept for piece in context.pieces}
            return context_of(bubble, [kept.get(hit.chunk.id, ()) for hit in bubble.hits], self.counter, "chain", lines)
        whole = self.counter.count(assemble(piece.text for piece in context.pieces))
        return dataclasses.replace(
            context, compressor="chain", source_token_count=size, token_count=whole, decisions=tuple(lines)
        )

    def _aimed(self, size: int) -> list[Compressor]:
        """The parts, with their share of the way to the target."""
        sized = [at for at, part in enumerate(self.parts) if "target" in _fields(part)]
        made = list(self.parts)
        if self.target is not None:
            for step, at in enumerate(sized, start=1):
                goal = max(self.target, int(size * (self.target / size) ** (step / len(sized))))
                made[at] = dataclasses.replace(made[at], target=self.target if step == len(sized) else goal)
        return made


def _left(bubble: Bubble, context: CompressedContext) -> Bubble:
    """The bubble of what a context has; scores, ranks and the question are those of the first one."""
    kept = {piece.chunk_id: piece.kept for piece in context.pieces}
    hits = tuple(hit for hit in bubble.hits if hit.chunk.id in kept)
    return dataclasses.replace(
        bubble, hits=hits, kept=tuple(kept[hit.chunk.id] for hit in hits), token_count=context.token_count
    )


def _fields(part: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(part)} if dataclasses.is_dataclass(part) else set()


def _name(part: object) -> str:
    return type(part).__module__.rpartition(".")[2].replace("_", "-")
