"""The bubble of sentences against a plain reference, and laws of both objectives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError
from rag.spans.choice import boosted
from rag.spans.features import NAMES, Words, pool_of, question_words, stems_of
from rag.spans.units import units_of
from rag.text import assemble
from rag.tokens import WordCounter
from rag.types import Block, Bubble, Chunk, Document, Hit, Span
from retrievers.selectors.bubble import BubbleSelector
from tests.corpora import MemoryCorpus, topic_corpus

COUNTER = WordCounter()
EMBEDDER = HashingEmbedder(buckets=256)
QUESTION = "Which parasite harms the hive in winter?"


class CharacterCounter(WordCounter):
    """Sees every seam; `seen` counts what it was given."""

    additive = False

    def __init__(self) -> None:
        super().__init__()
        self.name, self.seen = "characters", 0

    def count(self, text: str) -> int:
        self.seen += len(text)
        return len(text)


class CountingEmbedder(HashingEmbedder):
    """Notes the texts of every call."""

    def __init__(self) -> None:
        super().__init__(buckets=64)
        object.__setattr__(self, "calls", [])

    def embed(self, texts: Sequence[str]) -> Any:
        self.calls.append(list(texts))  # type: ignore[attr-defined]
        return super().embed(texts)


def whole(document: Document) -> Chunk:
    return Chunk.cut(document, 0, len(document.text), counter=COUNTER, chunker="whole")


def hits_of(chunks: Sequence[Chunk]) -> list[Hit]:
    return [Hit(chunk=c, score=1.0 / at, rank=at, retriever="test") for at, c in enumerate(chunks, start=1)]


def corpus_of(directory: Path, documents: Sequence[Document], embedder: Any = EMBEDDER) -> MemoryCorpus:
    return MemoryCorpus(directory, documents, [whole(d) for d in documents], embedder=embedder)


def windows(document: Document, size: int, step: int) -> list[Chunk]:
    last = max(1, len(document.text) - size + step)
    edges = [(at, min(at + size, len(document.text))) for at in range(0, last, step)]
    return [Chunk.cut(document, a, b, counter=COUNTER, chunker="window") for a, b in edges]


def places(bubble: Bubble) -> list[tuple[str, int]]:
    return [
        (hit.chunk.doc_id, at)
        for hit, spans in zip(bubble.hits, bubble.spans, strict=True)
        for span in spans
        for at in range(span.start, span.end)
    ]


def replayed(bubble: Bubble, chunks: Sequence[Chunk]) -> set[tuple[str, int]]:
    by_id = {chunk.id: chunk for chunk in chunks}
    taken = [d for d in bubble.decisions if not d.action.startswith("skip-")]
    spans = [(by_id[d.chunk_id], d.span or by_id[d.chunk_id].span) for d in taken]
    return {(chunk.doc_id, at) for chunk, span in spans for at in range(span.start, span.end)}


def made(**options: Any) -> BubbleSelector:
    return BubbleSelector(**{"counter": COUNTER, "embedder": EMBEDDER, **options})


def reference(selector: BubbleSelector, hits: Sequence[Hit], corpus: MemoryCorpus) -> list[Span]:
    """All gains anew in every step, all counts on the assembled text; ends where the first does not fit."""
    units = units_of(hits, corpus, selector.unit_chars)
    pool = pool_of(QUESTION, units, corpus, selector.embedder, selector.weights, selector.pool, stems=selector.stems)
    own = pool.parts @ list(selector.weights) + selector.nearby * pool.nearby
    values = boosted(own, units, pool, selector.kappa)
    chosen: list[int] = []
    while len(chosen) < len(values):
        gains = {
            at: round(values[at] - selector.lam * max((pool.similarity[at][o] for o in chosen), default=0.0), 6)
            for at in range(len(values))
            if at not in chosen
        }
        chosen.append(min(gains, key=lambda at: (-gains[at], at)))
    return [units.units[pool.numbers[at]].span for at in chosen]


def test_choices_are_those_of_the_plain_greedy(tmp_path: Path) -> None:
    corpus = topic_corpus(tmp_path, EMBEDDER)
    hits = hits_of(corpus.chunks(range(0, len(corpus), 2)))
    selector = made(budget=100_000)
    bubble = selector.select(QUESTION, hits, corpus)
    taken = [decision.span for decision in bubble.decisions if decision.action == "take"]
    assert taken == reference(selector, hits, corpus)
    assert len(taken) > 5


def test_neighbours_lend_kappa_of_the_better_one(tmp_path: Path) -> None:
    import numpy as np

    document = Document(text="One is here. Two is there. Three is far.", source="a.md")
    corpus = corpus_of(tmp_path, [document], None)
    units = units_of(hits_of([whole(document)]), corpus, 600)
    pool = pool_of("one", units, corpus, None, (1, 1, 1, 1, 1, 1), 10)
    assert boosted(np.array([1.0, 4.0, 2.0]), units, pool, 0.5).tolist() == [3.0, 5.0, 4.0]


def test_words_of_hits_are_those_of_their_units(tmp_path: Path) -> None:
    text = "The ice melts in spring. Ice, ice and water! A mill stands on the river and waits for the ice. " * 4
    documents = [Document(text=text, source="a.md"), Document(text=text, source="b.md")]
    chunks = [chunk for document in documents for chunk in windows(document, 80, 80)]
    units = units_of(hits_of(chunks), MemoryCorpus(tmp_path, documents, chunks), 600)
    assert units.copies
    terms = ["ice", "melts"]
    found = Words(terms, [unit.text for unit in units.units]).of_hits(units)
    plain = Words(terms, [hit.chunk.text for hit in units.hits])
    assert found.counts.tolist() == plain.counts.tolist()
    assert found.lengths.tolist() == plain.lengths.tolist()


def test_bm25_by_hand() -> None:
    """Two texts of 2 words: idf ln(1 + 1.5/1.5) for a word in one, tf part 1; 2 of the same word: 2 * 2.5 / 3.5."""
    words = Words(["ice"], ["ice melts", "fire burns"])
    assert words.idf() == pytest.approx([0.693147], abs=1e-6)
    assert words.bm25(words.idf()).tolist() == [1.0, 0.0]
    assert Words(["ice"], ["ice ice", "ice melts"]).bm25(words.idf()) == pytest.approx([1.0, 0.7], abs=1e-9)
    assert question_words("What is the ICE?") == ["ice"]
    assert question_words("What is it?") == ["what", "is", "it"]


def test_stems_are_those_of_porter() -> None:
    """Examples of Porter (1980), words of other scripts, and words that a tokenizer of SQL could part."""
    words = ["caresses", "ponies", "hopping", "relational", "vileness", "naïve", "snake_case", "蜂", "हिन्दी", "ice"]
    stems = stems_of(words)
    assert list(stems.values())[:5] == ["caress", "poni", "hop", "relat", "vile"]
    assert [stems[word] for word in ("snake_case", "蜂", "ice")] == ["snake_cas", "蜂", "ic"]
    assert len(set(stems.values())) == len(words)
    assert stems_of([]) == {}


def test_words_meet_by_their_stems() -> None:
    """Two terms of one stem are one column, so that a question that says a word twice does not count it twice."""
    texts = ["He criticized the reviewers.", "A criticism in a review of the game.", "Ice melts."]
    stemmed = Words(["critics", "criticisms", "ice", "icy"], texts, stems=True)
    assert stemmed.counts.tolist() == [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert stemmed.bags == Words((), texts).bags
    assert Words(["ice"], texts, stems=True).counts.tolist() == Words(["ice"], texts).counts.tolist()
    assert Words([], texts, stems=True).counts.shape == (3, 0)


def test_words_of_the_question_count_from_near(tmp_path: Path) -> None:
    """.8, .6, .4, .2 for each sentence further on, to both sides, none from beyond or from another document."""
    text = ["Tea is warm. "] * 6 + ["Ice is cold. "] + ["Tea is warm. "] * 5
    documents = [Document(text="".join(text), source="a.md"), Document(text="Tea was warm.", source="b.md")]
    corpus = corpus_of(tmp_path, documents, None)
    units = units_of(hits_of(corpus.chunks(range(2))), corpus, 600)
    pool = pool_of("ice", units, corpus, None, (1.0,) * 6, 99)
    assert pool.nearby.tolist() == pytest.approx([0, 0, 0.2, 0.4, 0.6, 0.8, 1, 0.8, 0.6, 0.4, 0.2, 0, 0], abs=1e-6)


def test_the_sentence_beside_says_what_it_is_about(tmp_path: Path) -> None:
    text = "Varroa came. It rages in winter. " + "Tea is drunk. " * 6 + "It rages in winter. "
    corpus = corpus_of(tmp_path, [Document(text=text, source="a.md")], None)
    hits = hits_of(corpus.chunks([0]))
    for nearby, more in ((0.0, False), (1.5, True)):
        bubble = made(embedder=None, kappa=0.0, nearby=nearby).select("varroa in winter", hits, corpus)
        of = {decision.span.start: decision.relevance for decision in bubble.decisions if decision.span}
        assert (of[text.index("It")] > of[text.rindex("It")]) == more


@pytest.mark.parametrize("objective", ["span", "paper"])
def test_three_copies_are_paid_for_once(tmp_path: Path, objective: Any) -> None:
    text = "Varroa is a parasite. It harms the hive in winter. Bees cluster for warmth. Honey feeds them."
    documents = [Document(text=text, source=f"{name}.md") for name in "abc"]
    corpus = corpus_of(tmp_path, documents)
    hits = hits_of(corpus.chunks(range(3)))
    once = made(objective=objective).select(QUESTION, hits[:1], corpus)
    thrice = made(objective=objective).select(QUESTION, hits, corpus)
    assert thrice.texts == once.texts == (text,)
    assert thrice.token_count == once.token_count


def test_overlapping_windows_are_paid_for_once(tmp_path: Path) -> None:
    text = " ".join(f"Fact {n} is about parasite number {n} of the hive." for n in range(12))
    document = Document(text=text, source="a.md")
    chunks = windows(document, 150, 50)
    corpus = MemoryCorpus(tmp_path, [document], chunks, embedder=EMBEDDER)
    bubble = made(budget=10_000).select(QUESTION, hits_of(chunks), corpus)
    assert len(places(bubble)) == len(set(places(bubble))) == len(text)


def test_same_sentence_in_another_document_once(tmp_path: Path) -> None:
    shared = "Varroa is a parasite of the hive."
    documents = [Document(text=f"{shared} {own}", source=f"{own}.md") for own in ("Bees fly.", "Wasps sting.")]
    corpus = corpus_of(tmp_path, documents)
    bubble = made().select(QUESTION, hits_of(corpus.chunks(range(2))), corpus)
    assert assemble(bubble.texts).count(shared) == 1
    [twin] = [d for d in bubble.decisions if d.action == "skip-duplicate"]
    assert twin.chunk_id == corpus.chunks([1])[0].id
    assert corpus.chunks([0])[0].id in twin.reason


def test_a_budget_smaller_than_any_unit_gives_nothing(tmp_path: Path) -> None:
    corpus = topic_corpus(tmp_path, EMBEDDER)
    bubble = made(budget=1).select(QUESTION, hits_of(corpus.chunks(range(9))), corpus)
    assert bubble.hits == ()
    assert bubble.token_count == 0
    assert {d.action for d in bubble.decisions} == {"skip-budget"}


def test_smaller_units_fill_what_is_left(tmp_path: Path) -> None:
    """The best sentence does not fit; a shorter one does and may stand in for it."""
    text = "The parasite varroa harms the hive in winter and in spring and in summer. The hive hums."
    corpus = corpus_of(tmp_path, [Document(text=text, source="a.md")])
    hits = hits_of(corpus.chunks([0]))
    assert made(budget=8).select(QUESTION, hits, corpus).texts == ("The hive hums.",)
    assert made(budget=15).select(QUESTION, hits, corpus).texts[0].startswith("The parasite")


def test_what_stands_in_for_a_unit_is_no_longer_than_it(tmp_path: Path) -> None:
    """Few tokens, many characters: taken in place of the best unit it would be lost again at the larger budget."""
    long = "Extraordinarilyinterdenominational counterrevolutionariness."
    corpus = corpus_of(tmp_path, [Document(text="Ice is on a b c d ox. " + long, source="a.md")])
    hits = hits_of(corpus.chunks([0]))
    sizes = [len(places(made(budget=budget).select("ice", hits, corpus))) for budget in (4, 9, 12)]
    assert sizes == [0, 22, 22 + len(long)]


def test_a_window_is_the_mean_of_three_weighted_by_words(tmp_path: Path) -> None:
    import numpy as np

    text = ["Parasites harm hives. ", "Winter is cold and very long. ", "Tea is drunk. ", "Bees sleep."]
    corpus = corpus_of(tmp_path, [Document(text="".join(text), source="a.md")])
    units = units_of(hits_of(corpus.chunks([0])), corpus, 600)
    pool = pool_of(QUESTION, units, corpus, EMBEDDER, (1.0,) * 6, 10)
    vectors, asked = EMBEDDER.embed(text), EMBEDDER.embed_question(QUESTION)
    means = [3 * vectors[0] + 6 * vectors[1], 3 * vectors[0] + 6 * vectors[1] + 3 * vectors[2]]
    expected = [float(mean @ asked / np.linalg.norm(mean)) for mean in means]
    assert pool.parts[:2, NAMES.index("window")].tolist() == pytest.approx(expected, abs=1e-5)


def test_every_unit_has_its_scores(tmp_path: Path) -> None:
    corpus = topic_corpus(tmp_path, EMBEDDER)
    hits = hits_of(corpus.chunks(range(12)))
    bubble = made(budget=40).select(QUESTION, hits, corpus)
    assert len(bubble.decisions) == 12
    assert all(set(d.parts) == {*NAMES, "nearby"} for d in bubble.decisions)
    first = bubble.decisions[0]
    assert first.gain == first.relevance == max(d.relevance for d in bubble.decisions)


def test_what_is_outside_of_the_pool_is_on_the_ledger(tmp_path: Path) -> None:
    corpus = topic_corpus(tmp_path, EMBEDDER)
    bubble = made(pool=4).select(QUESTION, hits_of(corpus.chunks(range(10))), corpus)
    assert [d.action for d in bubble.decisions].count("skip-rank") == 6
    assert len({d.chunk_id for d in bubble.decisions}) == 10


def test_texts_are_embedded_once_and_only_those_of_the_pool(tmp_path: Path) -> None:
    corpus = topic_corpus(tmp_path, HashingEmbedder(buckets=64))
    embedder = CountingEmbedder()
    made(pool=5, embedder=embedder).select(QUESTION, hits_of(corpus.chunks(range(20))), corpus)
    [asked], texts = embedder.calls  # type: ignore[attr-defined]
    assert asked == QUESTION
    assert len(texts) == len(set(texts)) == 5


def test_without_an_embedder_words_decide(tmp_path: Path) -> None:
    corpus = topic_corpus(tmp_path, None)
    bubble = made(embedder=None, budget=30).select(QUESTION, hits_of(corpus.chunks(range(20))), corpus)
    assert "parasite" in assemble(bubble.texts)
    assert all(d.parts[name] == 0.0 for d in bubble.decisions for name in ("sentence", "chunk", "window"))


def test_counting_stays_near_the_size_of_the_pool(tmp_path: Path) -> None:
    """120 chunks of one sentence: with the whole text counted at every step it would be many times the pool."""
    text = [f"Item {n} of the hive holds {n % 7} frames with parasite traces." for n in range(120)]
    documents = [Document(text=one, source=f"{at}.md") for at, one in enumerate(text)]
    corpus, counter = corpus_of(tmp_path, documents), CharacterCounter()
    made(counter=counter, budget=4000).select(QUESTION, hits_of(corpus.chunks(range(120))), corpus)
    assert counter.seen < sum(map(len, text)) + 12 * 4000


def test_closure_brings_what_a_reference_leans_on(tmp_path: Path) -> None:
    text = "# Pests\nVarroa came in 1977. It harms the parasite hive in winter. Tea is drunk at five."
    blocks = (Block(span=Span(0, 8), kind="heading", level=1),)
    document = Document(text=text, source="a.md", blocks=blocks)
    corpus = corpus_of(tmp_path, [document])
    hits = hits_of(corpus.chunks([0]))
    plain = made(budget=15, kappa=0.0).select("harms winter", hits, corpus)
    closed = made(budget=15, kappa=0.0, closure=True).select("harms winter", hits, corpus)
    assert closed.texts[0] == text[: text.index("Tea")]  # 2 + 5 + 8 tokens
    assert [d.action for d in closed.decisions][:3] == ["take", "expand", "expand"]
    assert "expand" not in {d.action for d in plain.decisions}


def test_source_cap_binds_one_document(tmp_path: Path) -> None:
    documents = [
        Document(text="A parasite harms. The hive dies in winter. A parasite eats the hive.", source="loud.md"),
        Document(text="Tea is drunk at five.", source="other.md"),
    ]
    corpus = corpus_of(tmp_path, documents)
    bubble = made(source_cap=10).select(QUESTION, hits_of(corpus.chunks(range(2))), corpus)
    text = dict(zip((h.chunk.doc_id for h in bubble.hits), bubble.texts, strict=True))
    assert 0 < COUNTER.count(text[documents[0].id]) <= 10
    assert text[documents[1].id] == documents[1].text
    assert "skip-source" in {d.action for d in bubble.decisions}


def test_overlap_gate_drops_said_words(tmp_path: Path) -> None:
    documents = [
        Document(text="The parasite harms the hive.", source="a.md"),
        Document(text="The hive harms the parasite.", source="b.md"),
        Document(text="Tea is drunk at five.", source="c.md"),
    ]
    corpus = corpus_of(tmp_path, documents)
    bubble = made(overlap=0.9).select(QUESTION, hits_of(corpus.chunks(range(3))), corpus)
    assert [d.action for d in bubble.decisions].count("skip-redundant") == 1
    assert len(bubble.hits) == 2


def test_priors_come_from_source_and_metadata(tmp_path: Path) -> None:
    documents = [
        Document(text="The parasite harms the hive.", source="web/a.md"),
        Document(text="Tea is drunk at five.", source="book/b.md", meta={"tier": "gold"}),
    ]
    corpus = corpus_of(tmp_path, documents)
    hits = hits_of(corpus.chunks(range(2)))
    assert made(budget=6).select(QUESTION, hits, corpus).texts == (documents[0].text,)
    for priors in ({"source=book/*": 9.0}, {"meta.tier=gold": 9.0}):
        assert made(budget=6, priors=priors).select(QUESTION, hits, corpus).texts == (documents[1].text,)


@settings(max_examples=60)
@given(data=st.data())
def test_budget_holds_and_the_ledger_replays(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    words = st.sampled_from(["hive", "parasite", "winter", "It", "bee.", "5,000", "x.", "\n", "蜂巢。", "- a"])
    texts = data.draw(st.lists(st.lists(words, min_size=1, max_size=30).map(" ".join), min_size=1, max_size=4))
    documents = [Document(text=text, source=f"{at}.md") for at, text in enumerate(texts) if text.strip()]
    size, step = data.draw(st.sampled_from([(20, 20), (30, 10), (7, 3), (500, 500)]))
    chunks = [chunk for document in documents for chunk in windows(document, size, step)]
    counter = data.draw(st.sampled_from([COUNTER, CharacterCounter()]))
    corpus = MemoryCorpus(tmp_path_factory.getbasetemp(), documents, chunks, embedder=EMBEDDER)
    objective = data.draw(st.sampled_from(["span", "paper"]))
    settings_of: list[dict[str, Any]] = [{}, {"closure": True}, {"overlap": 0.6}, {"source_cap": 9}, {"pool": 3}]
    options = data.draw(st.sampled_from(settings_of))
    selector = made(counter=counter, objective=objective, budget=data.draw(st.integers(1, 120)), **options)
    bubble = selector.select(QUESTION, hits_of(chunks), corpus)
    corpus.close()
    assert bubble.token_count == counter.count(assemble(bubble.texts)) <= selector.budget
    assert replayed(bubble, chunks) == set(places(bubble))
    assert {chunk.id for chunk in chunks} == {d.chunk_id for d in bubble.decisions}
    if objective == "span":
        assert len(places(bubble)) == len(set(places(bubble)))


def test_a_counter_whose_seams_cost_much_is_trimmed_to_the_budget(tmp_path: Path) -> None:
    """Every line break costs 40: counts of units say nothing about the assembled text."""

    class SeamCounter(CharacterCounter):
        def count(self, text: str) -> int:
            return len(text.split()) + 40 * text.strip("\n").count("\n\n")

    corpus = topic_corpus(tmp_path, EMBEDDER)
    hits = hits_of(corpus.chunks(range(len(corpus))))
    for budget in (30, 100, 300):
        bubble = made(counter=SeamCounter(), budget=budget).select(QUESTION, hits, corpus)
        assert 0 < bubble.token_count == SeamCounter().count(assemble(bubble.texts)) <= budget
        assert replayed(bubble, [hit.chunk for hit in hits]) == set(places(bubble))


@pytest.mark.parametrize("objective", ["span", "paper"])
@pytest.mark.parametrize("closure", [False, True])
def test_a_larger_budget_covers_no_less(tmp_path: Path, objective: Any, closure: bool) -> None:
    corpus = topic_corpus(tmp_path, EMBEDDER)
    hits = hits_of(corpus.chunks(range(len(corpus))))
    sizes = [
        len(places(made(objective=objective, budget=b, closure=closure).select(QUESTION, hits, corpus)))
        for b in range(1, 300, 3)
    ]
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"budget": 0},
        {"pool": 0},
        {"unit_chars": 5},
        {"objective": "x"},
        {"score": "x"},
        {"weights": (1.0,)},
        {"lam": -1.0},
        {"nearby": -1.0},
        {"kappa": 2.0},
        {"delta": 0.0},
        {"section_share": 0.0},
        {"priors": {"title=x": 1.0}},
        {"source_cap": -1},
    ],
)
def test_ranges(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        made(**wrong)
