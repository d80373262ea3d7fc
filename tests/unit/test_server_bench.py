"""The judge of the load test: what it must call wrong, and a leak."""

from __future__ import annotations

import json
from itertools import islice

import pytest

from eval.bench import serve
from eval.bench.serve import Tally, Task

ASK = Task(1, "Which office approves the travel form 000?", "CANARY1X000", "ask")
STREAM = Task(1, "Which office approves the travel form 000?", "CANARY1X000", "stream")
DONE = "data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("task", "status", "text", "counts"),
    [
        (ASK, 200, "office CANARY1X000.", {"answered": 1}),
        (ASK, 200, "office CANARY1X000 and CANARY1X005.", {"answered": 1}),
        (ASK, 200, "office CANARY1X001.", {"answered": 1, "wrong": 1}),
        (ASK, 200, "office CANARY1X000, CANARY2X000.", {"answered": 1, "leaks": 1}),
        (ASK, 200, "office CANARY2X000.", {"answered": 1, "wrong": 1, "leaks": 1}),
        (STREAM, 200, f"CANARY1X000 {DONE}", {"answered": 1}),
        (STREAM, 200, "CANARY1X000 ", {"answered": 1, "wrong": 1}),
        (ASK, 429, "", {"busy": 1}),
        (ASK, 500, "CANARY1X000", {"failed": 1}),
        (ASK, 0, "ConnectionResetError", {"failed": 1}),
    ],
)
def test_an_answer_is_judged(task: Task, status: int, text: str, counts: dict[str, int]) -> None:
    tally = Tally()
    serve._judge(tally, task, status, text, 0.1)
    names = ("answered", "busy", "failed", "wrong", "leaks")
    assert {name: getattr(tally, name) for name in names if getattr(tally, name)} == counts


def test_tasks_repeat_with_their_seed_and_are_of_all_kinds() -> None:
    tasks = list(islice(serve._tasks(5, 3), 300))
    assert tasks == list(islice(serve._tasks(5, 3), 300))
    assert {task.way for task in tasks} == {"search", "ask", "stream"}
    assert {task.tenant for task in tasks} == set(range(serve.TENANTS))
    assert 100 < sum(task.way == "search" for task in tasks) < 200


def test_figures_are_those_of_the_sample() -> None:
    figures = serve._figures([at / 1000 for at in range(1, 100)], 10.0)
    assert figures == {"count": 99, "per_second": 9.9, "p50_ms": 50.0, "p95_ms": 95.0, "p99_ms": 99.0}
    assert json.dumps(serve._figures([], 1.0))
