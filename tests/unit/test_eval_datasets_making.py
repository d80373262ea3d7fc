"""`rag eval make`: exact places, filters that drop what they should, sets that `rag eval run` reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from eval.cli import eval_app
from eval.datasets import read_dataset
from eval.datasets.making import Made, _longest_run, make, write_sft, write_spans
from eval.datasets.templates import asked_by_model, asked_by_template
from rag.errors import ConfigError, UsageError
from rag.prompt import SYSTEM
from rag.protocols import TextModel
from tests.unit.test_eval_run import CONFIG

pytest.importorskip("ir_measures")

MILL = (
    "Nearby, the Summer Theatre stood beside the Saxon Garden until the war. "
    "In the town, Anna Berg opened a bakery in 1912 and sold it later. "
    "The Long Bridge is a crossing of the river that carries two roads. "
    "It is a pleasant place for everybody who likes water and wind. "
    "He said that Anna Berg and nobody else had opened the old bakery."
)
OTHER = "People liked Henry Moss besides Clara Stone for their songs. " * 2


def folder(tmp_path: Path) -> Path:
    home = tmp_path / "docs"
    home.mkdir()
    (home / "mill.txt").write_text(MILL, encoding="utf-8")
    (home / "other.txt").write_text(OTHER, encoding="utf-8")
    return home


def made(tmp_path: Path, **changes: Any) -> Made:
    given: dict[str, Any] = {"count": 10, "source": "template", "seed": 0, "tell": lambda line: None}
    return make(folder(tmp_path), CONFIG, tmp_path / "cache", **{**given, **changes})


def test_templates_ask_about_definitions_years_and_names() -> None:
    found = {one.question: one for one in asked_by_template("d", MILL)}
    assert set(found) == {
        "What is said about Summer Theatre together with Saxon Garden?",
        "What happened in 1912 in connection with Anna Berg?",
        "What is the Long Bridge?",
    }
    assert found["What is the Long Bridge?"].answer == "a crossing of the river that carries two roads"
    for one in found.values():
        assert MILL[one.place[1] : one.place[2]].endswith(".")


def test_made_questions_have_exact_places_and_pass_the_filters(tmp_path: Path) -> None:
    found = made(tmp_path)
    with found.index:
        assert len(found.asked) == 3
        assert found.dropped == {"several places could answer it": 2}
        for one, hits in found.asked:
            name, start, end = one.place
            assert all(term in found.texts[name][start:end] for term in one.terms)
            assert hits
        write_spans(found, tmp_path / "set")
    again = read_dataset(tmp_path / "set")
    assert [question.text for question in again.questions] == [one.question for one, _ in found.asked]
    assert all(question.evidence and question.answers for question in again.questions)


def test_what_the_retriever_does_not_find_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rag.pipeline import Pipeline

    monkeypatch.setattr(Pipeline, "search", lambda *given, **named: [])
    with pytest.raises(UsageError, match="not found by the retriever"):
        made(tmp_path)


def test_runs_of_words() -> None:
    assert _longest_run("when did The Mill open", "the mill did open") == 2
    assert _longest_run("a b c", "x y") == _longest_run("", "a") == 0


def test_the_same_seed_makes_the_same_set(tmp_path: Path) -> None:
    sets = []
    for at, seed in enumerate((0, 0)):
        (tmp_path / str(at)).mkdir()
        found = made(tmp_path / str(at), seed=seed, count=2)
        with found.index:
            write_spans(found, tmp_path / f"s{at}")
        sets.append([(tmp_path / f"s{at}" / f"{name}.jsonl").read_bytes() for name in ("queries", "evidence")])
    assert sets[0] == sets[1]


def test_chats_hold_the_evidence_among_others(tmp_path: Path) -> None:
    found = made(tmp_path)
    with found.index:
        write_sft(found, tmp_path / "sft")
    rows = [json.loads(line) for line in (tmp_path / "sft" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    for row, (one, _) in zip(rows, found.asked, strict=True):
        system, user, assistant = (message["content"] for message in row["messages"])
        assert system == SYSTEM.strip()
        assert one.question in user
        mark = assistant.rsplit("[", 1)[1].rstrip("]")
        passage = user.split(f"[{mark}] Source")[1].split("</document>")[0]
        name, start, end = one.place
        assert found.texts[name][start:end] in passage


class Model(TextModel):
    """Writes what it is told to."""

    def __init__(self, written: str) -> None:
        self.written = written

    def complete(self, prompt: str, *, max_tokens: int, stop: Sequence[str] = ()) -> str:
        assert "Long Bridge" in prompt
        return self.written


@pytest.mark.parametrize(
    ("written", "place"),
    [
        (" Who ran the shop with bread?\nAnswer: Anna Berg", "In the town, Anna Berg opened"),
        (" Who ran it?\nAnswer: Peter", None),
        (" Who ran it?", None),
        (" no question\nAnswer: Anna Berg", None),
        (" Who?\nAnswer: ...", None),
    ],
)
def test_a_model_must_quote_the_passage(written: str, place: str | None) -> None:
    found = asked_by_model(Model(written), MILL, ("d", 0, len(MILL)))
    if place is None:
        assert found is None
    else:
        assert found is not None
        assert MILL[found.place[1] :].startswith(place)


def test_a_line_without_a_model_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="generator extractive has no language model"):
        made(tmp_path, source="llm")


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG.to_yaml(), encoding="utf-8")
    common = ["make", str(folder(tmp_path)), "--config", str(tmp_path / "c.yaml"), "--cache", str(tmp_path / "cache")]
    done = CliRunner().invoke(eval_app, [*common, "--out", str(tmp_path / "own"), "--json", "-q"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["questions"] == len(read_dataset(tmp_path / "own").questions)
    wrong = CliRunner().invoke(eval_app, [*common, "--out", str(tmp_path / "own"), "--source", "magic"])
    assert isinstance(wrong.exception, UsageError)
