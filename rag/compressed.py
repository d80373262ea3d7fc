"""What a compressor made of the bubble of a stored run: kept and dropped parts, the size, what became of facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rag.protocols import Corpus
    from rag.types import Span

__all__ = ["compressed"]


def compressed(run: Mapping[str, Any], corpus: Corpus) -> dict[str, Any]:
    """What became of the bubble of a run, as JSON holds it.

    `target`: the tokens that the config aims at, None where it names no size. `chunks`: for each of the bubble its
    `parts` in order, kept and dropped, that make up what was chosen of it; `rewritten` is the text that stands for the
    kept ones where the compressor writes anew, else None. `survival`: kind of protected span -> how many stand in
    sentences of which anything is kept, how many of those are kept whole, and how many there were. `gone` names chunks
    whose document is not in the index any more: they are in neither.
    """
    from rag.spans.protected import survivors
    from rag.types import Piece, Span, parse_chunk_id

    context = run["context"]
    pieces = {
        one["chunk_id"]: Piece(
            chunk_id=one["chunk_id"],
            doc_id=one["doc_id"],
            span=Span(*one["span"]),
            text=one["text"],
            kept=tuple(Span(*pair) for pair in one["kept"]),
            verbatim=one.get("verbatim", True),
        )
        for one in context["pieces"]
    }
    chosen, chunks, gone = {}, [], []
    chunk_ids = run["bubble"]["chunk_ids"]
    spans = run["bubble"].get("kept") or [None] * len(chunk_ids)  # None: stored before bubbles kept parts of chunks
    for chunk_id, pairs in zip(chunk_ids, spans, strict=True):
        doc_id, span = parse_chunk_id(chunk_id)
        try:
            text = corpus.document(doc_id).text
        except KeyError:
            gone.append(chunk_id)
            continue
        chosen[chunk_id] = [Span(*pair) for pair in pairs] if pairs is not None else [span]
        piece = pieces.get(chunk_id)
        chunks.append(
            {
                "chunk_id": chunk_id,
                "source": run.get("sources", {}).get(doc_id),
                "span": [span.start, span.end],
                "parts": list(_parts(text, chosen[chunk_id], piece.kept if piece else ())),
                "rewritten": piece.text if piece is not None and not piece.verbatim else None,
            }
        )
    left = survivors(chosen, [piece for piece in pieces.values() if piece.chunk_id in chosen], corpus)
    names = ("with_kept_sentences", "kept", "all")
    return {
        "compressor": context["compressor"],
        "tokens": context["token_count"],
        "source_tokens": context["source_token_count"],
        "keep_ratio": context["keep_ratio"],
        "target": _target(run),
        "chunks": chunks,
        "survival": {kind: dict(zip(names, counts, strict=True)) for kind, counts in left.items() if counts[2]},
        "gone": gone,
    }


def _parts(text: str, chosen: Sequence[Span], kept: Sequence[Span]) -> Iterator[dict[str, Any]]:
    """What was chosen, cut where keeping starts and ends."""
    for span in chosen:
        edges = {span.start, span.end}
        edges.update(at for one in kept for at in (one.start, one.end) if span.start < at < span.end)
        cuts = sorted(edges)
        for start, end in pairwise(cuts):
            stays = any(one.start <= start and end <= one.end for one in kept)
            yield {"kept": stays, "span": [start, end], "text": text[start:end]}


def _target(run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Tokens, from which setting, and which share of it was used; a size that the bubble is within already is none."""
    from rag.registry import catalogue, describe, spec_name
    from rag.spans.pieces import aim

    spec, context = run.get("config", {}).get("compressor"), run["context"]
    if spec is None or spec_name(spec) != context["compressor"] or spec_name(spec) not in catalogue("compressor"):
        return None
    settings = {one.name: one.default for one in describe("compressor", spec_name(spec)).parameters}
    settings.update(spec if isinstance(spec, Mapping) else {})
    target, rate = settings.get("target"), settings.get("rate")
    if target is None and rate is None:
        return None
    tokens = aim(context["source_token_count"], target, rate or 1.0)
    told = f"target {target}" if target is not None else f"rate {rate}"
    return {"tokens": tokens, "set_by": told, "used": context["token_count"] / tokens}
