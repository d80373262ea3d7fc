"""Table 3 of Adaptive Chunking (arXiv 2603.25333): five intrinsic measures of ways to cut CLAIR's documents."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from eval.chunks.data import Structured
from eval.chunks.intrinsic import block_integrity, reference_completeness
from eval.chunks.stats import spearman
from eval.papers._view import EmbeddedSentences, Unlimited, chunks_at
from rag.protocols import Embedder, Metric
from rag.registry import build
from rag.types import Chunk

__all__ = ["MEASURES", "PAPER", "adaptive_table", "finished"]

MEASURES = ("RC", "ICC", "DCC", "BI", "SC")
LEAST, MOST, MERGED = 100, 1100, 1150
"""Tokens: chunks below LEAST are joined while both together have at most MERGED; chunks over MOST are cut again."""

PAPER: Mapping[str, tuple[float, ...]] = {
    "recursive 1100*": (99.0, 66.6, 89.7, 98.1, 100.0, 90.68),
    "recursive 600*": (97.2, 69.6, 84.7, 94.8, 100.0, 89.24),
    "page*": (97.2, 69.2, 86.4, 99.9, 99.9, 90.52),
    "regex*": (98.0, 70.9, 82.4, 98.1, 99.6, 89.80),
    "langchain recursive 1100": (98.4, 64.7, 86.8, 98.6, 93.3, 88.37),
    "page": (97.1, 69.3, 86.1, 100.0, 92.7, 89.03),
    "semantic": (97.5, 69.3, 76.3, 91.3, 48.1, 76.49),
    "sentence (5 a chunk)": (86.3, 78.4, 72.5, 61.9, 67.2, 73.26),
    "adaptive": (99.0, 68.2, 88.8, 99.4, 99.9, 91.07),
}
"""Method -> RC, ICC, DCC, BI, SC and their mean, times 100; * is post-processed, and a candidate of `adaptive`."""

_Ranges = list[tuple[int, int]]
_Cutter = Callable[[Structured, EmbeddedSentences], list[Chunk]]


def adaptive_table(documents: Sequence[Structured], embedder: Embedder, tell: Callable[[str], None]) -> dict[str, Any]:
    """Rows with the paper's numbers and ours (means over documents, times 100), and what `adaptive` chose."""
    found: dict[str, list[dict[str, float | None]]] = {name: [] for name in PAPER}
    sizes: dict[str, list[float]] = {name: [] for name in PAPER}
    chosen: dict[str, int] = {}
    cutters = _cutters(embedder)
    for one in documents:
        tell(f"adaptive chunking: {one.document.source}")
        view, scored = EmbeddedSentences(one.document, embedder), {}
        for name, cutter in cutters.items():
            chunks = cutter(one, view)
            scored[name] = _measured(chunks, one, view)
            found[name].append(scored[name])
            sizes[name].append(sum(chunk.token_count for chunk in chunks) / len(chunks))
        best = max((name for name in scored if name.endswith("*")), key=lambda name: _mean(scored[name]))
        found["adaptive"].append(scored[best])
        sizes["adaptive"].append(sizes[best][-1])
        chosen[best] = chosen.get(best, 0) + 1
    return {
        "documents": len(documents),
        "rows": [_row(name, found[name], sizes[name]) for name in PAPER],
        "chosen": chosen,
        "size_alone": _size_alone(found, sizes),
    }


def _cutters(embedder: Embedder) -> dict[str, _Cutter]:
    def plugin(spec: Mapping[str, Any]) -> _Cutter:
        built = build("chunker", spec, services={"counter": Unlimited(embedder.counter), "embedder": embedder})
        return lambda one, view: built.chunk(one.document)

    def pages(one: Structured, view: EmbeddedSentences) -> list[Chunk]:
        return chunks_at(view, _between(one.pages, len(one.document.text)), "page")

    def sentences(one: Structured, view: EmbeddedSentences) -> list[Chunk]:
        return chunks_at(view, _between(view.starts[::5], len(one.document.text)), "sentence")

    def after(cutter: _Cutter) -> _Cutter:
        def cut(one: Structured, view: EmbeddedSentences) -> list[Chunk]:
            ranges = [_place(chunk) for chunk in cutter(one, view)]
            over = any(view.map.count(start, end) > MOST for start, end in ranges)
            ends = [chunk.span.end for chunk in again(one, view)] if over else []
            return chunks_at(view, finished(ranges, view.map.count, ends), "finished")

        return cut

    def whole(use: str, tokens: int, **options: Any) -> dict[str, Any]:
        return {"use": use, "max_tokens": tokens, "max_chars": 100 * tokens, **options}

    again = plugin(whole("recursive", MOST))
    return {
        "recursive 1100*": after(plugin(whole("recursive", MOST))),
        "recursive 600*": after(plugin(whole("recursive", 600))),
        "page*": after(pages),
        "regex*": after(plugin(whole("regex-library", MOST))),
        "langchain recursive 1100": plugin(whole("langchain", MOST)),
        "page": pages,
        "semantic": plugin(whole("semantic", 1_000_000, min_tokens=0)),
        "sentence (5 a chunk)": sentences,
    }


def finished(ranges: _Ranges, count: Callable[[int, int], int], ends: Sequence[int]) -> _Ranges:
    """The paper's post-processing: cut what is over MOST tokens, then join what is below LEAST.

    What is too long is cut at `ends`, where a recursive splitter of MOST tokens cuts the whole document; what is too
    short joins the chunk before it, or lets the next one join, while both have at most MERGED tokens.
    """
    parts: _Ranges = []
    for start, end in ranges:
        inside = [at for at in ends if start < at < end] if count(start, end) > MOST else []
        parts.extend(pairwise([start, *inside, end]))
    joined: _Ranges = []
    for start, end in parts:
        small = joined and min(count(*joined[-1]), count(start, end)) < LEAST
        if small and count(joined[-1][0], end) <= MERGED:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _measured(chunks: Sequence[Chunk], one: Structured, view: EmbeddedSentences) -> dict[str, float | None]:
    places = [_place(chunk) for chunk in chunks]
    metrics: dict[str, Metric] = {
        "ICC": build("metric", "intrachunk-cohesion", services={}),
        "DCC": build("metric", "document-coherence", services={}),
        "SC": build("metric", {"use": "size-compliance", "least": LEAST, "most": MOST}, services={}),
    }
    scores = {label: metric.score(chunks, view) for label, metric in metrics.items()}
    scores["BI"] = 1.0 if len(places) == 1 else block_integrity(places, one.blocks)
    scores["RC"] = reference_completeness(places, one.pairs)
    return {label: scores[label] for label in MEASURES}


def _row(name: str, found: Sequence[Mapping[str, float | None]], sizes: Sequence[float]) -> dict[str, Any]:
    ours = {label: 100 * _average([one[label] for one in found]) for label in MEASURES}
    return {
        "method": name,
        "paper": dict(zip((*MEASURES, "mean"), PAPER[name], strict=True)),
        "ours": ours | {"mean": 100 * _average([_mean(one) for one in found])},
        "mean_tokens": sum(sizes) / len(sizes),
    }


def _size_alone(found: Mapping[str, Sequence[Any]], sizes: Mapping[str, Sequence[float]]) -> dict[str, float | None]:
    """Rank correlation of each measure with the mean chunk size, over all cuts of all documents but the chosen ones."""
    names = [name for name in found if name != "adaptive"]
    result: dict[str, float | None] = {}
    for label in MEASURES:
        pairs = [
            (one[label], size)
            for name in names
            for one, size in zip(found[name], sizes[name], strict=True)
            if one[label] is not None
        ]
        result[label] = spearman([value for value, _ in pairs], [size for _, size in pairs])
    return result


def _mean(scores: Mapping[str, float | None]) -> float:
    return _average([scores[label] for label in MEASURES])


def _average(values: Sequence[float | None]) -> float:
    there = [value for value in values if value is not None]
    return math.fsum(there) / len(there) if there else 0.0


def _between(starts: Sequence[int], size: int) -> _Ranges:
    edges = sorted({0, size, *(at for at in starts if 0 < at < size)})
    return list(pairwise(edges))


def _place(chunk: Chunk) -> tuple[int, int]:
    return chunk.span.start, chunk.span.end
