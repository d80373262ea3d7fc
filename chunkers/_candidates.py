"""Chunkers that compete for one document: made ready with shared services, tried, and refused with a reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from chunkers._sharing import with_services
from chunkers.metrics._base import Cuts
from rag.protocols import Chunker, TokenCounter
from rag.text import safe_cut
from rag.types import Chunk, Document

__all__ = ["Segmentation", "compared", "fault", "named", "reason", "tried"]


@dataclass
class Segmentation:
    """One way to cut a document, and what was found out about it.

    `chunks` are those of another chunker; `groups`, numbers of sentences after which a chunk ends, those of ours.
    `why_not`: why it cannot be chosen. LI and the score are None where nobody asked for them.
    """

    name: str
    cuts: Cuts
    chunks: list[Chunk] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    why_not: str = ""
    same_as: str = ""
    sd_raw: float = 0.0
    sd_gain: float | None = None
    sd: float = 0.0
    li: float | None = None
    score: float | None = None

    def row(self, how: str) -> dict[str, Any]:
        """For the record; `how` says what LI is."""
        if self.why_not:
            return {"chunker": self.name, "left_out": self.why_not}
        row: dict[str, Any] = {
            "chunker": self.name,
            "chunks": len(self.cuts),
            "mean_tokens": round(float(self.cuts.tokens.mean()), 1),
            "max_tokens": int(self.cuts.tokens.max()),
        }
        if self.same_as:
            return row | {"same_as": self.same_as}
        gain = {} if self.sd_gain is None else {"SD_gain": round(self.sd_gain, 6)}
        row |= {"SD_raw": round(self.sd_raw, 6), **gain, "SD": round(self.sd, 6)}
        row["LI" if how == "model" else "LI_embedding"] = None if self.li is None else round(self.li, 6)
        return row | {"ChunkScore": None if self.score is None else round(self.score, 6)}


def compared(found: Sequence[Segmentation]) -> list[Segmentation]:
    """Those that differ; of equal ones the first, whose name the others get."""
    first: dict[bytes, Segmentation] = {}
    for one in found:
        twin = first.setdefault(one.cuts.starts.tobytes(), one)
        one.same_as = "" if twin is one else twin.name
    return list(first.values())


def reason(found: Sequence[Segmentation], winner: Segmentation, how: str) -> str:
    """Why the winner won, in a sentence."""
    rivals = [one for one in found if one is not winner and one.score is not None]
    if winner.score is None or not rivals:
        return f"{winner.name}: there is no other segmentation to compare it with"
    best = max(rivals, key=lambda one: one.score or 0.0)
    by = "the language model" if how == "model" else "vectors"
    return (
        f"{winner.name} has the best ChunkScore, {winner.score:.3f}, before {best.name} with {best.score:.3f} "
        f"(LI {winner.li:.3f} by {by}, SD {winner.sd:.3f}); {len(rivals) + 1} of {len(found)} were compared"
    )


def named(plugins: Sequence[Chunker]) -> list[tuple[str, Chunker]]:
    """The plugins by name; a name that comes again gets a number."""
    names: list[str] = []
    found = []
    for plugin in plugins:
        name = type(plugin).__module__.rpartition(".")[2].replace("_", "-")
        names.append(name)
        found.append((f"{name}#{names.count(name)}" if names.count(name) > 1 else name, plugin))
    return found


def tried(name: str, plugin: Chunker, document: Document, services: Mapping[str, Any], max_tokens: int) -> Segmentation:
    """What the plugin makes of the document; `max_tokens` is for plugins that have none of their own."""
    try:
        ready = with_services(plugin, services)
        if getattr(ready, "max_tokens", 0) is None:
            ready = replace(ready, max_tokens=max_tokens)
        chunks = ready.chunk(document)
    except Exception as error:  # any plugin of anybody: the others still cut the document
        return Segmentation(name, Cuts.of([]), why_not=f"failed: {type(error).__name__}: {error}")
    return Segmentation(name, Cuts.of(chunks), chunks)


def fault(document: Document, chunks: Sequence[Chunk], counter: TokenCounter, max_tokens: int, max_chars: int) -> str:
    """What forbids these chunks, which must tile the text within the limits; "" for nothing."""
    done = 0
    for chunk in chunks:
        if chunk.span.start != done:
            return f"does not tile the text at {done}"
        done = chunk.span.end
        tokens = chunk.token_count
        if chunk.header and counter.additive:
            tokens += counter.count(f"{chunk.header}\n")
        elif chunk.header:
            tokens = counter.count(chunk.embed_text)
        over = tokens > max_tokens or len(chunk.text) > max_chars
        if over and safe_cut(chunk.text, 0, 1) < len(chunk.text):
            return f"exceeds {max_tokens} tokens or {max_chars} characters at {chunk.span.start}"
    return "" if done == len(document.text) else "leaves out the end of the text"
