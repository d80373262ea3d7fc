"""provence: the vote, the target, one pass for reranking and compressing, and what decides without the encoder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from compressors.provence import ProvenceCompressor
from rag.errors import ConfigError, MissingError
from rag.spans import keep_head
from rag.spans.keep_features import BUCKETS, STATES, WORDS, Asked
from rag.spans.keep_head import SHA256, KeepWeights, Reading, read, read_weights
from rag.spans.keep_input import QUESTION_TOKENS, joint_states
from rag.spans.protected import survival
from rag.types import Bubble
from retrievers.provence_rerank import ProvenceRerankRetriever
from tests.corpora import MemoryCorpus
from tests.fakes import WithinEmbedder
from tests.unit.test_compressors_sentence_prune import BRIDGE, COUNTER, EMBEDDER, OVENS, bubble_of
from tests.unit.test_retrievers_rerank import Fixed

QUESTION = "When did the bridge over the Tay fall?"
CARD = "keep_head.md"


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[Bubble, MemoryCorpus]]:
    bubble, corpus = bubble_of(tmp_path, [BRIDGE, OVENS], QUESTION)
    yield bubble, corpus
    corpus.close()


def random_weights(embedder: WithinEmbedder) -> KeepWeights:
    """A head for an embedder that is none of a model."""
    rng = np.random.default_rng(3)

    def head(width: int) -> dict[str, np.ndarray]:
        facts = 12 if width == WORDS else 16
        sizes = {"a": (width, 8), "a0": (8,), "b": (8, 8), "b0": (8,), "c": (8,), "c0": (), "mean": (width,)}
        sizes |= {"scale": (width,), "r": (facts, 4), "r0": (4,), "s": (4,), "s0": ()}
        sizes |= {"passage_mean": (facts,), "passage_scale": (facts,)}
        return {name: np.asarray(rng.normal(size=size), dtype=np.float32) for name, size in sizes.items()}

    rarity = np.ones(BUCKETS, dtype=np.float32)
    return KeepWeights(embedder.fingerprint, rarity, head(WORDS + STATES), head(WORDS))


@pytest.fixture
def within(monkeypatch: pytest.MonkeyPatch) -> WithinEmbedder:
    """An embedder that a head was made for; `within` notes each piece that it reads."""
    embedder = WithinEmbedder()
    made = random_weights(embedder)
    monkeypatch.setattr(keep_head, "weights", lambda: made)
    return embedder


def prune(embedder: object = EMBEDDER, **options: object) -> ProvenceCompressor:
    return ProvenceCompressor(counter=COUNTER, embedder=embedder, **options)  # type: ignore[arg-type]


def test_the_shipped_weights_are_the_ones_on_the_card() -> None:
    data = resources.files("rag.spans").joinpath("keep_head.npz").read_bytes()
    assert len(data) < 1_500_000
    read_weights(data, SHA256)
    assert SHA256 in resources.files("rag.spans").joinpath(CARD).read_text(encoding="utf-8")
    with pytest.raises(MissingError, match="SHA-256"):
        read_weights(data + b"\0", SHA256)


def test_the_vote_decides_without_a_target(both: tuple[Bubble, MemoryCorpus], monkeypatch: pytest.MonkeyPatch) -> None:
    bubble, corpus = both

    def told(question: str, passages: list[str], embedder: object) -> list[Reading]:
        """Of "The bridge over the Tay" three words of eleven are kept, of "Sheep were sold there" all but three."""
        found = []
        for passage in passages:
            places = [word.span() for word in re.finditer(r"\S+", passage)]
            words = [passage[start:end] for start, end in places]
            keep = [0.9 if word in ("bridge", "Tay", "fell", "Sheep", "were", "sold", "there", "for") else 0.01
                    for word in words]  # fmt: skip
            found.append(Reading(places, np.array(keep, dtype=np.float32), 0.5, False))
        return found

    monkeypatch.setattr("compressors.provence.read", told)
    context = prune(threshold=0.5).compress(bubble, corpus)
    assert [piece.text for piece in context.pieces] == ["Sheep were sold there for 12 shillings. "]
    kept = [one for one in context.decisions if one.action == "keep"]
    assert [one.reason for one in kept] == ["more than half of its tokens are kept"]
    assert len(context.decisions) == 10, "a line for each sentence"
    # a target is filled by mean probability, and the vote does not count
    filled = prune(threshold=0.5, target=20, repair=False).compress(bubble, corpus)
    assert "The bridge over the Tay fell" in filled.pieces[0].text
    assert filled.token_count == 20
    nothing = prune(threshold=0.95).compress(bubble, corpus)
    assert nothing.pieces == ()
    assert nothing.token_count == 0


def test_reranking_and_compressing_cost_one_pass_a_pair(
    both: tuple[Bubble, MemoryCorpus], within: WithinEmbedder
) -> None:
    bubble, corpus = both
    searcher = ProvenceRerankRetriever(retriever=Fixed([0.9, 0.8]), embedder=within).open(corpus)
    hits = searcher.search(QUESTION, 2)
    texts = {text for text, _, _ in within.within}
    assert len(texts) == 2, "one text for each of two pairs"
    read_before = len(within.within)
    context = prune(within, rate=0.4).compress(replace(bubble, hits=tuple(hits)), corpus)
    assert context.pieces
    assert len(within.within) == read_before, "compressing what was reranked reads nothing"
    assert len(searcher.search(QUESTION, 2)) == 2
    assert len(within.within) == read_before
    prune(within, rate=0.4).compress(replace(bubble, question="Who bakes the bread?"), corpus)
    assert len(within.within) > read_before, "another question is another pass"


def test_readings_are_forgotten_oldest_first(within: WithinEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep_head, "KEPT_PAIRS", 2)
    for text in ("One mill.", "Two mills.", "Three mills."):
        read(QUESTION, [text], within)
    before = len(within.within)
    read(QUESTION, ["Three mills.", "Two mills."], within)
    assert len(within.within) == before
    read(QUESTION, ["One mill."], within)
    assert len(within.within) > before


def test_a_pair_reads_the_same_in_any_company(within: WithinEmbedder) -> None:
    together = read(QUESTION, [BRIDGE, OVENS, BRIDGE], within)
    fresh = WithinEmbedder()
    alone = read(QUESTION, [OVENS], fresh)[0]
    assert np.array_equal(together[1].keep, alone.keep)
    assert together[1].score == alone.score
    assert together[0] is together[2]


@pytest.mark.parametrize("words", [1, 300, 900])
def test_long_passages_are_read_in_windows_that_all_have_the_question(words: int) -> None:
    passage = " ".join(f"word{at}" for at in range(words))
    embedder = WithinEmbedder()
    joint = joint_states("Who? " * 200, [passage], embedder)[0]
    assert list(joint.places) == COUNTER.offsets(passage)
    assert joint.states.shape == (words, embedder.dimension)
    assert len(joint.asked) <= QUESTION_TOKENS
    for text, start, end in embedder.within:
        assert text.startswith(" Who?")
        assert 0 < start < end < len(text), "no token at an edge, which carries the special tokens"
    assert {passage[a:b] for a, b in joint.places} <= {text[a:b] for text, a, b in embedder.within}


def test_without_its_encoder_words_decide_and_the_ledger_says_so(both: tuple[Bubble, MemoryCorpus]) -> None:
    bubble, corpus = both
    for embedder in (EMBEDDER, None):
        context = prune(embedder, target=14).compress(bubble, corpus)
        assert [piece.text.strip() for piece in context.pieces] == [
            "The bridge over the Tay fell in 1879 during a storm."
        ]
        assert all("by words alone" in one.reason for one in context.decisions)
    assert all(found == whole for found, whole, _ in survival(bubble, context, corpus).values())


def test_words_of_the_question_meet_by_stem() -> None:
    asked = Asked("Which bridges collapsed?", np.ones(BUCKETS, dtype=np.float32))
    asked.learn(["The bridge was collapsing; a breeze came."])
    assert asked.column("bridge") >= 0
    assert asked.column("collapsing") >= 0
    assert asked.column("breeze") == asked.column("the") == -1
    assert float(asked.shares.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("encoder", [True, False])
def test_odd_texts_are_read(within: WithinEmbedder, encoder: bool) -> None:
    embedder = within if encoder else None
    for passage in ("", " \n ", "?!", "ﬃ İstanbul 東京", "a" * 5000):
        reading = read(QUESTION, [passage], embedder)[0]
        assert len(reading.places) == len(reading.keep)
        assert np.isfinite(reading.keep).all()
        assert 0.0 <= reading.score <= 1.0
    assert read("", [BRIDGE], embedder)[0].words is not encoder


def test_options_are_checked() -> None:
    for options in ({"threshold": 0.0}, {"threshold": 1.0}, {"rate": 0.0}, {"target": 0}, {"unit_chars": 1}):
        with pytest.raises(ConfigError, match="provence"):
            prune(**options)


@pytest.mark.models
def test_the_bundled_head_finds_the_sentence(both: tuple[Bubble, MemoryCorpus]) -> None:
    from rag.embedders.minilm import MinilmEmbedder

    bubble, corpus = both
    minilm = MinilmEmbedder()
    context = prune(minilm, target=14).compress(bubble, corpus)
    assert [piece.text.strip() for piece in context.pieces] == ["The bridge over the Tay fell in 1879 during a storm."]
    assert not any("words alone" in one.reason for one in context.decisions)
    scores = [one.score for one in read(QUESTION, [BRIDGE, OVENS], minilm)]
    assert scores[0] > scores[1] + 0.1
