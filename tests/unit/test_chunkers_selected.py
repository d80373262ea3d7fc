"""Choosing a chunker per document: what it costs, what it records, and what it does where something is missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from chunkers._pack import Ruler
from chunkers._segment import Atoms
from chunkers._selection import Candidate, mean_score, measured, random_cuts, rank_correlation, size_relations
from chunkers.metric_selected import MetricSelectedChunker
from chunkers.metrics._base import Cuts, Sentences, SpanMetric
from chunkers.metrics.block_integrity import BlockIntegrityMetric
from chunkers.metrics.size_compliance import SizeComplianceMetric
from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError, InputError
from rag.protocols import Chunker, Metric, SentenceView
from rag.registry import build
from rag.tokens import WordCounter
from rag.types import Chunk, Document
from tests.texts import document_of, markdown_document, plain

COUNTER = WordCounter(limit=254)
LABELS = ["RC", "ICC", "DCC", "BI", "SC"]


class CountingEmbedder(HashingEmbedder):
    """Notes every text that it embeds."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "seen", [])

    def embed(self, texts: Sequence[str]) -> Any:
        self.seen.extend(texts)  # type: ignore[attr-defined]
        return super().embed(texts)


@dataclass(frozen=True, kw_only=True)
class BrokenChunker(Chunker):
    def chunk(self, document: Document) -> list[Chunk]:
        raise RuntimeError("no luck")


@dataclass(frozen=True, kw_only=True)
class GreedyChunker(Chunker):
    """One chunk, whatever the limit; `share` of the text only."""

    share: float = 1.0

    def chunk(self, document: Document) -> list[Chunk]:
        end = max(1, int(len(document.text) * self.share))
        return [Chunk.cut(document, 0, end, counter=COUNTER, chunker="greedy")]


@dataclass(frozen=True, kw_only=True)
class FixedMetric(Metric):
    """Says `values[number of chunks]`, else nothing."""

    label = "FIX"  # type: ignore[misc]

    values: tuple[tuple[int, float], ...] = ()

    def score(self, chunks: Sequence[Chunk], view: SentenceView) -> float | None:
        return dict(self.values).get(len(chunks))


def make(*, embedder: Any = None, **given: Any) -> Any:
    services: dict[str, Any] = {"counter": COUNTER}
    if embedder is not False:
        services["embedder"] = embedder or HashingEmbedder()
    return build("chunker", {"use": "metric-selected", **given}, services=services)


def topics() -> Document:
    """Two paragraphs for each of five topics, about twice what one chunk of 64 tokens holds."""
    words = ["mill river wheel", "valve pump motor", "ledger board copper", "bee brood hive", "wine barrel cellar"]
    parts = []
    for topic in words:
        first, second, third = topic.split()
        for number in range(2):
            parts.append(
                " ".join(f"The {first} and the {second} of {third} {number} stand by {first}." for _ in range(6))
            )
    return document_of(*(("paragraph", 0, part) for part in parts))


class TestRecord:
    def test_it_is_json_and_says_everything(self) -> None:
        chunks, record = make(max_tokens=64).decide(markdown_document())
        assert json.loads(json.dumps(record)) == record
        assert record["chunker"] == "metric-selected"
        assert list(record["weights"].values()) == [0.2] * 5
        rows = {row["chunker"]: row for row in record["candidates"]}
        assert list(rows) == ["recursive", "markdown", "semantic", "cluster-semantic"]
        winner = rows[record["winner"]]
        assert winner["score"] == max(row["score"] for row in rows.values())
        assert winner["chunks"] == len(chunks)
        assert winner["max_tokens"] == max(chunk.token_count for chunk in chunks) <= 64
        assert winner["mean_tokens"] == round(sum(chunk.token_count for chunk in chunks) / len(chunks), 1)
        assert list(winner["metrics"]) == LABELS
        assert winner["inner_cuts"].keys() == {"table", "code"}
        assert record["winner"] in record["reason"]
        assert f"{winner['score']:.3f}" in record["reason"]
        assert set(record["size_correlation"]) <= set(LABELS)
        assert set(record["follows_size"]) == {k for k, v in record["size_correlation"].items() if abs(v) > 0.8}

    def test_the_chunks_are_those_of_the_winner(self) -> None:
        chunks, record = make(max_tokens=64).decide(topics())
        services = {"counter": COUNTER, "embedder": HashingEmbedder()}
        alone = build("chunker", {"use": record["winner"], "max_tokens": 64}, services=services).chunk(topics())
        assert [chunk.span for chunk in chunks] == [chunk.span for chunk in alone]
        assert [chunk.embed_text for chunk in chunks] == [chunk.embed_text for chunk in alone]
        assert {chunk.chunker for chunk in chunks} == {"metric-selected"}

    @pytest.mark.parametrize("objective", ["paper", "debiased"])
    def test_same_text_same_record(self, objective: str) -> None:
        first, second = (make(max_tokens=64, objective=objective).decide(topics()) for _ in range(2))
        assert first == second

    def test_the_paper_objective_is_the_mean_of_the_metrics(self) -> None:
        _, record = make(max_tokens=64, objective="paper").decide(topics())
        for row in record["candidates"]:
            values = [value for value in row["metrics"].values() if value is not None]
            assert row["score"] == pytest.approx(sum(values) / len(values), abs=1e-6)
            assert "gains" not in row

    def test_weights_choose(self) -> None:
        for label in ("SC", "BI"):
            _, record = make(max_tokens=64, objective="paper", weights={label: 2.0}).decide(topics())
            best = max(row["metrics"][label] for row in record["candidates"])
            winner = next(row for row in record["candidates"] if row["chunker"] == record["winner"])
            assert winner["metrics"][label] == winner["score"] == best

    def test_ties_go_to_the_first(self) -> None:
        _, record = make(candidates=("sentence", "recursive")).decide(Document(text="One. Two.", source="x"))
        assert record["winner"] == "sentence"
        assert "as recursive, which comes later" in record["reason"]

    def test_two_of_a_kind_have_two_names(self) -> None:
        both = ({"use": "recursive", "max_tokens": 32}, {"use": "recursive", "max_tokens": 64})
        _, record = make(candidates=both).decide(topics())
        assert [row["chunker"] for row in record["candidates"]] == ["recursive", "recursive#2"]


class TestCost:
    @pytest.mark.parametrize("text", [plain(200), markdown_document().text, "One. Two."])
    @pytest.mark.parametrize("size", [None, 48])
    def test_sentences_are_embedded_once_for_all(self, text: str, size: int | None) -> None:
        embedder = CountingEmbedder()
        document = Document(text=text, source="x")
        _, record = make(embedder=embedder, max_tokens=size).decide(document)
        seen = embedder.seen  # type: ignore[attr-defined]
        once = CountingEmbedder()
        _ = Atoms.of(
            document, Ruler(document, COUNTER, max_tokens=size or 254, max_chars=12 * (size or 254)), once
        ).vectors
        assert len(set(seen)) == len(seen) == record["encoder"]["texts"]
        assert len(seen) <= 1.3 * len(once.seen)  # type: ignore[attr-defined]
        assert sum(map(COUNTER.count, seen)) <= 1.3 * sum(map(COUNTER.count, once.seen))  # type: ignore[attr-defined]

    def test_blocks_with_headers_too(self) -> None:
        embedder, once = CountingEmbedder(), CountingEmbedder()
        make(embedder=embedder, max_tokens=48).decide(markdown_document())
        build("chunker", {"use": "cluster-semantic", "max_tokens": 48}, services={"counter": COUNTER, "embedder": once})
        document = markdown_document()
        _ = Atoms.of(document, Ruler(document, COUNTER, max_tokens=48, max_chars=576), once).vectors
        assert len(embedder.seen) <= 1.3 * len(once.seen)  # type: ignore[attr-defined]

    def test_a_long_text_costs_no_encoder(self) -> None:
        embedder = CountingEmbedder()
        chunks, record = make(embedder=embedder, encoder_chars=500).decide(topics())
        assert embedder.seen == []  # type: ignore[attr-defined]
        assert record["encoder"]["texts"] == 0
        assert "".join(chunk.text for chunk in chunks) == topics().text
        rows = {row["chunker"]: row for row in record["candidates"]}
        assert "500 characters" in rows["semantic"]["left_out"]
        assert record["skipped_metrics"].keys() >= {"ICC", "DCC"}
        assert record["winner"] in ("recursive", "markdown")

    def test_no_embedder_at_all(self) -> None:
        chunks, record = make(embedder=False, candidates=("recursive", "sentence")).decide(topics())
        assert chunks
        assert record["skipped_metrics"]["ICC"] == "needs the encoder"


class TestCandidates:
    def of(self, *candidates: Chunker, **given: Any) -> MetricSelectedChunker:
        metrics = (BlockIntegrityMetric(), SizeComplianceMetric())
        return MetricSelectedChunker(counter=COUNTER, candidates=candidates, metrics=metrics, **given)

    def recursive(self) -> Chunker:
        plugin: Chunker = build("chunker", "recursive", services={"counter": COUNTER})
        return plugin

    def test_what_fails_or_exceeds_is_recorded(self) -> None:
        chunker = self.of(BrokenChunker(), GreedyChunker(), GreedyChunker(share=0.01), self.recursive(), max_tokens=64)
        chunks, record = chunker.decide(topics())
        assert record is not None
        reasons = [row.get("left_out", "") for row in record["candidates"]]
        assert reasons[0] == "failed: RuntimeError: no luck"
        assert "exceeds 64 tokens" in reasons[1]
        assert "leaves out the end" in reasons[2]
        assert (reasons[3], record["winner"]) == ("", "recursive")
        assert all(chunk.token_count <= 64 for chunk in chunks)

    def test_none_left(self) -> None:
        chunks, record = self.of(BrokenChunker(), GreedyChunker(), max_tokens=16).decide(topics())
        assert record is not None
        assert record["winner"] is None
        assert "split recursively" in record["reason"]
        assert "".join(chunk.text for chunk in chunks) == topics().text
        assert all(chunk.token_count <= 16 for chunk in chunks)

    def test_an_encoder_out_of_order_stops_the_document(self) -> None:
        class Down(HashingEmbedder):
            def embed(self, texts: Sequence[str]) -> Any:
                raise InputError("the embedding service is down")

        with pytest.raises(InputError, match="is down"):
            make(embedder=Down()).decide(topics())

    def test_a_metric_without_a_word_is_left_out(self) -> None:
        metrics = (FixedMetric(values=((1, float("nan")),)), SizeComplianceMetric(least=0))
        chunker = MetricSelectedChunker(
            counter=COUNTER, candidates=(self.recursive(),), metrics=metrics, objective="paper"
        )
        _, record = chunker.decide(Document(text="One. Two.", source="x"))
        assert record is not None
        assert record["candidates"][0]["score"] == 1.0
        assert record["skipped_metrics"] == {"FIX": "says nothing about recursive"}

    @pytest.mark.parametrize("text", ["", " \n", "a", "One sentence.", "x" * 3000])
    def test_small_texts(self, text: str) -> None:
        chunks, record = make(max_tokens=24).decide(Document(text=text, source="x"))
        assert "".join(chunk.text for chunk in chunks) == text or not text.strip()
        assert record["reason"]

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"objective": "best"}, "objective"),
            ({"weights": {"XX": 1.0}}, "RC, ICC, DCC, BI, SC"),
            ({"weights": {"RC": 0.0}}, "above 0"),
            ({"weights": {"RC": -1.0}}, "weights"),
            ({"permutations": 0}, "permutations"),
            ({"candidates": ()}, "at least one"),
            ({"metrics": ("block-integrity", "block-integrity")}, "each metric once"),
        ],
    )
    def test_wrong_parameters_are_named(self, given: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            make(**given)


class TestDebiasing:
    def view(self, document: Document) -> Sentences:
        return Sentences(Atoms.of(document, Ruler(document, COUNTER, max_tokens=64, max_chars=768), HashingEmbedder()))

    def chunks(self, document: Document, name: str, **given: Any) -> list[Chunk]:
        services = {"counter": COUNTER, "embedder": HashingEmbedder()}
        found: list[Chunk] = build("chunker", {"use": name, **given}, services=services).chunk(document)
        return found

    def test_random_cuts_tile_at_sentences_with_about_the_same_sizes(self) -> None:
        document = topics()
        sentences, cuts = self.view(document), Cuts.of(self.chunks(document, "sentence", max_tokens=48))
        drawn = random_cuts(cuts, sentences, 40)
        for one in drawn:
            assert (one.starts[0], one.ends[-1]) == (0, len(document.text))
            assert (one.starts[1:] == one.ends[:-1]).all()
            assert set(one.starts) <= set(sentences.starts)
            assert one.tokens.sum() == sentences.tokens.sum()
        assert len({one.starts.tobytes() for one in drawn}) > 20
        assert np.mean([len(one) for one in drawn]) == pytest.approx(len(cuts), rel=0.05)

    def test_cuts_at_topics_gain_and_random_ones_do_not(self) -> None:
        document = topics()
        sentences = self.view(document)
        blocks = Cuts(sentences.blocks[:, 0], sentences.blocks[:, 1], np.full(len(sentences.blocks), 60))
        good = Candidate("good", [self.cut(document, a, b) for a, b in zip(blocks.starts, blocks.ends, strict=True)])
        plugins = [build("metric", name, services={}) for name in ("intrachunk-cohesion", "block-integrity")]
        measured(good, plugins, sentences, 24)
        assert min(value for value in good.values.values() if value is not None) > 0.3
        gains = []
        for other in random_cuts(blocks, sentences, 60)[40:]:
            edges = zip(other.starts, other.ends, strict=True)
            bad = Candidate("bad", [self.cut(document, int(a), int(b)) for a, b in edges])
            measured(bad, plugins, sentences, 24)
            gains.append(bad.values["ICC"])
        assert abs(float(np.mean([gain for gain in gains if gain is not None]))) < 0.25

    def cut(self, document: Document, start: int, end: int) -> Chunk:
        return Chunk.cut(document, int(start), int(end), counter=COUNTER, chunker="t")

    def test_one_chunk_gains_nothing(self) -> None:
        """In the paper's objective the whole text as one chunk keeps all references and blocks, and so scores 1."""
        document = topics()
        whole = Candidate("whole", [self.cut(document, 0, len(document.text))])
        plugins = [build("metric", name, services={}) for name in ("references-completeness", "block-integrity")]
        measured(whole, plugins, self.view(document), 0)
        assert mean_score(whole.values, {"RC": 1.0, "BI": 1.0}) == 1.0
        measured(whole, plugins, self.view(document), 24)
        assert mean_score(whole.values, {"RC": 1.0, "BI": 1.0}) == 0.0

    def test_a_metric_that_is_the_size_is_named(self) -> None:
        class SizeMetric(SpanMetric):
            label = "SIZE"  # type: ignore[misc]

            def measure(self, cuts: Cuts, sentences: Sentences) -> float | None:
                return min(1.0, float(cuts.tokens.mean()) / 1000)

        document = topics()
        found = [Candidate(str(n), self.chunks(document, "sentence", max_tokens=n)) for n in (16, 32, 64)]
        for one in found:
            measured(one, [SizeMetric()], self.view(document), 0)
        assert size_relations(found, ["SIZE"]) == {"SIZE": 1.0}

    def test_rank_correlation(self) -> None:
        assert rank_correlation([1, 2, 3], [10, 20, 90]) == 1.0
        assert rank_correlation([1, 2, 3], [9, 2, 1]) == -1.0
        assert rank_correlation([1, 1, 2, 3], [1, 2, 3, 3]) == pytest.approx(4 / 4.5, abs=1e-3)
        assert rank_correlation([1, 2], [1, 2]) is None
        assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


class TestHeaders:
    """Chunkers that group sentences say where a chunk stands, in its header and within its limit."""

    def chunks(self, document: Document, **given: Any) -> list[Chunk]:
        spec = {"use": "cluster-semantic", "max_tokens": 40, "min_tokens": 0, **given}
        found: list[Chunk] = build("chunker", spec, services={"counter": COUNTER, "embedder": HashingEmbedder()}).chunk(
            document
        )
        return found

    def document(self, title: str, source: str = "guide.md") -> Document:
        found = document_of(
            ("heading", 1, "# Handbook"), ("paragraph", 0, plain(8)),
            ("heading", 2, "## Travel"), ("paragraph", 0, plain(8)), source=source,
        )  # fmt: skip
        return Document(text=found.text, source=source, blocks=found.blocks, title=title)

    def test_title_and_path_stand_above(self) -> None:
        found = {chunk.header for chunk in self.chunks(self.document("Rules"))}
        assert found == {"Rules", "Rules > Handbook", "Rules > Handbook > Travel"}

    def test_a_title_is_said_once_and_a_file_name_not_at_all(self) -> None:
        for document in (self.document("Handbook"), self.document("guide"), self.document("")):
            assert {chunk.header for chunk in self.chunks(document)} == {"", "Handbook", "Handbook > Travel"}

    def test_off(self) -> None:
        assert {chunk.header for chunk in self.chunks(self.document("Rules"), heading_header=False)} == {""}

    @pytest.mark.parametrize("size", [3, 9, 24, 40])
    def test_header_and_text_keep_the_limit(self, size: int) -> None:
        document = self.document("A title that is longer than any chunk may be, " * 9)
        chunks = self.chunks(document, max_tokens=size)
        assert "".join(chunk.text for chunk in chunks) == document.text
        assert all(COUNTER.count(chunk.embed_text) <= size for chunk in chunks)
        assert all(COUNTER.count(chunk.header) <= size // 4 for chunk in chunks)

    def test_sentences_are_embedded_without_it(self) -> None:
        embedder = CountingEmbedder()
        services = {"counter": COUNTER, "embedder": embedder}
        build("chunker", {"use": "semantic", "max_tokens": 40}, services=services).chunk(self.document("Rules"))
        assert not [text for text in embedder.seen if "Rules" in text]  # type: ignore[attr-defined]

    def test_the_selector_keeps_them(self) -> None:
        _, record = make(max_tokens=40, candidates=("cluster-semantic", "semantic")).decide(self.document("Rules"))
        assert not [row for row in record["candidates"] if "left_out" in row]
        assert record["encoder"]["texts"] <= record["encoder"]["sentences"]
        chunks, _ = make(max_tokens=40, candidates=("cluster-semantic",)).decide(self.document("Rules"))
        assert "Rules > Handbook" in {chunk.header for chunk in chunks}
