"""Questions that are answered together: each answer is that of its question alone, and what they share is read once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from rag.answer import Answer, Generation  # noqa: E402
from rag.errors import ConfigError, MissingError, RagError, UsageError  # noqa: E402
from rag.generators import _batch  # noqa: E402
from rag.generators._batch import LEAST, write_together  # noqa: E402
from rag.generators._decode import STEP  # noqa: E402
from rag.generators.local import LocalGenerator  # noqa: E402
from rag.index import Index  # noqa: E402
from rag.pipeline import Pipeline  # noqa: E402
from rag.prompt import NOT_FOUND  # noqa: E402
from tests.contracts.test_generator import QUESTION, WHOLE, Library, ask, context  # noqa: E402
from tests.unit.test_generators_local import tiny_llama  # noqa: E402
from tests.unit.test_generators_reuse import FILES, WHEN, WHO, pipeline  # noqa: E402
from tests.unit.test_generators_speculate import gpt2  # noqa: E402, F401

FOG = "What is struck in the fog for ships, and was the light kept in 1871?"
QUESTIONS = (QUESTION, "What does soup cost?", "Which rooms may be booked, and for how much a night?", QUESTION)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(rows, tokens) of every pass through the tiny model."""
    from transformers.models.llama.modeling_llama import LlamaModel

    noted: list[tuple[int, int]] = []
    forward = LlamaModel.forward

    def spy(self: Any, input_ids: Any = None, **named: Any) -> Any:
        noted.append(tuple(input_ids.shape))
        return forward(self, input_ids, **named)

    monkeypatch.setattr(LlamaModel, "forward", spy)
    return noted


def generator(folder: Path, **given: Any) -> LocalGenerator:
    return LocalGenerator(**{"model": str(folder), "dtype": "float32", "max_new_tokens": 10, **given})


def many(ours: LocalGenerator, contexts: Any) -> list[Any]:
    return ours.generate_many(contexts, Library())  # type: ignore[arg-type]


def content(made: Generation) -> Any:
    """All of an answer but its accounts."""
    assert isinstance(made, Generation)
    same = (made.text, made.citations, made.sentences, made.supported, made.prompt, made.notes.get("written"))
    return (*same, made.stats.prompt_tokens, made.stats.new_tokens)


@pytest.mark.parametrize(
    "given", [{}, {"temperature": 1.0, "seed": 5}, {"stop": ("e", "zz")}, {"pool_bytes": 0}], ids=str
)
def test_every_answer_is_that_of_its_question_alone(folder: Path, given: Any) -> None:
    contexts = [context(question, *WHOLE) for question in QUESTIONS]
    contexts[1:1] = [context("Nothing?"), context("When is noon?", *WHOLE[:1]), context("What is said?", WHOLE[1])]
    made = many(generator(folder, **given), contexts)
    assert [content(one) for one in made] == [content(ask(generator(folder, **given), one)) for one in contexts]
    assert made[1].text == NOT_FOUND
    assert [one.stats.policy for one in made].count("batch") >= 4
    assert len({content(one)[5] for one in made}) > 3, "the tiny model says several things"


def test_what_is_shared_is_computed_once_and_counted(folder: Path, passes: list[tuple[int, int]]) -> None:
    ours = generator(folder, speculate="none")
    made = many(ours, [context(question, *WHOLE) for question in QUESTIONS])
    lengths = [one.stats.prompt_tokens for one in made]
    shared = made[0].notes["batch"]["shared"]
    assert all(one.notes["batch"] == {"questions": 4, "shared": shared} for one in made)
    prompts = [one.prompt.text.encode() for one in made]
    assert shared >= len(made[0].prompt.text.encode()) - len(made[0].prompt.segments[-1].text.encode())
    assert all(prompt[:shared] == prompts[0][:shared] for prompt in prompts)
    steps = [STEP] * (shared // STEP) + ([shared % STEP] if shared % STEP else [])
    assert passes[: len(steps) + 1] == [*((1, step) for step in steps), (4, max(lengths) - shared)]
    assert all(rows > 1 or tokens == 1 for rows, tokens in passes[len(steps) :])
    assert sorted(one.stats.reused_tokens for one in made) == [0, shared, shared, shared]
    for one in made:
        assert one.stats.policy == one.notes["reuse"] == "batch"
        assert one.stats.reused_tokens + one.stats.computed_tokens == one.stats.prompt_tokens
        assert sum(row["reused"] for row in one.notes["segments"]) == one.stats.reused_tokens
        assert 0 < one.stats.ttft_seconds <= one.stats.total_seconds
    again = many(ours, [context(question, *WHOLE) for question in QUESTIONS])
    assert sorted(one.stats.reused_tokens for one in again)[0] == (shared - 1) // STEP * STEP  # kept from before


@pytest.mark.parametrize(("rows", "tokens"), [(2, 1 << 20), (16, 2 * 120), (16, 1)])
def test_lots_are_bounded(
    folder: Path, passes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, rows: int, tokens: int
) -> None:
    monkeypatch.setattr(_batch, "ROWS", rows)
    monkeypatch.setattr(_batch, "TOKENS", tokens)
    contexts = [context(question, *WHOLE) for question in QUESTIONS]
    ours = generator(folder)
    made = many(ours, contexts)
    assert max(one for one, _ in passes) <= rows
    assert all(one == 1 or one * (width + ours.max_new_tokens) <= tokens for one, width in passes if width > 1)
    assert any(one > 1 for one, _ in passes) == (tokens > 1)
    monkeypatch.undo()
    assert [content(one) for one in made] == [content(ask(generator(folder), one)) for one in contexts]


def test_a_question_that_fails_does_not_lose_the_others(folder: Path) -> None:
    long = context("why? " * 900, *WHOLE)
    contexts = [context(QUESTIONS[0], *WHOLE), long, context(QUESTIONS[1], *WHOLE)]
    first, failed, last = many(generator(folder), contexts)
    assert isinstance(failed, RagError)
    assert "reads 4096 in all" in str(failed)
    assert [content(first), content(last)] == [content(ask(generator(folder), contexts[at])) for at in (0, 2)]
    assert first.stats.policy == last.stats.policy == "batch"


def test_batches_only_where_the_answers_stay_the_same(folder: Path, gpt2: Path) -> None:  # noqa: F811
    told = {
        "auto": generator(folder).batches,
        "none": generator(folder, batch="none").batches,
        "bfloat16": generator(folder, dtype="bfloat16").batches,
        "bfloat16, shared": generator(folder, dtype="bfloat16", batch="shared").batches,
        "chunk": generator(folder, reuse="chunk").batches,
        "no reuse": generator(folder, reuse="none").batches,
        "audit": generator(folder, audit=True).batches,
        "learned positions": generator(gpt2).batches,
    }
    assert [name for name, batches in told.items() if batches] == ["auto", "bfloat16, shared"]
    contexts = [context(question, *WHOLE) for question in QUESTIONS[:2]]
    for ours in (generator(folder, batch="none"), generator(gpt2)):
        assert all(one.stats.policy in ("prefix", "none") for one in many(ours, contexts))
    for wrong in ({"batch": "all"}, {"batch": "shared", "reuse": "chunk"}, {"ram_bytes": -1}):
        with pytest.raises(ConfigError, match="local: "):
            LocalGenerator(**wrong)


def test_prompts_that_share_little_are_left_out(folder: Path) -> None:
    decoder = generator(folder)._decoder
    common = [(7 * at) % 250 for at in range(LEAST)]
    cases: list[tuple[int, int, list[int]]] = [
        (LEAST, 1, [0, 2, 3]), (LEAST - 1, 1, []), (LEAST, LEAST, [0, 2, 3]), (LEAST, LEAST + 1, [0, 2]),
    ]  # fmt: skip
    for shared, own, expected in cases:
        ends = [1, 2], [3], [4] * own
        prompts = [[*common[:shared], *end] for end in ends]
        prompts.insert(1, [9, 9])
        rows = write_together(decoder, prompts, most=2, temperature=0.0, seed=0)
        assert sorted(row.number for row in rows) == expected


# ------------------------------------------------------------------ the pipeline


@pytest.fixture
def index(folder: Path, tmp_path: Path) -> Path:
    files = tmp_path / "files"
    files.mkdir()
    for name, text in FILES.items():
        (files / name).write_text(text, encoding="utf-8")
    line(folder).index(files, tmp_path / "index").close()
    return tmp_path / "index"


def line(folder: Path, **given: Any) -> Pipeline:
    return pipeline(folder, reuse="prefix", piece_order="stable", **given)


def run_of(answer: Answer | RagError) -> Any:
    """The run without its id, accounts and times."""
    assert isinstance(answer, Answer)
    told = answer.to_dict()
    left = {key: value for key, value in told.items() if key not in ("run_id", "stats", "trace")}
    notes = [
        {key: value for key, value in stage["notes"].items() if stage["stage"] != "generate" or key == "written"}
        for stage in told["trace"]
    ]
    return json.loads(json.dumps([left, notes, [stage["stage"] for stage in told["trace"]]]))


def test_ask_many_is_ask_for_each(folder: Path, index: Path) -> None:
    questions = [WHO, WHEN, FOG, WHO]
    alone = [line(folder).ask(question, index) for question in questions]
    together = list(line(folder).ask_many(questions, index))
    assert [run_of(one) for one in together] == [run_of(one) for one in alone]
    assert all(one.stats.policy == "batch" for one in together if isinstance(one, Answer))
    with Index.open(index) as opened:
        kept = list(reversed(opened.store.runs(8)))
    assert [run["question"] for run in kept] == questions * 2
    assert [run["run_id"] for run in kept[4:]] == [one.run_id for one in together if isinstance(one, Answer)]
    for ours, theirs in zip(kept[4:], kept[:4], strict=True):
        facts = [
            {key: run[key] for key in run if key not in ("run_id", "stats", "trace", "at")} for run in (ours, theirs)
        ]
        assert facts[0] == facts[1]
    small = list(line(folder).ask_many(questions, index, at_once=3))
    assert [run_of(one) for one in small] == [run_of(one) for one in alone]
    assert [one.stats.policy for one in small if isinstance(one, Answer)] == ["batch"] * 3 + ["prefix"]


@pytest.mark.parametrize("given", [{}, {"batch": "none"}], ids=str)
def test_an_error_stands_in_the_place_of_its_answer(folder: Path, index: Path, given: Any) -> None:
    first, empty, long, last = line(folder, **given).ask_many([WHO, " ", "light " * 900, WHEN], index)
    assert isinstance(empty, UsageError)
    assert isinstance(long, RagError)
    assert "reads 4096 in all" in str(long)
    assert [run_of(first), run_of(last)] == [run_of(line(folder).ask(question, index)) for question in (WHO, WHEN)]


def test_what_every_question_would_meet_is_raised(folder: Path, index: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        list(line(folder).ask_many([WHO, WHEN], index, where={"no such field": 1}))
    with pytest.raises(MissingError):
        list(line(tmp_path / "no model").ask_many([WHO, WHEN], index))
    with pytest.raises(UsageError, match="at_once"):
        list(line(folder).ask_many([WHO], index, at_once=0))


def test_so_is_what_the_generator_says_of_every_question(
    folder: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = LocalGenerator.generate_many
    found: list[Any] = [RagError("this one"), ConfigError("every one")]
    monkeypatch.setattr(LocalGenerator, "generate_many", lambda *given: [*write(*given)[:1], *found])
    answers = line(folder).ask_many([WHO, WHEN, FOG], index)
    assert run_of(next(answers)) == run_of(line(folder).ask(WHO, index))
    assert next(answers) is found[0]
    with pytest.raises(ConfigError, match="every one"):
        next(answers)


def test_other_generators_answer_one_by_one_as_they_are_asked(folder: Path, index: Path) -> None:
    plain = Pipeline(line(folder).config.merged({"generator": "extractive"}, where="test"))
    drawn: list[str] = []

    def questions() -> Iterator[str]:
        for question in (WHO, "", WHEN):
            drawn.append(question)
            yield question

    answers = plain.ask_many(questions(), index)
    assert run_of(next(answers)) == run_of(plain.ask(WHO, index))
    assert drawn == [WHO]
    assert isinstance(next(answers), UsageError)
    assert run_of(next(answers)) == run_of(plain.ask(WHEN, index))


def test_queries_on_the_command_line(folder: Path, index: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from rag.cli.main import app

    config, queries = tmp_path / "rag.yaml", tmp_path / "q.jsonl"
    config.write_text(line(folder).describe(), encoding="utf-8")
    rows = [("a", WHO), ("b", ""), ("c", WHEN)]
    queries.write_text("\n".join(json.dumps({"query_id": key, "text": text}) for key, text in rows), encoding="utf-8")
    for more in ([], ["--flow", "naive"]):
        given = ["ask", "--queries", str(queries), "--index", str(index), "--config", str(config), *more]
        result = CliRunner().invoke(app, given)
        assert result.exit_code == 4, result.exception
        told = [json.loads(row) for row in result.stdout.splitlines()]
        assert [row["query_id"] for row in told] == ["a", "b", "c"]
        assert told[1] == {"query_id": "b", "question": "", "error": told[1]["error"]}
        assert "empty" in told[1]["error"]
        assert [row["stats"]["policy"] for row in told[::2]] == (["prefix"] * 2 if more else ["batch"] * 2)


@pytest.mark.models
def test_batches_with_smollm2(index: Path) -> None:
    questions = [WHO, WHEN, FOG]
    alone = [line(Path(""), model="", max_new_tokens=12).ask(question, index) for question in questions]
    together = list(line(Path(""), model="", max_new_tokens=12).ask_many(questions, index))
    assert [run_of(one) for one in together] == [run_of(one) for one in alone]
    assert {one.stats.policy for one in together if isinstance(one, Answer)} == {"batch"}
