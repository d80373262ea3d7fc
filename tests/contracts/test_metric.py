"""What every measure promises, and the five of the paper against plain, slow versions of their formulas."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkers._pack import Ruler
from chunkers._segment import Atoms
from chunkers.metrics._base import Sentences
from chunkers.metrics._references import mention_pairs
from chunkers.metrics.block_integrity import BlockIntegrityMetric
from chunkers.metrics.document_coherence import DocumentCoherenceMetric
from chunkers.metrics.intrachunk_cohesion import IntrachunkCohesionMetric
from chunkers.metrics.references_completeness import ReferencesCompletenessMetric
from chunkers.metrics.size_compliance import SizeComplianceMetric
from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError
from rag.protocols import Metric
from rag.registry import build, catalogue
from rag.text import sentence_spans
from rag.tokens import WordCounter
from rag.types import Chunk, Document
from tests.texts import NASTY, document_of, documents, markdown_document, plain

COUNTER = WordCounter(limit=254)
SERVICES = {"counter": COUNTER, "embedder": HashingEmbedder()}
METRICS = {name: build("metric", name, services=SERVICES) for name in catalogue("metric")}


def view_of(document: Document) -> Atoms:
    return Atoms.of(document, Ruler(document, COUNTER, max_tokens=254, max_chars=3048), HashingEmbedder())


def chunks_at(document: Document, cuts: list[int]) -> list[Chunk]:
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(document.text)}), len(document.text)]
    return [Chunk.cut(document, a, b, counter=COUNTER, chunker="test") for a, b in pairwise(edges)]


def cut_with(name: str, document: Document, **given: Any) -> list[Chunk]:
    chunks: list[Chunk] = build("chunker", {"use": name, **given}, services=SERVICES).chunk(document)
    return chunks


@pytest.mark.parametrize("name", METRICS)
class TestLaws:
    def check(self, name: str, document: Document, chunks: list[Chunk]) -> None:
        metric: Metric = METRICS[name]
        value = metric.score(chunks, view_of(document))
        assert value is None or (isinstance(value, float) and 0.0 <= value <= 1.0)
        assert metric.score(chunks, view_of(document)) == value
        assert metric.score(chunks[::-1], view_of(document)) == value
        assert metric.score(chunks, Sentences(view_of(document))) == value

    @pytest.mark.parametrize("text", NASTY)
    def test_hard_texts(self, name: str, text: str) -> None:
        document = Document(text=NASTY[text], source=text)
        self.check(name, document, cut_with("fixed", document, max_tokens=24))

    @pytest.mark.parametrize(
        "spec",
        [
            {"name": "sentence", "max_tokens": 48, "overlap_sentences": 2},
            {"name": "parent-child", "max_tokens": 24, "parent_tokens": 96},
            {"name": "markdown", "max_tokens": 48},
            {"name": "fixed", "max_tokens": 7},
        ],
        ids=lambda spec: str(spec["name"]),
    )
    def test_kinds_of_chunks(self, name: str, spec: dict[str, Any]) -> None:
        self.check(name, markdown_document(), cut_with(document=markdown_document(), **spec))

    @settings(max_examples=25, deadline=None)
    @given(document=documents(), cuts=st.lists(st.integers(1, 400), max_size=12))
    def test_any_cuts(self, name: str, document: Document, cuts: list[int]) -> None:
        if document.text.strip():
            self.check(name, document, chunks_at(document, cuts))

    def test_no_chunk_one_chunk_one_sentence(self, name: str) -> None:
        for text in (plain(5), "One sentence.", "a"):
            document = Document(text=text, source="x")
            assert METRICS[name].score([], view_of(document)) is None
            self.check(name, document, chunks_at(document, []))

    def test_an_empty_text(self, name: str) -> None:
        assert METRICS[name].score([], view_of(Document(text="", source="x"))) is None

    def test_all_chunks_alike(self, name: str) -> None:
        document = Document(text="The same line again.\n\n" * 40, source="x")
        self.check(name, document, cut_with("sentence", document, max_tokens=24))
        nested = [Chunk.cut(document, 0, 220, counter=COUNTER, chunker="t")] * 2
        self.check(name, document, nested)


# ------------------------------------------------------------------ the formulas, plainly


def cosine(a: Any, b: Any) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def slow_vector(view: Atoms, start: int, end: int) -> Any:
    """Sum over sentences of (tokens, at least 1) x (share of its characters inside) x vector."""
    total = np.zeros(view.vectors.shape[1])
    for at, (begin, stop) in enumerate(zip(view.starts, view.ends, strict=True)):
        share = max(0, min(end, stop) - max(start, begin)) / (stop - begin)
        total += share * max(1, int(view.tokens[at])) * view.vectors[at].astype(float)
    return total


def slow_icc(chunks: list[Chunk], view: Atoms) -> float | None:
    means = []
    for chunk in chunks:
        inside = [
            at
            for at, (begin, stop) in enumerate(zip(view.starts, view.ends, strict=True))
            if begin < chunk.span.end and stop > chunk.span.start
        ]
        if len(inside) > 1:
            whole = slow_vector(view, chunk.span.start, chunk.span.end)
            means.append(np.mean([cosine(view.vectors[at].astype(float), whole) for at in inside]))
    return float(np.clip(np.mean(means), 0, 1)) if means else None


def slow_dcc(chunks: list[Chunk], view: Atoms, window: int, leave_one_out: bool) -> float | None:
    found, before = [], None
    for start in range(len(chunks)):
        last, total = start - 1, 0
        while last + 1 < len(chunks) and total + chunks[last + 1].token_count <= window:
            last += 1
            total += chunks[last].token_count
        if last - start < 1:
            continue
        if last == before:
            continue
        before = last
        whole = slow_vector(view, chunks[start].span.start, chunks[last].span.end)
        for chunk in chunks[start : last + 1]:
            own = slow_vector(view, chunk.span.start, chunk.span.end)
            found.append(cosine(whole - own if leave_one_out else whole, own))
    return float(np.clip(np.mean(found), 0, 1)) if found else None


def slow_bi(chunks: list[Chunk], blocks: list[tuple[int, int]]) -> float:
    broken = sum(any(a < c.span.start < b and c.span.start - a > 5 and b - c.span.start > 5 for c in chunks)
                 for a, b in blocks)  # fmt: skip
    return 1 - broken / len(blocks)


def slow_rc(chunks: list[Chunk], pairs: list[tuple[int, int]]) -> float:
    borders = [c.span.start for c in chunks[1:]] + [c.span.end for c in chunks[:-1]]
    return 1 - sum(any(a < border <= b for border in borders) for a, b in pairs) / len(pairs)


def random_case(seed: int) -> tuple[Document, Atoms, list[Chunk]]:
    rng = np.random.default_rng(seed)
    document = Document(text=plain(int(rng.integers(2, 30))), source="x")
    size = len(document.text)
    cuts = [int(at) for at in rng.integers(1, size, int(rng.integers(0, 9)))]
    if rng.random() < 0.5:
        starts = [span.start for span in sentence_spans(document)]
        cuts = [min(starts, key=lambda start, cut=cut: abs(start - cut)) for cut in cuts]  # type: ignore[misc]
    return document, view_of(document), chunks_at(document, cuts)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_cohesion_is_the_formula(seed: int) -> None:
    _, view, chunks = random_case(seed)
    assert IntrachunkCohesionMetric().score(chunks, view) == pytest.approx(slow_icc(chunks, view), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), window=st.sampled_from([20, 60, 150, 3000]), alone=st.booleans())
def test_coherence_is_the_formula(seed: int, window: int, alone: bool) -> None:
    _, view, chunks = random_case(seed)
    metric = DocumentCoherenceMetric(window_tokens=window, leave_one_out=alone)
    assert metric.score(chunks, view) == pytest.approx(slow_dcc(chunks, view, window, alone), abs=1e-6)


def test_coherence_over_more_windows_than_one_block() -> None:
    document = Document(text=plain(100), source="x")
    view, chunks = view_of(document), cut_with("sentence", document, max_tokens=16)
    assert len(chunks) > 70
    for alone in (False, True):
        metric = DocumentCoherenceMetric(window_tokens=50, leave_one_out=alone)
        assert metric.score(chunks, view) == pytest.approx(slow_dcc(chunks, view, 50, alone), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_integrity_and_references_are_the_formulas(seed: int) -> None:
    document, view, chunks = random_case(seed)
    rng = np.random.default_rng(seed)
    edges = [0, *(at + 2 for at in range(len(document.text)) if document.text.startswith("\n\n", at))]
    blocks = list(pairwise([*edges, len(document.text)]))
    assert BlockIntegrityMetric().score(chunks, view) == pytest.approx(slow_bi(chunks, blocks))
    starts = rng.integers(0, len(document.text) - 1, 12)
    pairs = [(int(start), int(start + rng.integers(1, 90))) for start in starts]
    metric = ReferencesCompletenessMetric(pairs=tuple(pairs))
    assert metric.score(chunks, view) == pytest.approx(slow_rc(chunks, pairs))


# ------------------------------------------------------------------ by hand


def test_integrity_by_hand() -> None:
    document = document_of(("paragraph", 0, "a" * 20), ("table", 0, "b" * 30), ("code", 0, "c" * 20))
    view, metric = view_of(document), BlockIntegrityMetric()  # blocks: 0-22, 22-54, 54-74
    for cuts, value in (([], 1.0), ([22], 1.0), ([10], 2 / 3), ([27], 1.0), ([28], 2 / 3), ([49], 1.0), ([48], 2 / 3)):
        assert metric.score(chunks_at(document, cuts), view) == pytest.approx(value), cuts
    assert metric.score(chunks_at(document, [10, 28, 48, 64]), view) == 0.0
    assert metric.inner_cuts(chunks_at(document, [10, 28, 45, 64]), document) == {"table": 2, "code": 1}


def test_references_by_hand() -> None:
    document = Document(text="Ada wrote the paper. She was proud. It is long.", source="x")
    view = view_of(document)
    assert mention_pairs(document, view.ends) == [(0, 24), (10, 38)]  # Ada .. She, the paper .. It
    metric = ReferencesCompletenessMetric()
    assert metric.score(chunks_at(document, []), view) == 1.0
    assert metric.score(chunks_at(document, [21]), view) == 0.0
    assert metric.score(chunks_at(document, [36]), view) == 0.5
    assert metric.score(chunks_at(document, [40]), view) == 1.0
    assert ReferencesCompletenessMetric(pairs=((0, 5),)).score(chunks_at(document, [5]), view) == 0.0
    assert ReferencesCompletenessMetric(pairs=((0, 5),)).score(chunks_at(document, [6]), view) == 1.0
    assert ReferencesCompletenessMetric(pairs=()).score(chunks_at(document, [5]), view) is None


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("The valves leak. They are old.", ("The valves leak", "They")),
        ("We tested a pump. Later this pump failed.", ("a pump", "this pump")),
        ("The IT team met. It was short.", ("The IT team", "It")),
        ("It rained. It stopped.", None),
        ("The board met. Then came one. Then two. It left.", None),  # too far back
        ("Der Rat tagte. Er ging.", None),
    ],
)
def test_rules_for_references(text: str, pair: tuple[str, str] | None) -> None:
    document = Document(text=text, source="x")
    found = [text[start:end] for start, end in mention_pairs(document, view_of(document).ends)]
    assert bool(found) == bool(pair), found
    if pair:
        assert found[0].startswith(pair[0])
        assert found[0].endswith(pair[1])


def test_code_holds_no_references() -> None:
    document = document_of(("paragraph", 0, "The Pump runs."), ("code", 0, "it = 3  # it is"))
    assert mention_pairs(document, view_of(document).ends) == []


def test_sizes_by_hand() -> None:
    document = Document(text="a b c d. " * 20, source="x")  # five tokens each
    chunks, view = chunks_at(document, [9, 90]), view_of(document)  # 5, 45 and 50 tokens
    assert SizeComplianceMetric(least=6, most=45).score(chunks, view) == pytest.approx(1 / 3)
    assert SizeComplianceMetric(least=5, most=50).score(chunks, view) == 1.0
    assert SizeComplianceMetric().score(chunks, view) == pytest.approx(2 / 3)  # 31 to 254, from the limit of the view


@pytest.mark.parametrize(
    ("metric", "given"),
    [
        (SizeComplianceMetric, {"least": 9, "most": 3}),
        (DocumentCoherenceMetric, {"window_tokens": 0}),
        (BlockIntegrityMetric, {"tolerance": -1}),
        (ReferencesCompletenessMetric, {"pairs": ((5, 3),)}),
    ],
)
def test_wrong_parameters_are_named(metric: Any, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        metric(**given)
