"""How `local` writes: with drafts the text without them, cut at the stops, and with every family of models."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from rag.engine import EngineError  # noqa: E402
from rag.errors import ConfigError, MissingError  # noqa: E402
from rag.generators import _decode  # noqa: E402
from rag.generators._decode import STEP  # noqa: E402
from rag.generators._writing import begun, write  # noqa: E402
from rag.generators.local import LocalGenerator  # noqa: E402
from tests.contracts.test_generator import QUESTION, WHOLE, ask, context  # noqa: E402
from tests.unit.test_generators_local import tiny_llama  # noqa: E402

QUESTIONS = (QUESTION, "What does soup cost?", "Which rooms may be booked, and for how much a night?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family with learned positions."""
    from transformers import GPT2Config, GPT2LMHeadModel

    made = tiny_llama(tmp_path_factory.mktemp("gpt2"))
    torch.manual_seed(5)
    config = GPT2Config(
        vocab_size=257, n_positions=4096, n_embd=32, n_layer=2, n_head=2, eos_token_id=256, bos_token_id=256,
        initializer_range=0.2,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(str(made))
    return made


def generator(folder: Path, **given: Any) -> LocalGenerator:
    return LocalGenerator(**{"model": str(folder), "dtype": "float32", "max_new_tokens": 40, **given})


def written(made: Any) -> Any:
    return made.notes.get("written", made.text)


@pytest.mark.parametrize("reuse", ["none", "prefix", "chunk"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_drafts_change_no_text(folder: Path, reuse: Any, temperature: float) -> None:
    drafted = accepted = 0
    for seed, question in enumerate(QUESTIONS):
        options = {"reuse": reuse, "temperature": temperature, "seed": seed}
        plain, ours = (
            ask(generator(folder, speculate=how, **options), context(question, *WHOLE)) for how in ("none", "lookup")
        )
        assert written(ours) == written(plain)
        assert ours.stats.new_tokens == plain.stats.new_tokens
        assert (plain.stats.drafted_tokens, plain.stats.accepted_tokens) == (0, 0)
        drafted += ours.stats.drafted_tokens
        accepted += ours.stats.accepted_tokens
    assert drafted >= accepted
    assert drafted > 0
    assert accepted > 0 or temperature  # what is drawn from a random model seldom repeats


def test_auto_guesses_only_where_nothing_is_rounded_otherwise(folder: Path) -> None:
    told = {
        (dtype, how): generator(folder, dtype=dtype, speculate=how)._draft([1, 2]) is not None
        for dtype in ("float32", "bfloat16")
        for how in ("auto", "none", "lookup")
    }
    assert {key for key, drafts in told.items() if drafts} == {
        ("float32", "auto"), ("float32", "lookup"), ("bfloat16", "lookup")
    }  # fmt: skip


def test_a_model_that_the_engine_refuses_is_read_without_drafts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ask(generator(folder, speculate="none"), context(QUESTION, *WHOLE))

    def refuse(model: Any) -> Any:
        raise EngineError("layers without keys")

    monkeypatch.setattr(_decode, "EngineModel", refuse)
    made = ask(generator(folder, speculate="lookup", audit=True), context(QUESTION, *WHOLE))
    assert written(made) == written(expected)
    assert (made.stats.drafted_tokens, made.stats.policy, made.stats.measured_deviation) == (0, "none", None)


def test_learned_positions_reuse_exact_prefixes_and_drafts(gpt2: Path) -> None:
    plain = generator(gpt2, reuse="none", speculate="none")
    ours = generator(gpt2, reuse="prefix", speculate="lookup")
    for number, question in enumerate(QUESTIONS):
        expected, made = (ask(one, context(question, *WHOLE)) for one in (plain, ours))
        assert written(made) == written(expected)
        assert (made.stats.reused_tokens >= 2 * STEP) == (number > 0)
    with pytest.raises(ConfigError, match=r"gpt2.*Set reuse: prefix or none"):
        ask(generator(gpt2, reuse="chunk"), context(QUESTION, *WHOLE))


# ------------------------------------------------------------------ stops


def letters(text: str) -> Generator[int]:
    yield from map(ord, text)


def as_text(ids: Any) -> str:
    return "".join(map(chr, ids))


@settings(max_examples=300)
@given(st.text("ab \n", max_size=25), st.lists(st.text("ab \n", min_size=1, max_size=4), max_size=3))
def test_a_text_ends_before_its_first_stop_and_no_part_of_one_is_heard(raw: str, stop: list[str]) -> None:
    heard: list[str] = []
    made = write(letters(raw), as_text, stop=stop, on_text=heard.append)
    quiet = write(letters(raw), as_text, stop=stop)
    ends = [end for end in range(len(raw) + 1) if any(raw[:end].endswith(one) for one in stop)]
    cut = raw[: min(raw.find(one) for one in stop if one in raw[: ends[0]])] if ends else raw
    assert "".join(heard) == begun(cut)
    assert made.text == quiet.text == begun(cut).rstrip()
    assert len(made.tokens) == len(quiet.tokens) == (ends[0] if ends else len(raw))  # nothing is made after a stop


def test_half_of_a_character_waits() -> None:
    heard: list[str] = []
    data = "süß".encode()
    made = write((byte for byte in data), lambda ids: bytes(ids).decode("utf-8", "replace"), on_text=heard.append)
    assert heard == ["S", "ü", "ß"]
    assert made.text == "Süß"


def test_stops_cut_the_answer_of_a_model(folder: Path) -> None:
    whole = str(written(ask(generator(folder), context(QUESTION, *WHOLE))))
    stop = whole[7:10]
    heard: list[str] = []
    for how in ("none", "lookup"):
        heard.clear()
        made = ask(
            generator(folder, stop=(stop, "never there"), speculate=how), context(QUESTION, *WHOLE), heard.append
        )
        assert written(made) == whole[: whole.lower().index(stop.lower())].rstrip()
        assert "".join(heard).rstrip() == written(made)
        assert made.stats.new_tokens < 40
    with pytest.raises(ConfigError, match="local: stop"):
        generator(folder, stop=("",))
    with pytest.raises(ConfigError, match="local: speculate"):
        generator(folder, speculate="eagle")


# ------------------------------------------------------------------ SmolLM2


@pytest.mark.models
def test_drafts_change_no_text_of_smollm2() -> None:
    try:
        drafted = 0
        for question in (QUESTION, "Copy the text of document 1 word for word."):
            plain, ours = (
                ask(LocalGenerator(dtype="float32", speculate=how, max_new_tokens=24), context(question, *WHOLE))
                for how in ("none", "lookup")
            )  # fmt: skip
            assert written(ours) == written(plain)
            drafted += ours.stats.accepted_tokens
        assert drafted > 0
    except MissingError as error:
        pytest.skip(str(error))
