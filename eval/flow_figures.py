"""Runs every shipped flow on the sample corpus and on public questions: answers, evidence in context, cost.

    python -m eval.flow_figures --data DIR [--generator extractive] [--sample 45] [--public 20] [--flow NAME ...]

A table for each set, one row a flow. `answered`: share of questions with an answer that cites something; for the
questions of the sample that have no answer, `abstained` is the share without. `evidence`: share of questions whose
evidence is in the last context, all of it; `searches`: retrieval rounds a question; `tokens`: read and written by
generator and judges a question; `s`: seconds a question, where sentences that an earlier flow has embedded cost
nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from eval.chunks.vectors import CachedEmbedder
from eval.select.indexes import opened
from eval.select.sets import read_asked
from eval.sets import Place
from rag.answer import Generation
from rag.builder import PipelineBuilder
from rag.errors import RagError
from rag.flow import Flow, shipped_flows
from rag.flow.nodes import run_all
from rag.flow.state import Run, State
from rag.index import Index
from rag.pipeline import Pipeline
from rag.sample import documents_dir, questions
from rag.types import Bubble

SET = "hotpotqa_200"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question and where its evidence is, by ids of the index; none: it has no answer."""

    text: str
    evidence: tuple[Place, ...]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One question with one flow."""

    answerable: bool
    answered: bool
    evidence: bool
    searches: int
    tokens: int
    seconds: float


def holds_all(bubble: Bubble | None, evidence: Sequence[Place]) -> bool:
    """Whether every place lies in the kept parts of the bubble, white space at its ends and between parts aside."""
    kept: dict[str, list[tuple[int, int]]] = {}
    for hit, spans in zip(bubble.hits if bubble else (), bubble.spans if bubble else (), strict=True):
        kept.setdefault(hit.chunk.doc_id, []).extend((span.start, span.end) for span in spans)
    for doc_id, start, end in evidence:
        at = start
        for low, high in sorted(kept.get(doc_id, [])):
            if low <= at + 2:
                at = max(at, high)
        if at < end:
            return False
    return True


def figures_of(flow: Flow, pipeline: Pipeline, index: Index, asked: Asked) -> Figures:
    """As `Flow.run` does, without a kept run, so that what was spent can be read."""
    run = Run(pipeline, index, flow.budget)
    started = time.perf_counter()
    end = run_all(flow.nodes, State(question=asked.text, query=asked.text), run)
    seconds = time.perf_counter() - started
    made = end.generation or Generation(text="")
    return Figures(
        answerable=bool(asked.evidence),
        answered=bool(made.citations),
        evidence=bool(asked.evidence) and holds_all(end.bubble, asked.evidence),
        searches=sum(one.stage.rsplit("/", 1)[-1] == "retrieve" for one in run.trace),
        tokens=run.tokens,
        seconds=seconds,
    )


def row(name: str, found: Sequence[Figures]) -> str:
    """A line of the table."""
    good, none = [one for one in found if one.answerable], [one for one in found if not one.answerable]
    shares = [sum(one.answered for one in good) / len(good), sum(one.evidence for one in good) / len(good)]
    abstained = f"{100 * sum(not one.answered for one in none) / len(none):.0f} %" if none else "-"
    means = [sum(getattr(one, key) for one in found) / len(found) for key in ("searches", "tokens", "seconds")]
    return (
        f"| {name} | {100 * shares[0]:.0f} % | {abstained} | {100 * shares[1]:.0f} % | {means[0]:.1f} | "
        f"{means[1]:.0f} | {means[2]:.2f} |"
    )


@contextmanager
def sample(pipeline: Pipeline, most: int) -> Iterator[tuple[Index, list[Asked]]]:
    """The sample corpus, and `most` of its questions, evenly out of all."""
    with tempfile.TemporaryDirectory() as folder, pipeline.index(documents_dir(), Path(folder) / "index") as index:
        corpus = index.corpus
        documents = {}
        for chunk in corpus.chunks(corpus.rows().tolist()):
            document = corpus.document(chunk.doc_id)
            documents[Path(document.source).name] = document
        asked = []
        every = questions()
        for one in every[:: max(1, len(every) // most)][:most]:
            places = []
            for proof in one.all_evidence:
                document = documents[Path(proof.source).name]
                words = map(re.escape, proof.text.replace("|", " ").split())
                found = re.search(r"[\s|]+".join(words), document.text)  # lines and cells may be set in other ways
                if found is None:
                    raise RagError(f"{one.query_id}: its evidence is not in {proof.source}")
                places.append((document.id, *found.span()))
            asked.append(Asked(text=one.text, evidence=tuple(places)))
        yield index, asked


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--generator", default="extractive", help="a name, or a mapping as JSON")
    parser.add_argument("--budget", type=int, default=800)
    parser.add_argument("--sample", type=int, default=45)
    parser.add_argument("--public", type=int, default=20)
    parser.add_argument("--flow", action="append", help="a name or a file")
    options = parser.parse_args()
    given = options.generator
    line = PipelineBuilder().selector("top-k", budget=options.budget)
    spec = json.loads(given) if given.startswith("{") else {"use": given}
    pipeline = line.generator(spec.pop("use"), **spec).build()
    folder = options.cache / "vectors" if options.cache else None
    vars(pipeline)["embedder"] = CachedEmbedder(inner=pipeline.embedder, folder=folder)
    flows = {Path(name).stem: Flow.load(name) for name in options.flow or shipped_flows()}
    if options.sample:
        with sample(pipeline, options.sample) as (index, asked):
            table("sample", pipeline, index, asked, flows)
    if options.public:
        public = read_asked(options.data, SET, "dev")
        with opened(public, pipeline.embedder, public.chunker, options.cache) as indexed:
            asked = [
                Asked(text=one.text, evidence=tuple(indexed.evidence(one.evidence)))
                for one in public.questions[: options.public]
            ]
            table(f"{SET}, dev", pipeline, indexed.index, asked, flows)


def table(name: str, pipeline: Pipeline, index: Index, asked: Sequence[Asked], flows: dict[str, Flow]) -> None:
    figures_of(Flow.load("naive"), pipeline, index, asked[0])  # loads the models
    print(f"\n{name}: {len(asked)} questions\n", flush=True)
    print("| flow | answered | abstained | evidence | searches | tokens | s |\n|---|---|---|---|---|---|---|")
    for title, flow in flows.items():
        print(row(title, [figures_of(flow, pipeline, index, one) for one in asked]), flush=True)


if __name__ == "__main__":
    main()
