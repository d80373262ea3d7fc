"""What each compressor measures, and the helpers beside them: recovery, merged token vectors, the classifier."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressors._merging import merged_tokens, token_states
from compressors._recovery import by_rank, recovered
from compressors._scope import Group, ratios, sizes_left
from compressors.classifier_prune import ClassifierPruneCompressor
from compressors.comi import ComiCompressor
from compressors.long_token_prune import LongTokenPruneCompressor
from compressors.scope import ScopeCompressor
from compressors.selective_context import SelectiveContextCompressor
from compressors.token_prune import TokenPruneCompressor
from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError, MissingError
from rag.spans.pieces import context_of
from rag.spans.protected import survival
from rag.text import assemble
from rag.tokens import WordCounter
from rag.types import Bubble, Span
from tests.corpora import MemoryCorpus
from tests.fakes import FakeGenerator, FakeModel, WithinEmbedder, tiny_classifier
from tests.unit.test_compressors_laws import FACTS, fact_bubble

COUNTER = WordCounter()
EMBEDDER = HashingEmbedder(buckets=256)
PLAIN = (
    "a rare zebra walked over the plain field today. "
    "the field was the field of the plain old farm here. "
    "nothing like that zebra had ever been seen before."
)


def telling(nats: Any) -> FakeGenerator:
    return FakeGenerator(model=FakeModel(nats))


def words_left(context: Any) -> list[str]:
    return [word.strip(".") for piece in context.pieces for word in piece.text.split()]


@pytest.fixture
def plain(tmp_path: Path) -> Any:
    bubble, corpus = fact_bubble(tmp_path, (PLAIN, PLAIN.upper().lower().replace("zebra", "horse")))
    yield bubble, corpus
    corpus.close()


def test_token_prune_keeps_what_surprises(plain: tuple[Bubble, MemoryCorpus]) -> None:
    generator = telling(lambda token, before: 8.0 if token.strip() in ("rare", "zebra", "farm", "seen") else 1.0)
    context = TokenPruneCompressor(target=8, counter=COUNTER, generator=generator).compress(*plain)
    assert {"rare", "zebra", "farm", "seen"} <= set(words_left(context))


def test_token_prune_reads_each_block_after_what_is_left(plain: tuple[Bubble, MemoryCorpus]) -> None:
    generator = telling(lambda token, before: float(len(token)))
    compressor = TokenPruneCompressor(rate=0.5, counter=COUNTER, generator=generator, iterative_size=10)
    compressor.compress(*plain)
    blocks = [(text, after) for text, after in generator.model.scored if text not in (PLAIN, plain[0].texts[1])]
    assert "".join(text for text, _ in blocks).replace("\n\n", "") == "".join(plain[0].texts)
    assert blocks[0][1] == ""
    sizes = [len(after) for _, after in blocks]
    assert sizes == sorted(sizes)
    assert all(0 < len(after) < len(PLAIN) * 2 * 0.75 for _, after in blocks[1:])


def test_token_prune_drops_chunks_that_surprise_least_first(tmp_path: Path) -> None:
    bubble, corpus = fact_bubble(tmp_path, ("dull words " * 30, "keen notes " * 30, "dull things " * 30))
    generator = telling(lambda token, before: 5.0 if token.strip() in ("keen", "notes") else 1.0)
    compressor = TokenPruneCompressor(target=30, context_budget=0, counter=COUNTER, generator=generator)
    context = compressor.compress(bubble, corpus)
    assert [piece.chunk_id for piece in context.pieces] == [bubble.hits[1].chunk.id]
    assert [line.action for line in context.decisions if line.parts] == ["weigh", "drop", "drop"]
    filtered = dataclasses.replace(compressor, sentence_level=True, context_budget=1000, token_budget_ratio=1.0)
    assert [piece.chunk_id for piece in filtered.compress(bubble, corpus).pieces] == [bubble.hits[1].chunk.id]
    corpus.close()


def test_long_token_prune_keeps_what_the_question_makes_likelier(plain: tuple[Bubble, MemoryCorpus]) -> None:
    """The model expects the zebra once it has read of stripes: the words near the question's are those that gain."""

    class Primed(FakeModel):
        def losses(self, text: str, *, after: str = "") -> Any:
            made = FakeModel.losses(self, text, after=after)
            asked = after.startswith("Which stripes?")
            hot = "zebra" in after and "stripes" in text  # the question, after the first chunk
            return [(a, b, 1.0 if hot or (asked and text[a:b].strip() == "zebra") else 5.0) for a, b, _ in made or []]

    bubble = dataclasses.replace(plain[0], question="Which stripes?")
    generator = FakeGenerator(model=Primed(lambda *_: 0.0))
    context = LongTokenPruneCompressor(target=4, counter=COUNTER, generator=generator).compress(bubble, plain[1])
    assert words_left(context) == ["zebra", "nothing", "like", "zebra"], "the negation comes with its sentence"
    first = bubble.hits[0].chunk.id
    assert by_rank(context)[0] == first
    assert next(line.chunk_id for line in context.decisions if line.parts) == first


def test_selective_context_units(plain: tuple[Bubble, MemoryCorpus]) -> None:
    generator = telling(lambda token, before: 8.0 if token.strip() in ("zebra", "farm") else 1.0)
    made: dict[str, list[str]] = {}
    for unit in ("sentence", "phrase", "token"):
        one = SelectiveContextCompressor(target=12, unit=unit, counter=COUNTER, generator=generator)  # type: ignore[arg-type]
        made[unit] = words_left(one.compress(*plain))
    assert " ".join(made["sentence"]) in PLAIN.replace(".", "")
    assert "zebra" in made["phrase"]
    assert "rare" in made["phrase"], "a phrase stays whole"
    assert made["token"].count("zebra") == 2


def test_comi_takes_the_relevant_and_not_twice_the_same(tmp_path: Path) -> None:
    texts = ("The hotel night costs ninety. Bees fly far away.", "The hotel night costs ninety! Towers stand still.")
    bubble, corpus = fact_bubble(tmp_path, texts)
    bubble = dataclasses.replace(bubble, question="What does a hotel night cost?")
    compressor = ComiCompressor(target=15, beta=1.0, group_tokens=1, counter=COUNTER, embedder=EMBEDDER)
    text = assemble(piece.text for piece in compressor.compress(bubble, corpus).pieces)
    assert text.count("hotel") == 1
    greedy = dataclasses.replace(compressor, beta=0.0).compress(bubble, corpus)
    assert assemble(piece.text for piece in greedy.pieces).count("hotel") == 2
    with pytest.raises(ConfigError, match=r"comi.*embedder"):
        dataclasses.replace(compressor, embedder=None).compress(bubble, corpus)
    corpus.close()


# recovery


def test_recovery_is_exact(tmp_path: Path) -> None:
    bubble, corpus = fact_bubble(tmp_path, ("The deck of steel failed at noon because of wind.",))
    kept = [(Span(0, 9), Span(18, 25), Span(33, 36), Span(41, 49))]
    context = context_of(bubble, kept, COUNTER, "test")
    assert context.pieces[0].text == "The deck failed bec" + "of wind."
    found = recovered(context, "It says: the Deck failed, surely")
    assert [(one.answer, one.source) for one in found] == [(Span(9, 17), Span(0, 8))]
    context = context_of(bubble, [(Span(0, 9), Span(18, 25))], COUNTER, "test")
    [one] = recovered(context, "deck failed")
    assert one.source == Span(4, 24)
    assert bubble.hits[0].chunk.text[4:24] == "deck of steel failed"
    assert [r.source for r in recovered(context, "deck failed", max_gap=3)] == [Span(4, 8), Span(18, 24)]
    assert recovered(context, "(.*") == recovered(context, "") == []
    corpus.close()


# merged token vectors


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("tokens", [1, 5, 16, 17, 200])
def test_merged_vectors_tile_the_tokens(aligned: bool, tokens: int) -> None:
    rng = np.random.default_rng(7)
    vectors = rng.normal(size=(tokens, 24)).astype(np.float32)
    spans = [Span(3 * at, 3 * at + 2) for at in range(tokens)]
    slots, places = merged_tokens(vectors, spans, vectors[0], rate=8, aligned=aligned)
    assert len(slots) == len(places) <= -(-tokens // 8)
    assert not aligned or len(slots) == -(-tokens // 8)
    assert (places[0].start, places[-1].end) == (0, spans[-1].end)
    assert all(right.start == left.end + 1 for left, right in pairwise(places))
    low, high = vectors.min(axis=0), vectors.max(axis=0)
    assert ((slots >= low - 1e-5) & (slots <= high + 1e-5)).all(), "means with weights that add up to 1"


def test_what_the_question_asks_for_is_merged_least() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(160, 64)).astype(np.float32)
    question = rng.normal(size=64).astype(np.float32)
    vectors[80:96] += 2 * question
    spans = [Span(at, at + 1) for at in range(160)]

    def groups_there(**options: Any) -> int:
        _, places = merged_tokens(vectors, spans, question, rate=16, **options)
        return sum(place.overlaps(Span(80, 96)) for place in places)

    assert groups_there() > groups_there(temperature=1.0)
    assert groups_there(temperature=0.2) > 3, "more of the ten groups stand for the sixteen tokens asked for"


def test_token_vectors_have_places() -> None:
    text = "One rare zebra, and two."
    vectors, spans = token_states(WithinEmbedder(), text)
    assert [text[one.start : one.end] for one in spans] == ["One", "rare", "zebra", ",", "and", "two", "."]
    assert vectors.shape[0] == 7
    with pytest.raises(ConfigError, match="minilm"):
        token_states(EMBEDDER, text)
    with pytest.raises(ConfigError, match="rate"):
        merged_tokens(vectors, spans, vectors[0], rate=0)


# scope


def test_scope_shortens_the_least_relevant_first_and_only_as_needed() -> None:
    groups = [Group(place=0, parts=(at,), tokens=100, passed=at == 2) for at in range(3)]
    share = ratios(groups, [0.9, 0.1, 0.2], 0.5, 0.1, 1.0)
    assert 1.0 > share[0] > share[2] > share[1] > 0.1
    assert sum(share) == pytest.approx(1.5)
    assert ratios(groups, [0.9, 0.1, 0.2], 0.5, 0.1, 0.05) == [1.0, 0.1, 0.1]
    assert sizes_left(groups, [0.9, 0.1, 0.2], share, 290) == [100, 90, 100]
    assert sizes_left(groups, [0.9, 0.1, 0.2], share, 220) == [86, 34, 100]
    assert sizes_left(groups, [0.9, 0.1, 0.2], [0.5, 0.1, 0.1], 100) == [50, 0, 0]


@pytest.mark.parametrize("answer", ["keeps", "loses", "rambles"])
def test_a_rewritten_piece_is_marked_and_loses_no_keyword(answer: str, tmp_path: Path) -> None:
    text = (
        "The deck, as everybody in the whole wide county knew and told all the others, failed in 1940. "
        "It was a morning that was calm at first and then not calm at all, as the people who saw it said."
    )
    bubble, corpus = fact_bubble(tmp_path, (text, FACTS))

    class Writer(FakeModel):
        def complete(self, prompt: str, *, max_tokens: int, stop: Any = ()) -> str:
            self.prompts.append(prompt)
            listed = prompt.partition("as they are: ")[2].partition(".\n\nQuestion")[0]
            return {"keeps": listed, "loses": "Nothing.", "rambles": listed + " and so on" * 200}[answer]

    generator = FakeGenerator(model=Writer(None))
    scope = ScopeCompressor(
        rate=0.6, mode="rewrite", keywords=1, max_tokens=60, least_ratio=0.5, counter=COUNTER, generator=generator
    )
    context = scope.compress(bubble, corpus)
    plain = dataclasses.replace(scope, mode="extract", generator=None).compress(bubble, corpus)
    assert generator.model.prompts  # type: ignore[attr-defined]
    assert context.token_count <= int(0.6 * context.source_token_count)
    if answer == "keeps":
        [changed] = [piece for piece in context.pieces if not piece.verbatim]
        assert changed.text not in assemble(bubble.texts)
        assert [line.action for line in context.decisions].count("rewrite") >= 2
    else:
        assert context == plain
    told = survival(bubble, context, corpus)
    assert all(inside == kept for inside, kept, _ in told.values()), told
    assert all(piece.verbatim for piece in plain.pieces)
    corpus.close()


def test_scope_needs_no_embedder(plain: tuple[Bubble, MemoryCorpus]) -> None:
    context = ScopeCompressor(target=12, counter=COUNTER).compress(
        dataclasses.replace(plain[0], question="the old farm"), plain[1]
    )
    assert "farm" in words_left(context)


# classifier


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_classifier(tmp_path_factory.mktemp("tiny"))


def test_the_classifier_decides(tiny: Path, tmp_path: Path) -> None:
    bubble, corpus = fact_bubble(tmp_path, (FACTS, PLAIN, PLAIN.replace("zebra", "horse")))
    made: list[str] = []
    for label in (0, 1):
        compressor = ClassifierPruneCompressor(
            model=str(tiny), rate=0.5, keep_label=label, window=64, counter=COUNTER, context_level=False
        )
        context = compressor.compress(bubble, corpus)
        goal = int(0.5 * context.source_token_count)
        assert 0.97 * goal <= context.token_count <= goal
        assert context == compressor.compress(bubble, corpus)
        assert all(inside == kept for inside, kept, _ in survival(bubble, context, corpus).values())
        assert all(0 <= line.relevance <= 1 for line in context.decisions)
        made.append(assemble(piece.text for piece in context.pieces))
    assert made[0] != made[1]
    forced = dataclasses.replace(compressor, target=8, force_tokens=("field",)).compress(bubble, corpus)
    assert words_left(forced).count("field") >= 4
    corpus.close()


def test_the_classifier_drops_chunks_first(tiny: Path, tmp_path: Path) -> None:
    bubble, corpus = fact_bubble(
        tmp_path, [PLAIN.replace("zebra", one) for one in ("horse", "mouse", "sheep", "goose")]
    )
    compressor = ClassifierPruneCompressor(model=str(tiny), target=8, window=64, counter=COUNTER)
    actions = [line.action for line in compressor.compress(bubble, corpus).decisions if line.parts]
    assert actions == ["weigh", "weigh", "weigh", "drop"], "over (rate + 1) / 2 of the tokens"
    corpus.close()


def test_a_classifier_that_is_not_there_is_refused(tiny: Path, plain: tuple[Bubble, MemoryCorpus]) -> None:
    for options, error, match in (
        ({"model": ""}, ConfigError, "model is empty"),
        ({"model": "nobody/nothing-here"}, MissingError, "hf download nobody/nothing-here"),
        ({"model": str(tiny), "keep_label": 2}, ConfigError, "keep_label must be below 2"),
        ({"model": str(tiny), "window": 510}, ConfigError, "window must be <= 64"),
    ):
        with pytest.raises(error, match=match):
            ClassifierPruneCompressor(counter=COUNTER, **options).compress(*plain)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="force_tokens"):
        ClassifierPruneCompressor(counter=COUNTER, force_tokens=("",))


# a real model


@pytest.mark.models
@pytest.mark.parametrize("plugin", [TokenPruneCompressor, LongTokenPruneCompressor])
def test_the_bundled_model_prunes(plugin: Any, tmp_path: Path) -> None:
    from rag.generators.local import LocalGenerator

    generator = LocalGenerator()
    bubble, corpus = fact_bubble(tmp_path, (FACTS, PLAIN))
    bubble = dataclasses.replace(bubble, question="Why did the Tacoma Narrows deck fail in 1940?")
    for rate in (0.5, 0.75):
        context = plugin(rate=rate, counter=generator.counter, generator=generator).compress(bubble, corpus)
        goal = int(rate * context.source_token_count)
        assert 0.97 * goal <= context.token_count <= goal
        told = survival(bubble, context, corpus)
        assert all(inside == kept for inside, kept, _ in told.values()), told
        assert any(line.action == "part" for line in context.decisions)
    if plugin is LongTokenPruneCompressor:
        assert by_rank(context)[0] == bubble.hits[0].chunk.id
    corpus.close()
