"""The driver and the interleaving, with fake contenders in real child processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from eval.bench._children import Contender, find_pythons, interleave, run_child

FAKE = """
import json, os
PACKAGES = ("pytest", "no-such-package")
MODULES = ("json",)

def load(model, options):
    return {"model": model, **options}

def ingest(encoder, documents, store):
    store.mkdir(parents=True)
    (store / "data").write_bytes(b"x" * 100)
    with open(encoder["log"], "a") as log:
        log.write(encoder["name"] + " " + os.environ["OMP_NUM_THREADS"] + "\\n")
    print("a library talks on stdout")
    return len(list(documents.glob("*.txt")))

def retrieve(encoder, documents, store, questions, k):
    return {"chunks": [["a.txt", questions[0]]], "hits": {"dense": [[0]] * len(questions)}, "k": k}
"""


@pytest.fixture
def make(tmp_path: Path):
    def make(name: str, code: str = FAKE, role: str = "peer") -> Contender:
        module = tmp_path / f"{name}.py"
        module.write_text(code)
        return Contender(name=name, role=role, module=module, options={"name": name, "log": str(tmp_path / "log")})

    return make


@pytest.fixture
def job(tmp_path: Path) -> dict[str, object]:
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "a.txt").write_text("alpha")
    return {"task": "ingest", "model": "m", "documents": str(documents), "store": str(tmp_path / "store")}


def test_rounds_are_interleaved_and_threads_reach_the_children(make, job, tmp_path: Path) -> None:
    told: list[str] = []
    outcomes = interleave([make("a"), make("b")], job, rounds=2, threads=3, tell=told.append)
    assert (tmp_path / "log").read_text().splitlines() == ["a 3", "b 3", "a 3", "b 3"]
    assert told == ["round 1 of 2: a", "round 1 of 2: b", "round 2 of 2: a", "round 2 of 2: b"]
    assert [len(rounds) for rounds in outcomes.values()] == [2, 2]
    for one in outcomes["a"]:
        assert (one["status"], one["chunks"], one["disk_bytes"]) == ("ok", 1, 100)
        assert one["versions"]["no-such-package"] is None
        assert one["versions"]["pytest"]
        assert one["peak_rss_mb"] > 1
        for phase in ("imports", "load", "work"):
            assert one[phase]["cpu_seconds"] >= 0
            assert one[phase]["wall_seconds"] > 0


def test_every_round_gets_an_empty_store(make, job) -> None:
    outcomes = interleave([make("a")], job, rounds=2, threads=1, tell=lambda text: None)
    assert [one["status"] for one in outcomes["a"]] == ["ok", "ok"]  # the fake fails on a store that is there


def test_questions_travel_in_a_file(make, job, tmp_path: Path) -> None:
    (tmp_path / "questions.json").write_text(json.dumps(["first?", "second?"]))
    extra = {"task": "retrieve", "questions": str(tmp_path / "questions.json"), "k": 7}
    found = run_child(make("a"), {**job, **extra}, 1)["found"]
    assert found == {"chunks": [["a.txt", "first?"]], "hits": {"dense": [[0], [0]]}, "k": 7}


def test_a_contender_named_as_a_package_does_not_hide_it(make, job) -> None:
    assert run_child(make("json"), job, 1)["status"] == "ok"


def test_an_absent_framework_is_an_outcome(make, job) -> None:
    outcome = run_child(make("a", FAKE.replace('("json",)', '("no_such_framework",)')), job, 1)
    assert outcome["status"] == "absent"
    assert "no_such_framework" in outcome["reason"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (FAKE.replace("    store.mkdir(parents=True)", "    raise ValueError('broken')"), "ValueError: broken"),
        (FAKE.replace("    store.mkdir(parents=True)", "    os._exit(3)"), "exit code 3"),
    ],
)
def test_a_crash_is_an_outcome(make, job, code: str, reason: str) -> None:
    assert run_child(make("a", code), job, 1) == {"status": "failed", "reason": reason}


def test_an_interpreter_that_is_not_there_is_an_outcome(make, job) -> None:
    from dataclasses import replace

    outcome = run_child(replace(make("a"), python="/no/such/python"), job, 1)
    assert outcome["status"] == "failed"
    assert "/no/such/python" in outcome["reason"]


def test_the_first_interpreter_that_has_the_peer_is_used(make) -> None:
    absent = make("absent", FAKE.replace('("json",)', '("no_such_framework",)'))
    present, missing = find_pythons([make("ours", role="ours"), make("a"), absent], ["/no/such", sys.executable], 1)
    assert [(one.name, one.python) for one in present] == [("ours", sys.executable), ("a", sys.executable)]
    assert missing["absent"]["status"] == "absent"
