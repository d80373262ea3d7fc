"""What `local` says about KV reuse: which parameters go together, which pieces can be reused, the notes of a trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from rag.answer import GenerationStats, Prompt
from rag.engine.errors import EngineError
from rag.errors import ConfigError
from rag.generators._repairs import Repair, checked_repair
from rag.types import Piece

if TYPE_CHECKING:
    from rag.generators._decode import CountedDraft, Reading
    from rag.generators._sparsely import SparseTold
    from rag.generators._writing import Written

__all__ = [
    "as_rag_errors",
    "attention_notes",
    "check_reuse",
    "is_whole",
    "reads_others",
    "segments",
    "stats_of",
    "told",
]

_ALLOWED = {
    "reuse": ("none", "prefix", "chunk"),
    "blocks": ("solo", "donor-mean", "neighbour-mean"),
    "kv_dtype": ("auto", "int8"),
    "cut_pieces": ("compute", "prune"),
    "speculate": ("auto", "none", "lookup"),
    "batch": ("auto", "none", "shared"),
}


class _Settings(Protocol):
    @property
    def reuse(self) -> str: ...
    @property
    def batch(self) -> str: ...
    @property
    def ram_bytes(self) -> int: ...
    @property
    def blocks(self) -> str: ...
    @property
    def repair(self) -> Repair: ...
    @property
    def pool_bytes(self) -> int: ...
    @property
    def kv_bytes(self) -> int: ...
    @property
    def relay(self) -> bool: ...
    @property
    def stop(self) -> tuple[str, ...]: ...


def check_reuse(given: _Settings) -> None:
    """ConfigError for values out of range, and for a repair that the blocks say nothing to."""
    for name, values in _ALLOWED.items():
        if getattr(given, name) not in values:
            raise ConfigError(f"local: {name} is one of {', '.join(values)}, not {getattr(given, name)!r}")
    if not all(given.stop):
        raise ConfigError(f"local: stop holds texts of at least one character, not {given.stop!r}")
    if min(given.pool_bytes, given.kv_bytes, given.ram_bytes) < 0:
        raise ConfigError(
            "local: pool_bytes, kv_bytes and ram_bytes must be >= 0, not "
            f"{given.pool_bytes}, {given.kv_bytes} and {given.ram_bytes}"
        )
    if given.relay and given.reuse != "chunk":
        raise ConfigError(f"local: relay moves keys and values: it needs reuse: chunk, not {given.reuse}")
    if given.batch == "shared" and given.reuse != "prefix":
        raise ConfigError(f"local: batch shared computes a common start once: it needs reuse prefix, not {given.reuse}")
    name, _ = checked_repair(given.repair)
    if given.blocks == "solo" and "variance" in name:
        raise ConfigError(
            f"local: repair {name} needs blocks: donor-mean or neighbour-mean, which know how much each token varies"
        )


def reads_others(given: _Settings) -> str:
    """The setting by which blocks of a chunk are made behind other chunks of the index, if there is one."""
    if given.reuse != "chunk":
        return ""
    if checked_repair(given.repair)[0] == "cache-craft":
        return "repair: cache-craft"
    return "blocks: neighbour-mean" if given.blocks == "neighbour-mean" else ""


def is_whole(piece: Piece) -> bool:
    """A whole chunk, as the next question will find it. Of one that was cut, only the whole is worth keeping."""
    return piece.verbatim and piece.kept == (piece.span,)


def segments(
    prompt: Prompt, sizes: Sequence[int], reading: Reading, token_bytes: int, read: SparseTold | None = None
) -> list[dict[str, Any]]:
    """The start, every piece and the question, in `sizes` tokens a segment of the prompt: how many of its tokens were
    reused, repaired (None: other ones in every layer) and computed, and the bytes of keys and values that were copied.
    Of pieces that were not loaded, since nothing reads them, `skipped` counts the tokens; with sparse attention `read`
    is the share of the segment that the answer reads.
    """
    counts, left = [], reading.reused
    for at, size in enumerate(sizes):
        if reading.parts:
            part = reading.parts[at]
            counts.append((size, part.reused, part.repaired))
        else:
            counts.append((size, min(size, left), 0))
            left -= min(size, left)
    rows = [{"part": "start", **_row(counts[:1], token_bytes)}]
    for number in range(len(sizes) // 2 - 1):
        at = 1 + 2 * number
        row: dict[str, Any] = {"part": str(number + 1), "chunk_id": prompt.segments[at + 1].chunk_id}
        row |= _row(counts[at : at + 2], token_bytes)
        if at + 1 in reading.skipped:
            row |= {"skipped": sizes[at + 1], "computed": row["computed"] - sizes[at + 1]}
        rows.append(row)
    rows.append({"part": "question", **_row(counts[-1:], token_bytes)})
    if read:
        rows = [{**row, "read": round(share, 4)} for row, share in zip(rows, read.read, strict=True)]
    return rows


def _row(counts: Sequence[tuple[int, int, int | None]], token_bytes: int) -> dict[str, Any]:
    tokens, reused = sum(size for size, _, _ in counts), sum(held for _, held, _ in counts)
    again = None if any(one is None for _, _, one in counts) else sum(one or 0 for _, _, one in counts)
    copied = (reused + (again or 0)) * token_bytes
    return {"tokens": tokens, "reused": reused, "repaired": again, "computed": tokens - reused, "bytes": copied}


def attention_notes(read: SparseTold | None, rows: Sequence[dict[str, Any]], speculate: str) -> dict[str, Any]:
    """Of a trace; `rows` are what `segments` gives. Without `read`, `auto` chose dense attention."""
    if read is None:
        return {"attention": {"selection": "dense", "executor": "sdpa"}}
    drafts = {} if speculate == "none" else {"drafts": "off: sparse attention reads one token at a time"}
    return {"attention": {**read.notes(), **drafts}, "segments": list(rows)}


def stats_of(
    reading: Reading, prompt: int, written: Written, first: float, ended: float, draft: CountedDraft | None = None,
    read: SparseTold | None = None,
) -> GenerationStats:  # fmt: skip
    """The accounts of an answer to a prompt of `prompt` tokens; `first` and `ended` are seconds from its start. `read`
    tells of sparse attention."""
    return GenerationStats(
        prompt_tokens=prompt,
        reused_tokens=reading.reused,
        repaired_tokens=reading.repaired,
        computed_tokens=reading.computed,
        new_tokens=len(written.tokens),
        ttft_seconds=first,
        total_seconds=ended,
        bytes_loaded=reading.loaded,
        policy=reading.policy,
        attention=f"{read.selection}, {read.executor}" if read else "sdpa",
        density=read.density if read else 1.0,
        drafted_tokens=draft.drafted if draft else 0,
        accepted_tokens=draft.accepted if draft else 0,
    )


def told(
    stats: GenerationStats, reading: Reading | None = None, parts: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """The notes of the trace; nothing where nothing can be reused. `parts` are what `segments` gives."""
    if stats.policy == "none":
        return {}
    notes: dict[str, Any] = {"reuse": stats.policy, "reused": stats.reused_tokens, "computed": stats.computed_tokens}
    if reading is not None and stats.policy.startswith("chunk"):
        notes |= {"repaired": stats.repaired_tokens, "blocks_made": reading.made, "tokens_made": reading.made_tokens}
        notes["bytes_loaded"] = stats.bytes_loaded
        if reading.skipped:
            notes["blocks_skipped"] = len(reading.skipped)
    if parts:
        notes["segments"] = list(parts)
    return {**notes, "ttft_seconds": round(stats.ttft_seconds, 3)}


@contextmanager
def as_rag_errors(asked: str = "reuse chunk") -> Iterator[None]:
    """The engine's errors are about what the config asks of it."""
    try:
        yield
    except EngineError as error:
        raise ConfigError(f"local: {asked}: {error}") from error
