"""The ledger of a run gives its bubble back, whatever selector wrote it; and what replaying says of a changed index."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rag.answer import Answer, GenerationStats, Prompt
from rag.embedders.hashing import HashingEmbedder
from rag.errors import UsageError
from rag.index import Index
from rag.pipeline import Pipeline
from rag.replay import Replay, ledger, replay, replayed, totals
from rag.tokens import WordCounter
from rag.types import Bubble, Chunk, CompressedContext, Document, Hit, Span
from tests.corpora import TOPICS, MemoryCorpus, plugins_of

EMBEDDER, COUNTER = HashingEmbedder(buckets=64), WordCounter()
ROOM = "retrievers.selectors"
SENTENCES = [f"{one}." for text in TOPICS.values() for one in text.rstrip(".").split(". ")]
WORDS = sorted({word.strip(".,;") for one in SENTENCES for word in one.split()})


def variants() -> dict[str, Callable[[int], Any]]:
    """Every selector of the room, and what changes the shape of a ledger: other modes, and gates around others."""
    made = {name: make(embedder=EMBEDDER, counter=COUNTER) for name, make in plugins_of(ROOM).items()}
    gate, inner = made["verified"], made["bubble"]
    made["verified, bubble"] = dataclasses.replace(gate, selector=inner, source_hits=2)
    made["verified, demote"] = dataclasses.replace(gate, selector=inner, on_flag="demote", agreement=0.9)
    made["verified, top-k demoted"] = dataclasses.replace(gate, on_flag="demote", agreement=0.9)
    made["bubble, paper"] = dataclasses.replace(inner, objective="paper", section_share=0.5, reallocate=True)
    return {name: lambda budget, one=one: dataclasses.replace(one, budget=budget) for name, one in made.items()}


VARIANTS = variants()


@st.composite
def corpora(draw: st.DrawFn) -> tuple[list[Document], list[Chunk]]:
    """Documents of sentences, some in several; chunks of one to three sentences that may overlap, with parents."""
    documents, chunks = [], []
    for number in range(draw(st.integers(1, 4))):
        said = draw(st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=9))
        gap = draw(st.sampled_from([" ", "\n\n", "\n# Heading\n\n"]))
        document = Document(text=gap.join(said), source=f"{number}.md")
        starts = [0]
        for one in said[:-1]:
            starts.append(starts[-1] + len(one) + len(gap))
        width, step = draw(st.integers(1, 3)), draw(st.integers(1, 2))
        parent = Span(0, len(document.text)) if draw(st.booleans()) else None
        for at in range(0, len(said), step):
            end = starts[at + width] if at + width < len(said) else len(document.text)
            chunks.append(Chunk.cut(document, starts[at], end, counter=COUNTER, chunker="x", parent=parent))
        documents.append(document)
    return documents, chunks


def hits_of(chunks: list[Chunk], order: list[int]) -> list[Hit]:
    return [
        Hit(chunk=chunks[at], score=1 / rank, rank=rank, retriever="x", parts={"x": 0.1 * rank})
        for rank, at in enumerate(order, start=1)
    ]


def stored(bubble: Bubble, hits: list[Hit]) -> dict[str, Any]:
    """What is read back of a run with this bubble."""
    context = CompressedContext(
        question=bubble.question, pieces=(), token_count=0, source_token_count=0, compressor="none"
    )
    answer = Answer(
        question=bubble.question, text="", citations=(), sentences=(), supported=(), context=context, bubble=bubble,
        prompt=Prompt(), stats=GenerationStats(), trace=(), candidates=tuple(hits),
    )  # fmt: skip
    run: dict[str, Any] = json.loads(json.dumps(answer.to_dict()))
    return run


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_the_ledger_gives_the_bubble_back(name: str, data: st.DataObject) -> None:
    documents, chunks = data.draw(corpora())
    question = " ".join(data.draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8)))
    order = data.draw(st.lists(st.integers(0, len(chunks) - 1), unique=True, max_size=20))
    budget = data.draw(st.integers(1, 150))
    embedder = EMBEDDER if data.draw(st.booleans()) else None
    with tempfile.TemporaryDirectory() as folder:
        corpus = MemoryCorpus(Path(folder), documents, chunks, embedder=embedder)
        try:
            hits = hits_of(chunks, order)
            bubble = VARIANTS[name](budget).select(question, hits, corpus)
            again = replayed(stored(bubble, hits), corpus, COUNTER)
        finally:
            corpus.close()
    assert again == bubble
    assert (again.spans, again.texts, again.token_count) == (bubble.spans, bubble.texts, bubble.token_count)


class TestLedgerAlone:
    """The bubble follows from the decisions, not from what is stored beside them."""

    def run(self, tmp_path: Path) -> tuple[dict[str, Any], MemoryCorpus]:
        document = Document(text=" ".join(SENTENCES[:4]), source="a.md")
        ends = [at for at in range(1, len(document.text) + 1) if document.text[at - 1] == "."]
        spans = zip([0, *ends], ends, strict=False)
        chunks = [Chunk.cut(document, a, b, counter=COUNTER, chunker="x") for a, b in spans]
        corpus, hits = MemoryCorpus(tmp_path, [document], chunks), hits_of(chunks, [2, 0, 1])
        return stored(VARIANTS["top-k"](500).select("honey", hits, corpus), hits), corpus

    def test_a_take_that_is_struck_out_is_not_in_the_bubble(self, tmp_path: Path) -> None:
        run, corpus = self.run(tmp_path)
        line = run["bubble"]["decisions"][1]
        line["action"] = "skip-test"
        assert line["chunk_id"] in run["bubble"]["chunk_ids"]
        assert line["chunk_id"] not in [hit.chunk.id for hit in replayed(run, corpus, COUNTER).hits]

    def test_a_later_line_takes_a_part_back(self, tmp_path: Path) -> None:
        run, corpus = self.run(tmp_path)
        lines = run["bubble"]["decisions"]
        lines.append({**lines[0], "action": "skip-budget"})
        assert len(replayed(run, corpus, COUNTER).hits) == 2

    def test_parts_that_touch_are_one(self, tmp_path: Path) -> None:
        run, corpus = self.run(tmp_path)
        first = run["bubble"]["decisions"][0]
        start = int(first["chunk_id"].rpartition(":")[2].partition("-")[0])
        run["bubble"]["decisions"] = [{**first, "span": [start + a, start + b]} for a, b in ((9, 12), (0, 4), (4, 7))]
        [spans] = replayed(run, corpus, COUNTER).spans
        assert spans == (Span(start, start + 7), Span(start + 9, start + 12))

    def test_a_run_without_candidates_and_chunks_that_are_gone(self, tmp_path: Path) -> None:
        run, corpus = self.run(tmp_path)
        with pytest.raises(UsageError, match="ask the question again"):
            replayed({name: value for name, value in run.items() if name != "candidates"}, corpus, COUNTER)
        gone = run["bubble"]["decisions"][0]["chunk_id"] = "0" * 16 + ":0-5"
        with pytest.raises(UsageError, match=f"not in the index any more: {gone}"):
            replayed(run, corpus, COUNTER)

    def test_lines_and_totals(self, tmp_path: Path) -> None:
        run, _ = self.run(tmp_path)
        first = ledger(run)[0]
        assert (first["rank"], first["score"], first["retrieval"], first["taken"]) == (1, 1.0, {"x": 0.1}, True)
        assert f"{first['doc_id']}:{first['start']}-{first['end']}" == first["chunk_id"]
        sums = totals(run)
        assert (sums["candidates"], sums["lines"], sums["taken"], sums["skipped"]) == (3, 3, {"take": 3}, {})
        assert sums["tokens"] == run["bubble"]["token_count"]
        del run["candidates"], run["bubble"]["hits"]  # as older versions stored it
        assert ledger(run)[0]["rank"] is None
        assert totals(run)["candidates"] is None


CONFIG = {
    "embedder": "hashing",
    "retriever": "bm25",
    "selector": {"use": "bubble", "budget": 40},
    "generator": {"use": "extractive", "min_support": 0.1},
}
QUESTION = "Which parasite harms the hive?"


class TestReplay:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "docs"
        folder.mkdir()
        for source, text in TOPICS.items():
            (folder / source).write_text(text)
        self.ingest(folder)
        return folder

    def pipeline(self, **slots: Any) -> Pipeline:
        from rag.config import PipelineConfig

        return Pipeline(PipelineConfig.from_dict({**CONFIG, **slots}))

    def ingest(self, folder: Path, **slots: Any) -> None:
        self.pipeline(**slots).index([folder], into=folder.parent / "index", delete_missing=True).close()

    def asked(self, folder: Path) -> str:
        return self.pipeline().ask(QUESTION, folder.parent / "index").run_id

    def replay(self, folder: Path, run_id: str, spoil: Callable[[dict[str, Any]], None] | None = None) -> Replay:
        with Index.open(folder.parent / "index") as index:
            run = index.store.run(run_id)
            if spoil:
                spoil(run)
            return replay(run, self.pipeline(), index)

    def test_the_same_index(self, folder: Path) -> None:
        found = self.replay(folder, self.asked(folder))
        assert found.ok
        assert (found.missing, found.differences, found.selection, found.left_out) == ((), (), (), ())
        assert found.generations[0] == found.generations[1]
        assert found.tokens

    def test_a_ledger_that_was_changed(self, folder: Path) -> None:
        def drop(run: dict[str, Any]) -> None:
            line = next(one for one in run["bubble"]["decisions"] if one["action"] == "take")
            line["action"] = "skip-rank"

        found = self.replay(folder, self.asked(folder), drop)
        assert not found.ok
        said = " ".join(found.differences)
        assert "tokens: stored" in said
        assert "text: " in said
        assert "context: compressor none" in said
        assert found.selection[0].startswith("1 lines differ, the first is line")
        assert "action 'skip-rank', now 'take'" in found.selection[0]

    def test_a_context_that_is_not_what_the_generator_was_given(self, folder: Path) -> None:
        found = self.replay(folder, self.asked(folder), lambda run: run["context"].update(digest="0" * 32))
        assert [one.partition(":")[0] for one in found.differences] == ["context"]

    def test_a_document_that_has_another_text_is_named(self, folder: Path) -> None:
        run_id = self.asked(folder)
        (folder / "bees.md").write_text(TOPICS["bees.md"] + " A new end.")
        self.ingest(folder)
        found = self.replay(folder, run_id)
        assert not found.ok
        assert found.tokens is None
        assert "bees.md 0-" in found.missing[0]
        assert found.missing[0].endswith("its document has another text now")
        assert "of the context are gone" in found.left_out[0]
        assert found.generations[0] != found.generations[1]

    def test_a_document_that_is_gone_is_named(self, folder: Path) -> None:
        run_id = self.asked(folder)
        (folder / "bees.md").unlink()
        self.ingest(folder)
        assert self.replay(folder, run_id).missing[0].endswith("its document is gone")

    def test_candidates_that_are_gone_do_not_hinder_the_replay(self, folder: Path) -> None:
        run_id = self.asked(folder)

        def other(run: dict[str, Any]) -> None:
            run["candidates"].append({**run["candidates"][0], "chunk_id": "0" * 16 + ":0-5"})

        found = self.replay(folder, run_id, other)
        assert found.ok
        assert found.left_out == ("selection: it would see other candidates, since some are gone",)
        assert found.missing == (f"{'0' * 16} 0-5 ({'0' * 16}:0-5): its document is gone",)

    def test_a_flow_is_replayed_but_not_run_again(self, folder: Path) -> None:
        from rag.flow import Flow

        with Index.open(folder.parent / "index") as index:
            run_id = Flow.load("naive").run(self.pipeline(), QUESTION, index).run_id
        found = self.replay(folder, run_id)
        assert found.ok
        assert found.left_out == ("selection and compression: the run followed a flow, whose nodes are not run again",)
