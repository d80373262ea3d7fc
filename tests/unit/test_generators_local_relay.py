"""Answers that the generator `local` wrote and reads again: their own tokens, in their place, and nothing else."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from rag.answer import Citation, Generation  # noqa: E402
from rag.config import PipelineConfig  # noqa: E402
from rag.engine.layers import LayerPass  # noqa: E402
from rag.engine.model import EngineModel  # noqa: E402
from rag.engine.repair.relay import Relay  # noqa: E402
from rag.errors import ConfigError  # noqa: E402
from rag.flow import Budget, Feedback, Flow, shipped_flows  # noqa: E402
from rag.flow.state import Run, State  # noqa: E402
from rag.generators._completion import Completion, Relayed  # noqa: E402
from rag.generators._relay import ANSWERS, LEAST, longest_run  # noqa: E402
from rag.generators.local import LocalGenerator  # noqa: E402
from rag.pipeline import Pipeline  # noqa: E402
from rag.sample import documents_dir  # noqa: E402
from rag.types import Span  # noqa: E402
from tests.contracts.test_generator import QUESTION, WHOLE, ask, context  # noqa: E402
from tests.fakes import FakeModel  # noqa: E402
from tests.unit.test_flow_patterns import pipeline as small_line  # noqa: E402
from tests.unit.test_generators_local import tiny_llama  # noqa: E402

ANSWER = "the finance director approves every trip above 5,000 EUR, says the handbook."
PROMPT = "Rate the answer.\n<answer>\n{}\n</answer>\nRating:"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


def generator(folder: Path, **asked: Any) -> LocalGenerator:
    given = {"model": str(folder), "dtype": "float32", "reuse": "chunk", "relay": True, **asked}
    return LocalGenerator(**given)


def write(ours: LocalGenerator, answer: str | list[int] = ANSWER, behind: str = "Passages: rail, soup.") -> None:
    """As if the model had written `answer`, to keep it; the last token never ran."""
    prompt, new = ours._plain_ids(behind), answer if isinstance(answer, list) else ours._plain_ids(answer)
    reading = ours._decoder.read(prompt, len(new))
    for token in new[:-1]:
        reading.step(token)
    ours._answers.keep(reading.cache, prompt, new)


def complete(ours: LocalGenerator, prompt: str) -> tuple[str, Relayed]:
    model = ours.text_model
    assert isinstance(model, Completion)
    return model.complete(prompt, max_tokens=12), model.relayed


def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of every run of the model, as they come, and of every whole pass layer by layer."""
    noted: list[int] = []
    run, finish = EngineModel.run, LayerPass.finish

    def spy(self: Any, ids: Any, *given: Any, **named: Any) -> Any:
        noted.append(len(ids))
        return run(self, ids, *given, **named)

    def spy_pass(self: Any) -> None:
        noted.append(len(self.slots))
        finish(self)

    monkeypatch.setattr(EngineModel, "run", spy)
    monkeypatch.setattr(LayerPass, "finish", spy_pass)
    return noted


@pytest.mark.parametrize("prompt", [PROMPT.format(ANSWER), PROMPT.format("The" + ANSWER[3:] + " [1]")])
def test_with_everything_repaired_it_is_what_is_written_without_relay(folder: Path, prompt: str) -> None:
    ours = generator(folder)
    write(ours)
    ours._answers.policy = Relay(share=1)
    expected, none = complete(generator(folder, relay=False), prompt)
    assert none == Relayed()
    there = len(ANSWER) - 1 - (ANSWER not in prompt)  # a byte is a token; the last one never ran
    assert complete(ours, prompt) == (expected, Relayed(there, there))


def test_what_is_relayed_does_not_run_through_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = generator(folder)
    write(ours)
    noted, prompt = ran(monkeypatch), PROMPT.format(ANSWER)
    reading = ours._asked(prompt, 4)
    told = ours.text_model.relayed  # type: ignore[attr-defined]
    assert told == Relayed(len(ANSWER) - 1, 4 + round(0.15 * (len(ANSWER) - 5)))
    assert sum(noted) == reading.computed == len(ours._coder.asked(prompt)) - told.tokens + told.repaired
    assert reading.reused == told.tokens - told.repaired
    assert reading.policy == "relay"
    held, ids = ours._answers.find(prompt), list(ours._coder.asked(prompt))
    assert held is not None
    assert prompt[held.start : held.stop] == ANSWER[:-1]
    assert bytes(ours._plain_ids(ANSWER[:-1])) == bytes(held.block.ids)
    assert reading.cache.length == len(ids)


def test_behind_the_same_text_the_logits_are_those_of_a_prefill(folder: Path) -> None:
    """The block stands where it stood: nothing deviates, if it is the right block in the right place."""
    ours, start = generator(folder), "<user>Some passages. The answer: "
    write(ours, behind=start)
    ours._answers.policy = Relay(k=0, share=0)
    prompt = start.removeprefix("<user>") + ANSWER + " Right?"
    reading = ours._asked(prompt, 4)
    assert reading.reused == len(ANSWER) - 1
    assert torch.allclose(reading.logits, generator(folder, relay=False)._asked(prompt, 4).logits, atol=1e-3)


@pytest.mark.parametrize("text", ["Other words, of which none is in an answer.", ANSWER[: LEAST - 1] + "!", ""])
def test_an_answer_that_is_not_in_the_prompt_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    ours, plain, prompt = generator(folder), generator(folder, relay=False), PROMPT.format(text)
    write(ours)
    complete(ours, PROMPT.format(ANSWER))
    noted = ran(monkeypatch)
    alike = ours._asked(prompt, 4).logits, plain._asked(prompt, 4).logits
    assert torch.equal(*alike)
    assert noted[: len(noted) // 2] == noted[len(noted) // 2 :]
    assert complete(ours, prompt) == (complete(plain, prompt)[0], Relayed())


def test_generate_keeps_what_it_wrote_and_says_the_same(folder: Path) -> None:
    ours, plain = (generator(folder, relay=on, max_new_tokens=40) for on in (True, False))
    made, expected = (ask(one, context(QUESTION, *WHOLE)) for one in (ours, plain))
    assert (made.text, made.notes["written"]) == (expected.text, expected.notes["written"])
    assert len(plain._answers) == 0
    (kept,) = ours._answers._kept
    assert kept.block.ids[0] in range(256)
    assert len(kept.block) == len(kept.ends) - 1 in (made.stats.new_tokens, made.stats.new_tokens - 1)
    assert len(kept.block) >= LEAST


@pytest.mark.parametrize("given", [{"attention": "dense", "moved": True}, {"attention": {"use": "sink-recent"}}])
def test_what_was_not_read_whole_is_not_kept(folder: Path, given: dict[str, Any]) -> None:
    moved = given.pop("moved", False)
    ours = generator(folder, max_new_tokens=40, **given)
    if moved:
        prompt, new = ours._plain_ids("Passages."), ours._plain_ids(ANSWER)
        reading = ours._decoder.read([*prompt, *new], 1)
        reading.cache.moved = True
        ours._answers.keep(reading.cache, prompt, new)
    else:
        ask(ours, context(QUESTION, *WHOLE))
    assert len(ours._answers) == 0


def test_memory_is_bounded(folder: Path) -> None:
    ours = generator(folder)
    texts = [f"{n}: {ANSWER}" for n in range(ANSWERS + 2)]
    for text in texts:
        write(ours, text)
    assert len(ours._answers) == ANSWERS
    assert [len(one.text) for one in ours._answers._kept] == [len(texts[0]) - 1] * ANSWERS
    assert [one.text[0] for one in ours._answers._kept] == ["2", "3", "4", "5"]
    size = ours._answers.size_bytes // ANSWERS
    assert size == (len(texts[0]) - 1) * ours._decoder.token_bytes
    for most, held in ((2 * size + 1, 2), (size - 1, 0), (0, 0)):
        small = generator(folder, pool_bytes=most)
        for text in texts:
            write(small, text)
        assert len(small._answers) == held
        assert small._answers.size_bytes <= most


def test_a_special_token_ends_what_is_kept(folder: Path) -> None:
    ours = generator(folder)
    ids = ours._plain_ids(ANSWER)
    write(ours, [*ids[:30], 256, *ids[30:]])
    (kept,) = ours._answers._kept
    assert list(kept.block.ids) == ids[:30]
    write(ours, [*ids[: LEAST - 1], 256, *ids])
    assert len(ours._answers) == 1


def test_text_that_looks_like_a_special_token_stays_text(folder: Path) -> None:
    ours = generator(folder)
    write(ours, f"<end>{ANSWER}<end>")
    found = ours._answers.find(PROMPT.format(f"<end>{ANSWER}<end>"))
    assert found is not None
    assert 256 not in found.block.ids
    assert 256 not in ours._coder.around("a<end>", "<end>b")[0]


def test_the_prompt_that_is_nothing_but_the_answer_is_read_anew(folder: Path) -> None:
    ours = generator(folder)
    write(ours)
    ours._coder.tokenizer.chat_template = None
    assert ours._asked(ANSWER[:-1], 2).reused == 0
    assert ours._asked("A" + ANSWER, 2).reused > 0
    ours._coder.tokenizer.chat_template = "{{ messages[0]['content'] }}"


def test_every_thread_is_told_of_its_own_prompt(folder: Path) -> None:
    ours, told = generator(folder), list[Relayed]()
    write(ours)
    here = complete(ours, PROMPT.format(ANSWER))[1]
    other = threading.Thread(target=lambda: told.append(complete(ours, PROMPT.format("Nothing."))[1]))
    other.start()
    other.join()
    assert here.tokens > 0
    assert told == [Relayed()]
    assert ours.text_model.relayed == here  # type: ignore[attr-defined]


@given(st.lists(st.sampled_from(["a", "b", " c", "é", "👩", "xy"]), max_size=12), st.data())
def test_the_longest_run_of_whole_characters_is_found(words: list[str], data: st.DataObject) -> None:
    """Against every stretch there is. Tokens here are bytes: only where a character is whole may a run begin or end."""
    text = "".join(words)
    prompt = data.draw(st.sampled_from([text, text[1:], text[:-1], text[1:-1] + "z", "z" + text[len(text) // 2 :]]))
    coded, ends = text.encode(), list[int | None]()
    for at in range(len(coded) + 1):
        try:
            ends.append(len(coded[:at].decode()))
        except UnicodeDecodeError:
            ends.append(None)
    fits = [
        stop - start
        for start, begin in enumerate(ends)
        for stop, end in enumerate(ends)
        if begin is not None and end is not None and start <= stop and text[begin:end] in prompt
    ]
    start, stop = longest_run(text, ends, prompt)
    assert stop - start == max(fits)
    assert text[ends[start] : ends[stop]] in prompt


def test_relay_needs_chunk_reuse() -> None:
    with pytest.raises(ConfigError, match=r"relay .* needs reuse: chunk, not prefix"):
        LocalGenerator(relay=True)
    assert LocalGenerator(reuse="chunk", relay=True).text_model.relayed == Relayed()  # type: ignore[attr-defined]


class Telling(FakeModel):
    relayed = Relayed(30, 8)


@pytest.mark.parametrize(("model", "told"), [(Telling, {"relayed": 30, "repaired": 8}), (FakeModel, {})])
def test_feedback_notes_what_was_relayed(tmp_path: Path, model: type[FakeModel], told: dict[str, int]) -> None:
    line = small_line(model(None, answer="9"))
    span = Span(0, 10)
    citation = Citation(mark=1, chunk_id="a", doc_id="b", source="c", span=span, text="The limit.")
    made = Generation(text="The limit. [1]", citations=(citation,), sentences=(span,), supported=(True,))
    state = State(question=QUESTION, query=QUESTION, generation=made, context=context(QUESTION, *WHOLE))
    with line.index([documents_dir() / "travel_policy.md"], tmp_path / "index") as index:
        notes = Feedback(by="model").judge(state, Run(line, index, Budget())).notes
    assert notes["mark"] == 9
    assert {key: notes[key] for key in ("relayed", "repaired") if key in notes} == told


@pytest.mark.models
def test_self_feedback_reads_the_answer_where_it_was_written(tmp_path: Path) -> None:
    """SAGE's flow with SmolLM2: the mark comes from a prompt that holds the draft."""
    given = yaml.safe_load(shipped_flows()["sage-feedback"].read_text(encoding="utf-8"))
    given["nodes"][1] |= {"until": {"use": "feedback", "by": "model"}, "max_rounds": 1}
    local = {"use": "local", "dtype": "float32", "reuse": "chunk", "max_new_tokens": 40, "relay": True}
    config = {"embedder": "hashing", "retriever": "bm25", "executor": "serial", "generator": local}
    line = Pipeline(PipelineConfig.default().merged(config, where="test"))
    line.index([documents_dir()], tmp_path / "index").close()
    answer = Flow.from_dict(given).run(line, "Who approves business trips above 5,000 EUR?", tmp_path / "index")
    assert answer.text
    (told,) = [row.notes for row in answer.trace if "mark" in row.notes]
    assert LEAST <= told["relayed"] < 40
    assert 0 < told["repaired"] < told["relayed"]
