"""A stored run, read again: its ledger line by line, and the bubble that follows from the ledger alone.

A ledger says of every candidate, a chunk or a part of one, whether it was taken; actions that start with `skip-` leave
it out. With the ranks of the candidates that is the whole bubble: documents stand by their best taken rank, chunks and
their parts by their place.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rag.errors import UsageError
from rag.spans.units import reading_order
from rag.text import assemble
from rag.types import Bubble, Chunk, Decision, Hit, Span, content_key, parse_chunk_id

if TYPE_CHECKING:
    from rag.answer import Answer
    from rag.index import Index
    from rag.pipeline import Pipeline
    from rag.protocols import Corpus, TokenCounter
    from rag.store.corpus import StoreCorpus

__all__ = ["Replay", "about", "ledger", "replay", "replayed", "totals"]

Run = Mapping[str, Any]
"""What `Store.run` gives: `Answer.to_dict()`, `about` and the config."""


def about(answer: Answer, corpus: StoreCorpus) -> dict[str, Any]:
    """What a run keeps of the index that it was made on: its generation, and the names of the documents it met."""
    hits = (*answer.candidates, *answer.bubble.hits)
    doc_ids = dict.fromkeys(hit.chunk.doc_id for hit in hits)
    return {"generation": corpus.generation, "sources": {doc_id: corpus.source(doc_id) for doc_id in doc_ids}}


def ledger(run: Run, part: Literal["bubble", "context"] = "bubble") -> list[dict[str, Any]]:
    """The decisions of a run in their order, each with its place and what the retriever said of its chunk.

    Those of the selector, or with `context` those of the compressor, () where it wrote none.

    `rank`, `score`, `retriever` and `retrieval` (score parts) are None for a chunk that was no hit, and in runs that
    were stored without their candidates. `taken` tells whether it went on.
    """
    facts = _facts(run)
    lines = []
    for one in run[part].get("decisions", ()):
        doc_id, whole = parse_chunk_id(one["chunk_id"])
        start, end = one.get("span") or (whole.start, whole.end)
        fact = facts.get(one["chunk_id"], {})
        lines.append(
            {
                **one,
                "taken": _takes(one["action"]) if part == "bubble" else one["action"] != "drop",
                "source": run.get("sources", {}).get(doc_id),
                "doc_id": doc_id,
                "start": start,
                "end": end,
                **{name: fact.get(name) for name in ("rank", "score", "retriever")},
                "retrieval": fact.get("parts"),
            }
        )
    return lines


def totals(run: Run) -> dict[str, Any]:
    """Tokens spent of the budget, candidates, and how many lines of the ledger have which action."""
    bubble = run["bubble"]
    actions = Counter(one["action"] for one in bubble["decisions"])
    return {
        "tokens": bubble["token_count"],
        "budget": bubble["budget"],
        "candidates": len(run["candidates"]) if "candidates" in run else None,
        "lines": len(bubble["decisions"]),
        "chunks": len(bubble["chunk_ids"]),
        "taken": {action: count for action, count in actions.items() if _takes(action)},
        "skipped": {action: count for action, count in actions.most_common() if not _takes(action)},
    }


def replayed(run: Run, corpus: Corpus, counter: TokenCounter) -> Bubble:
    """The bubble that the decisions of a run lead to, its chunks read from the corpus, its tokens counted anew.

    Of the stored bubble it reads the ledger, the budget and the ranks of chunks that are no candidates, never what was
    chosen. UsageError when chunks are gone, or the run was stored without its candidates.
    """
    if "candidates" not in run:
        raise UsageError(
            f"run {run.get('run_id', '')!r} was stored by a version that did not keep its candidates, so it cannot be "
            "replayed; ask the question again"
        )
    decisions = tuple(_decision(one) for one in run["bubble"]["decisions"])
    taken: dict[tuple[str, Span | None], None] = {}
    for one in decisions:
        if _takes(one.action):
            taken[one.chunk_id, one.span] = None
        else:
            taken.pop((one.chunk_id, one.span), None)
    chunks = _chunks(corpus, [chunk_id for chunk_id, _ in taken])
    missing = sorted({chunk_id for chunk_id, _ in taken} - chunks.keys())
    if missing:
        raise UsageError(f"the ledger takes chunks that are not in the index any more: {', '.join(missing)}")
    facts = _facts(run)
    hits = reading_order([_hit(facts[chunk_id], chunk) for chunk_id, chunk in chunks.items()])
    parts: dict[str, list[Span]] = {}
    for chunk_id, span in taken:
        parts.setdefault(chunk_id, []).append(span or chunks[chunk_id].span)
    whole = all(span is None for _, span in taken)
    kept = () if whole else tuple(_joined(parts[hit.chunk.id]) for hit in hits)
    bubble = Bubble(
        question=run["question"],
        hits=tuple(hits),
        token_count=0,
        budget=run["bubble"]["budget"],
        decisions=decisions,
        kept=kept,
    )
    return dataclasses.replace(bubble, token_count=counter.count(assemble(bubble.texts)) if hits else 0)


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What came of replaying a run. `generations` are those of the index then (None: not kept) and now.

    `missing` names chunks of the ledger that are gone, and what became of their documents. `differences` says in what
    the replayed bubble, and the context made of it, are not what the generator was given. `selection` says in what a
    second selection from the same candidates differs; `left_out` why something was not checked. Empty is good.
    """

    run_id: str
    generations: tuple[int | None, int]
    tokens: int | None
    missing: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()
    selection: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Replayed, and nothing differs: what could not be checked is not held against it."""
        return self.tokens is not None and not self.differences and not self.selection

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "ok": self.ok}


def replay(run: Run, pipeline: Pipeline, index: Index) -> Replay:
    """Replays the ledger of a run on the index as it is, and selects again from the stored candidates.

    `pipeline` is that of the run: `Pipeline(PipelineConfig.from_dict(run["config"]))`. UsageError for a run that was
    stored without its candidates.
    """
    corpus, left_out = index.corpus, []
    wanted = [one["chunk_id"] for one in (*run.get("candidates", ()), *run["bubble"]["decisions"])]
    known = _chunks(corpus, wanted)
    missing = tuple(_fate(one, run, corpus) for one in dict.fromkeys(wanted) if one not in known)
    facts: dict[str, Any] = {
        "run_id": run.get("run_id", ""),
        "generations": (run.get("generation"), corpus.generation),
        "missing": missing,
    }
    needed = {one["chunk_id"] for one in run["bubble"]["decisions"] if _takes(one["action"])}
    if not needed <= known.keys():
        why = f"{len(needed - known.keys())} of {len(needed)} chunks of the context are gone"
        return Replay(**facts, tokens=None, left_out=(f"replay: {why}",))
    bubble = replayed(run, corpus, pipeline.generator.counter)
    differences = _bubble_differences(run["bubble"], bubble)
    selection: list[str] = []
    if "flow" in run:
        left_out.append("selection and compression: the run followed a flow, whose nodes are not run again")
    else:
        differences += _context_differences(run["context"], bubble, pipeline, corpus)
        if all(one["chunk_id"] in known for one in run["candidates"]):
            hits = [_hit(one, known[one["chunk_id"]]) for one in run["candidates"]]
            again = pipeline.selector.select(run["question"], hits, corpus)
            selection = _ledger_differences(bubble.decisions, again.decisions)
        else:
            left_out.append("selection: it would see other candidates, since some are gone")
    return Replay(
        **facts,
        tokens=bubble.token_count,
        differences=tuple(differences),
        selection=tuple(selection),
        left_out=tuple(left_out),
    )


def _bubble_differences(stored: Mapping[str, Any], bubble: Bubble) -> list[str]:
    found = []
    now = [hit.chunk.id for hit in bubble.hits]
    if now != stored["chunk_ids"]:
        found.append(f"chunks: stored {', '.join(stored['chunk_ids'])}; replayed {', '.join(now)}")
    kept = tuple(_joined([Span(*pair) for pair in spans]) for spans in stored["kept"])
    if not found and kept != bubble.spans:
        places = [one for one, then, again in zip(now, kept, bubble.spans, strict=True) if then != again]
        found.append(f"parts: other ones of {', '.join(places)}")
    if stored["token_count"] != bubble.token_count:
        found.append(f"tokens: stored {stored['token_count']}, replayed {bubble.token_count}")
    if stored["digest"] != content_key("", assemble(bubble.texts)):
        found.append("text: the text of the bubble is another one")
    return found


def _context_differences(stored: Mapping[str, Any], bubble: Bubble, pipeline: Pipeline, corpus: Corpus) -> list[str]:
    """Whether the compressor makes of the replayed bubble what the generator was given."""
    context = pipeline.compressor.compress(bubble, corpus)
    if stored["digest"] == content_key("", assemble(piece.text for piece in context.pieces)):
        return []
    return [f"context: compressor {context.compressor} makes another text of it than the generator was given"]


def _ledger_differences(stored: Sequence[Decision], again: Sequence[Decision]) -> list[str]:
    """The first lines that differ, and how many do."""
    found = [f"lines: stored {len(stored)}, selected again {len(again)}"] if len(stored) != len(again) else []
    unlike = [(at, *pair) for at, pair in enumerate(zip(stored, again, strict=False), start=1) if pair[0] != pair[1]]
    if unlike:
        at, then, now = unlike[0]
        names = [field.name for field in dataclasses.fields(Decision)]
        fields = [name for name in names if getattr(then, name) != getattr(now, name)]
        told = "; ".join(f"{name} {getattr(then, name)!r}, now {getattr(now, name)!r}" for name in fields)
        found.append(f"{len(unlike)} lines differ, the first is line {at}: {told}")
    return found


def _fate(chunk_id: str, run: Run, corpus: Corpus) -> str:
    """A chunk that is gone, by its source, and why."""
    doc_id, span = parse_chunk_id(chunk_id)
    source = run.get("sources", {}).get(doc_id)
    try:
        corpus.document(doc_id)
        why = "its document is cut otherwise now"
    except KeyError:
        changed = source is not None and len(corpus.rows({"source": source})) > 0
        why = "its document has another text now" if changed else "its document is gone"
    return f"{source or doc_id} {span.start}-{span.end} ({chunk_id}): {why}"


def _facts(run: Run) -> dict[str, Mapping[str, Any]]:
    """What is stored of each hit: as the selector left it where it was taken, else as the retriever gave it."""
    return {one["chunk_id"]: one for one in (*run.get("candidates", ()), *run["bubble"].get("hits", ()))}


def _hit(fact: Mapping[str, Any], chunk: Chunk) -> Hit:
    names = ("score", "rank", "retriever", "parts")
    return Hit(chunk=chunk, **{name: fact[name] for name in names})


def _decision(line: Mapping[str, Any]) -> Decision:
    return Decision(**{**line, "span": Span(*line["span"]) if line["span"] else None})


def _chunks(corpus: Corpus, chunk_ids: Iterable[str]) -> dict[str, Chunk]:
    """Those that the corpus has, in the order of the ids."""
    wanted = list(dict.fromkeys(chunk_ids))
    try:
        rows = corpus.rows_of(wanted)
    except KeyError:
        rows = [row for one in wanted for row in _row(corpus, one)]
    return {chunk.id: chunk for chunk in corpus.chunks(rows)}


def _row(corpus: Corpus, chunk_id: str) -> list[int]:
    try:
        return corpus.rows_of([chunk_id])
    except KeyError:
        return []


def _takes(action: str) -> bool:
    return not action.startswith("skip-")


def _joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Sorted; those that touch or overlap are one."""
    made: list[Span] = []
    for span in sorted(spans):
        if made and span.start <= made[-1].end:
            made[-1] = Span(made[-1].start, max(made[-1].end, span.end))
        else:
            made.append(span)
    return tuple(made)
