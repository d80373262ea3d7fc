"""perplexity and margin: their rules against plain references, what they cost, and what happens without a model."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunkers._likelihood import Likelihood, losses_by_part
from chunkers.margin import MarginChunker
from chunkers.perplexity import PerplexityChunker, _minima
from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError
from rag.generators.extractive import ExtractiveGenerator
from rag.registry import build
from rag.tokens import WordCounter
from rag.types import Document
from tests.contracts.test_chunker import check_laws
from tests.fakes import FakeGenerator, FakeModel, hashed
from tests.texts import NASTY, plain

COUNTER = WordCounter(limit=254)
WORDS = ("Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Guy", "Hal", "Ida")


def telling(nats: Any) -> FakeGenerator:
    return FakeGenerator(model=FakeModel(nats))


def sentences(levels: list[float]) -> tuple[Document, FakeGenerator]:
    """A document with a sentence of eight words per level, and a model to which each token of it costs that level."""
    names = [f"{chr(65 + at // 26)}{chr(97 + at % 26)}x" for at in range(len(levels))]
    text = " ".join(f"{name} {name} {name} {name} {name} {name} {name} {name}." for name in names)
    known = dict(zip(names, levels, strict=True))

    def nats(token: str, before: str) -> float:
        name = token.strip() if token.strip() in known else re.findall(r"[A-Z][a-z]x", before + token)[-1]
        return known[name]

    return Document(text=text, source="levels"), telling(nats)


def perplexity(generator: FakeGenerator | None, **given: Any) -> PerplexityChunker:
    return PerplexityChunker(counter=COUNTER, generator=generator, **({"min_tokens": 0} | given))


def margin(generator: FakeGenerator | None, **given: Any) -> MarginChunker:
    return MarginChunker(counter=COUNTER, generator=generator, **({"min_tokens": 0} | given))


def plain_minima(values: Sequence[float], threshold: float) -> list[int]:
    """The rule, place by place."""
    found = []
    for at in range(1, len(values) - 1):
        left, here, right = values[at - 1 : at + 2]
        if here < left and here < right:
            if left - here >= threshold or right - here >= threshold:
                found.append(at)
        elif here < left and here == right and left - here >= threshold:
            found.append(at)
    return found


class TestMinima:
    @pytest.mark.parametrize(
        ("values", "threshold", "expected"),
        [
            ([3, 1, 3], 0.0, [1]),
            ([3, 1, 3], 2.0, [1]),
            ([3, 1, 3], 2.1, []),
            ([3, 1, 1.5], 2.0, [1]),  # one side is enough
            ([1, 2, 3], 0.0, []),  # the ends never are
            ([3, 1, 1, 3], 0.0, [1]),  # a plateau: its first place
            ([3, 1, 1, 0], 0.0, [1]),  # even when it falls on: the paper's code looks at one neighbour
            ([2, 1, 1, 9], 1.5, []),  # on a plateau only the left side counts
            ([1, 1, 3, 3], 0.0, []),
            ([2, 2, 2], 0.0, []),
            ([5, 1, 5, 4, 5], 1.5, [1]),
            ([3, 1], 0.0, []),
        ],
    )
    def test_by_hand(self, values: list[float], threshold: float, expected: list[int]) -> None:
        assert list(_minima(np.array(values, dtype=float), threshold)) == expected
        assert plain_minima(values, threshold) == expected

    @given(values=st.lists(st.integers(0, 4), max_size=30), threshold=st.sampled_from([0.0, 1.0, 2.5]))
    def test_equals_the_plain_rule(self, values: list[int], threshold: float) -> None:
        assert list(_minima(np.array(values, dtype=float), threshold)) == plain_minima(values, threshold)


class TestLosses:
    def test_the_space_before_a_word_does_not_move_it_to_the_sentence_before(self) -> None:
        text = "One two. Six."
        losses = [(0, 3, 1.0), (3, 7, 2.0), (7, 8, 4.0), (8, 12, 8.0), (12, 13, 16.0)]  # " Six" begins in part 0
        sums, counts = losses_by_part(text, [9, 13], losses)
        assert (sums.tolist(), counts.tolist()) == ([7.0, 24.0], [3, 2])

    def test_a_token_over_a_boundary_counts_once_where_it_starts(self) -> None:
        sums, counts = losses_by_part("abcdef", [3, 6], [(0, 2, 1.0), (2, 5, 2.0), (5, 6, 4.0)])
        assert (sums.tolist(), counts.tolist()) == ([3.0, 4.0], [2, 1])

    def test_tokens_without_width_and_several_in_one_character(self) -> None:
        losses = [(0, 0, 1.0), (0, 1, 2.0), (0, 1, 4.0), (1, 1, 8.0), (1, 2, 16.0), (2, 2, 32.0)]
        sums, counts = losses_by_part("üx", [1, 2], losses)
        assert (sums.tolist(), counts.tolist()) == ([7.0, 56.0], [3, 3])

    @pytest.mark.parametrize("name", ["mixed", "cjk", "families", "white", "junk"])
    def test_nothing_is_lost(self, name: str) -> None:
        text, model = NASTY[name], FakeModel(hashed)
        losses = model.losses(text) or []
        ends = [*range(7, len(text), 7), len(text)]
        sums, counts = losses_by_part(text, ends, losses)
        assert sums.sum() == pytest.approx(sum(nats for *_, nats in losses))
        assert counts.sum() == len(losses)

    def test_units_and_the_condition(self) -> None:
        asked = Likelihood.of("test", telling(lambda token, before: 2.0 if before.endswith("Z") else 1.0))
        assert asked.mean("ab", after="Z") == 2.0
        assert asked.mean("ab") == 1.0
        assert asked.mean("ab", unit="byte") == 0.5
        assert asked.mean("ü", unit="byte") == 1.0  # two tokens, two bytes
        assert asked.total("ab cd", after="Z") == 3.0
        assert asked.mean("") == 0.0
        assert asked.facts() == {"calls": 6, "characters_scored": 12, "characters_before": 2}

    def test_a_part_in_which_no_token_begins_has_the_value_before_it(self) -> None:
        class Coarse(FakeModel):
            def losses(self, text: str, *, after: str = "") -> list[tuple[int, int, float]]:
                return [(1, 4, 6.0), (4, 5, 3.0)]

        asked = Likelihood("test", "Coarse", Coarse(None))
        assert asked.means("abcde", [1, 2, 3, 5]).tolist() == [0.0, 6.0, 6.0, 3.0]
        assert asked.means("abcde", [1, 2, 3, 5], unit="byte").tolist() == [0.0, 6.0, 6.0, 1.5]


class TestPerplexity:
    def test_cuts_after_the_minima(self) -> None:
        document, generator = sentences([3, 2, 1, 4, 3, 1, 2, 5, 5])
        chunks, record = perplexity(generator, target_tokens=1).decide(document)
        assert record is not None
        assert [place["minimum"] for place in record["places"]] == [at in (2, 5) for at in range(8)]
        assert [place["loss"] for place in record["places"]] == [3, 2, 1, 4, 3, 1, 2, 5]
        assert [chunk.text.split()[0] for chunk in chunks] == ["Aax", "Adx", "Agx"]
        assert json.loads(json.dumps(record))["model"] == "FakeGenerator(name='hashed')"

    def test_theta_drops_shallow_minima(self) -> None:
        levels = [3, 2.8, 3, 1, 3, 2.5, 3]
        counts = [
            len(perplexity(sentences(levels)[1], target_tokens=1, threshold=theta).chunk(sentences(levels)[0]))
            for theta in (0.0, 0.3, 1.0, 2.5)
        ]
        assert counts == [4, 3, 2, 1]

    def test_groups_are_merged_from_left_to_right_up_to_the_target(self) -> None:
        document, generator = sentences([3, 1] * 6)
        tokens = COUNTER.count(document.text) // 12
        sizes = [
            round(chunk.token_count / tokens)
            for chunk in perplexity(generator, target_tokens=4 * tokens).chunk(document)
        ]
        assert sizes == [4, 4, 4]
        sizes = [
            round(chunk.token_count / tokens)
            for chunk in perplexity(generator, target_tokens=5 * tokens).chunk(document)
        ]
        assert sizes == [4, 4, 4]  # five sentences would end at none of the minima

    def test_one_pass_over_the_text(self) -> None:
        generator, document = FakeGenerator(), Document(text=plain(600), source="plain")
        _, record = perplexity(generator).decide(document)
        assert generator.model.scored == [(document.text, "")]
        assert record is not None
        assert (record["calls"], record["characters_scored"]) == (1, len(document.text))
        assert record["boundaries"] > len(record["places"]) == 200

    @pytest.mark.parametrize("text", ["Only one sentence.", "One here. Two here.", " \n"])
    def test_what_has_no_minimum_is_not_asked_about(self, text: str) -> None:
        generator = FakeGenerator()
        assert [chunk.text for chunk in perplexity(generator).chunk(Document(text=text, source="s"))] in ([], [text])
        assert generator.model.scored == []

    @pytest.mark.parametrize("size", [3, 24, 120])
    @pytest.mark.parametrize("text", ["mixed", "junk", "cjk", "families", "white", "crlf"])
    def test_laws_of_the_other_objective(self, text: str, size: int) -> None:
        chunker = perplexity(FakeGenerator(), objective="rise", unit="byte", max_tokens=size, min_tokens=16)
        assert check_laws(chunker, Document(text=NASTY[text], source=text), COUNTER)

    def test_equal_losses_have_no_minima(self) -> None:
        document = Document(text=plain(30), source="plain")
        for objective in ("paper", "rise"):
            _, record = perplexity(telling(lambda *_: 1.0), objective=objective).decide(document)
            assert record is not None
            assert not any(place["minimum"] for place in record["places"])

    def test_a_group_over_the_limit_is_cut_after_its_lowest_loss(self) -> None:
        document, generator = sentences([1, 2, 3, 4, 5, 6])
        tokens = COUNTER.count(document.text) // 6
        chunks = perplexity(generator, max_tokens=5 * tokens, target_tokens=1).chunk(document)
        assert [round(chunk.token_count / tokens) for chunk in chunks] == [1, 5]

    def test_bytes_and_tokens_differ_where_tokens_are_short(self) -> None:
        text = "Long words everywhere here. 日本語の文章です。 Words again stand here. Other words end it."
        by_unit = [
            [
                place["loss"]
                for place in (
                    perplexity(telling(lambda *_: 1.0), unit=unit).decide(Document(text=text, source="s"))[1] or {}
                )["places"]
            ]
            for unit in ("token", "byte")
        ]
        assert set(by_unit[0]) == {1.0}
        assert max(by_unit[1]) == by_unit[1][1] == pytest.approx(1.0, abs=0.05)
        assert by_unit[1][0] < 0.4

    def test_rise_is_the_best_of_all(self) -> None:
        levels = [3.0, 1.0, 2.0, 2.5, 0.5, 4.0, 3.0, 3.5]
        document, generator = sentences(levels)
        tokens = COUNTER.count(document.text) // 8
        chunker = perplexity(
            generator, objective="rise", max_tokens=6 * tokens, target_tokens=3 * tokens, boundary_weight=0.3
        )

        def worth(cuts: list[int]) -> float:
            sizes = [end - start for start, end in pairwise((0, *cuts))]
            if max(sizes) > 6:
                return -math.inf
            gain = sum(levels[cut] - levels[cut - 1] for cut in cuts[:-1]) * 0.3 / float(np.std(levels))
            return gain - sum((size / 3 - 1) ** 2 for size in sizes)

        every = [[*(at + 1 for at in range(7) if number >> at & 1), 8] for number in range(2**7)]
        found = [len(re.findall(r"\.", document.text[: chunk.span.end])) for chunk in chunker.chunk(document)]
        assert worth(found) == pytest.approx(max(map(worth, every)))
        assert worth(found) > worth([3, 6, 8])

    @pytest.mark.parametrize(
        "given",
        [{"threshold": -1.0}, {"unit": "word"}, {"objective": "dp"}, {"target_tokens": 0}, {"target_tokens": 300},
         {"boundary_weight": math.inf}, {"min_tokens": -1}],
    )  # fmt: skip
    def test_parameters_are_checked(self, given: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=next(iter(given))):
            perplexity(None, **given)


def labels(answers: list[float]) -> FakeGenerator:
    """A model whose P(yes) - P(no) are `answers`, prompt by prompt."""
    model = FakeModel(None)

    class Answering(FakeModel):
        def losses(self, text: str, *, after: str = "") -> list[tuple[int, int, float]]:
            self.scored.append((text, after))
            value = answers[len(dict.fromkeys(prompt for _, prompt in self.scored)) - 1]
            chance = (1 + value) / 2 if text == " yes" else (1 - value) / 2
            return [(0, 1, 0.25), (1, len(text), -math.log(chance) - 0.25)]

    return FakeGenerator(model=Answering(model.nats))


def plain_margins(answers: list[float], window: int) -> list[int]:
    """Sentences before which the rule cuts; answer k is about sentence k + 1."""
    cuts, threshold = [], 0.0
    for at, answer in enumerate(answers):
        if answer > threshold:
            cuts.append(at + 1)
        if at + 1 >= window:
            threshold = sum(answers[at + 1 - window : at + 1]) / window
    return cuts


class TestMargin:
    @pytest.mark.parametrize("window", [1, 3, 5])
    def test_the_moving_threshold(self, window: int) -> None:
        answers = [0.1, -0.2, 0.3, 0.0, -0.4, 0.05, 0.5, 0.4, -0.1, 0.2, 0.2, 0.9, -0.9]
        document, _ = sentences([0.0] * 14)
        chunks, record = margin(labels(answers), window=window).decide(document)
        expected = plain_margins(answers, window)
        starts = [document.text[: chunk.span.start].count(".") for chunk in chunks]
        assert starts == [0, *expected]
        assert record is not None
        assert [place["margin"] for place in record["places"]] == pytest.approx(answers)
        assert [at + 1 for at, place in enumerate(record["places"]) if place["cut"]] == expected

    def test_equal_margins_cut_nothing_once_the_window_is_full(self) -> None:
        document, _ = sentences([0.0] * 9)
        assert len(margin(telling(lambda *_: 1.0)).chunk(document)) == 1

    @pytest.mark.parametrize("context", [1, 3])
    def test_one_short_prompt_per_boundary(self, context: int) -> None:
        generator, (document, _) = FakeGenerator(), sentences([0.0] * 20)
        _, record = margin(generator, context_sentences=context).decide(document)
        prompts = [prompt for _, prompt in generator.model.scored]
        assert [label for label, _ in generator.model.scored] == [" yes", " no"] * 19
        assert prompts[0::2] == prompts[1::2]
        sentence = len(document.text) // 20 + 1
        assert max(map(len, prompts)) <= 450 + (context + 1) * sentence
        assert record is not None
        assert (record["calls"], record["characters_scored"]) == (38, 19 * len(" yes no"))
        for at, prompt in enumerate(prompts[0::2], start=1):
            assert f"Second passage: {document.text.split('. ')[at].rstrip('.')}." in prompt

    def test_at_the_limit_a_cut_is_forced_and_nothing_asked(self) -> None:
        document, _ = sentences([0.0] * 9)
        tokens = COUNTER.count(document.text) // 9
        generator = telling(lambda part, before: {" yes": 9.0}.get(part, 0.1))
        chunks, record = margin(generator, max_tokens=3 * tokens).decide(document)
        assert [round(chunk.token_count / tokens) for chunk in chunks] == [3, 3, 3]
        assert record is not None
        assert [place["forced"] for place in record["places"]] == [False, False, True] * 2 + [False] * 2
        assert record["calls"] == 2 * 6

    def test_one_sentence_is_not_asked_about(self) -> None:
        generator = FakeGenerator()
        assert len(margin(generator).chunk(Document(text="Only one sentence.", source="s"))) == 1
        assert generator.model.scored == []

    @pytest.mark.parametrize("given", [{"context_sentences": 0}, {"window": 0}])
    def test_parameters_are_checked(self, given: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=next(iter(given))):
            margin(None, **given)


@pytest.mark.parametrize("name", ["perplexity", "margin"])
class TestWithoutAModel:
    def test_a_model_that_does_not_tell(self, name: str) -> None:
        chunker = build("chunker", name, services={"counter": COUNTER, "generator": telling(None)})
        with pytest.raises(ConfigError, match=rf"{name}.*FakeGenerator.*does not tell.*generator to local"):
            chunker.chunk(Document(text=plain(12), source="plain"))

    def test_a_generator_without_a_model_is_refused_at_once(self, name: str) -> None:
        services = {"counter": COUNTER, "generator": ExtractiveGenerator(embedder=HashingEmbedder())}
        with pytest.raises(ConfigError, match=rf"{name}.*ExtractiveGenerator.*no language model.*generator to local"):
            build("chunker", name, services=services)

    def test_no_generator(self, name: str) -> None:
        chunker = build("chunker", name, services={"counter": COUNTER})
        assert chunker.shaped_by == ""
        with pytest.raises(ConfigError, match=rf"{name}.*no generator.*generator to local"):
            chunker.chunk(Document(text=plain(12), source="plain"))

    def test_the_model_shapes_the_chunks(self, name: str) -> None:
        chunker = build("chunker", name, services={"counter": COUNTER, "generator": FakeGenerator(name="one")})
        assert chunker.shaped_by == "FakeGenerator(name='one')"


TWO_TOPICS = (
    "Sourdough needs a living starter of flour and water. The yeasts in it make the dough rise slowly. A long rest in "
    "the cold gives the crust its taste. Bakers fold the dough instead of kneading it. The loaf is done when it sounds "
    "hollow. Saturn has rings of ice and rock. The gaps between them were found by Cassini in 1675. Small moons keep "
    "the edges of the rings sharp. A spacecraft crossed them many times before it fell into the planet. Its last "
    "pictures show storms near the pole."
)


@pytest.fixture(scope="module")
def bundled() -> Any:
    from rag.generators.local import LocalGenerator

    return LocalGenerator()


@pytest.mark.models
class TestBundledModel:
    @pytest.mark.parametrize("name", ["perplexity", "margin"])
    def test_the_losses_decide(self, name: str, bundled: Any) -> None:
        document = Document(text=TWO_TOPICS, source="topics")
        spec: dict[str, Any] = {"use": name, "min_tokens": 0}
        if name == "perplexity":
            spec["target_tokens"] = 1
        key = "loss" if name == "perplexity" else "margin"
        told = {}
        for generator in (bundled, telling(lambda *_: 1.0)):
            chunker = build("chunker", spec, services={"counter": COUNTER, "generator": generator})
            chunks, record = chunker.decide(document)
            assert "".join(chunk.text for chunk in chunks) == TWO_TOPICS
            assert chunks == chunker.chunk(document)
            told[type(generator).__name__] = (len(chunks), {place[key] for place in record["places"]})
        assert told["FakeGenerator"][0] == 1
        assert len(told["FakeGenerator"][1]) == 1
        assert told["LocalGenerator"][0] > 1
        assert len(told["LocalGenerator"][1]) == 9
