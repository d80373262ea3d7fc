"""Tokens and scopes, the gate, micro-batches: what the server is made of, without HTTP."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError, RagError, UsageError
from rag.server.auth import NOTHING, OPERATOR, Caller, Tokens, is_loopback
from rag.server.batching import BatchedQuestions, Batches
from rag.server.limits import Busy, Gate, ServerLimits


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def tokens_file(folder: Path, rows: object) -> Path:
    path = folder / "tokens.yaml"
    path.write_text(rows if isinstance(rows, str) else yaml.safe_dump(rows))
    return path


# ---------------------------------------------------------------------- tokens


def test_without_any_token_everybody_is_the_operator_on_loopback_only() -> None:
    tokens = Tokens.load(None)
    assert tokens.caller(None) == OPERATOR
    tokens.check_host("127.0.0.1")
    tokens.check_host("::1")
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", "127.0.0.1.example.org"):  # noqa: S104
        assert not is_loopback(host)
        with pytest.raises(UsageError, match="RAG_TOKEN"):
            tokens.check_host(host)
    Tokens.load("secret").check_host("0.0.0.0")  # noqa: S104


@pytest.mark.parametrize("token", ["", "  ", " secret", "secret\n", "gehëim"])
def test_a_token_that_cannot_travel_is_refused(token: str) -> None:
    with pytest.raises(UsageError, match="RAG_TOKEN"):
        Tokens.load(token)


@given(st.text(max_size=40))
def test_only_the_token_itself_opens(header: str) -> None:
    tokens = Tokens.load("secret")
    scheme, _, token = header.partition(" ")
    opens = scheme.lower() == "bearer" and token.strip() == "secret"
    assert (tokens.caller(header) is not None) == opens


def test_the_schemes_name_has_no_case_and_other_schemes_do_not_open() -> None:
    tokens = Tokens.load("secret")
    assert tokens.caller("bearer secret") == tokens.caller("BEARER  secret ") == OPERATOR
    assert [tokens.caller(one) for one in ("secret", "Basic secret", "Bearer", "Bearer secret2", None, "")] == [
        None
    ] * 6


def test_every_token_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared: list[str] = []

    def counted(one: str, two: str) -> bool:
        compared.append(one)
        return one == two

    monkeypatch.setattr(hmac, "compare_digest", counted)
    tokens = Tokens(callers={digest(name): Caller(tenant=name) for name in "abc"})
    tokens.caller("Bearer a")
    tokens.caller("Bearer wrong")
    assert compared == [digest(name) for name in "abc"] * 2


def test_a_tenant_without_a_filter_sees_nothing_and_all_is_a_word(tmp_path: Path) -> None:
    rows = {
        digest("a"): {"tenant": "acme", "where": {"meta.tenant": "acme"}},
        digest("n"): {"tenant": "none"},
        digest("e"): {"tenant": "empty", "where": {}},
        digest("x"): {"tenant": "auditors", "where": "all"},
    }
    tokens = Tokens.load("op", tokens_file(tmp_path, rows))
    found = {name: tokens.caller(f"Bearer {name}") for name in ("a", "n", "e", "x", "op")}
    assert {name: one.where for name, one in found.items() if one} == {
        "a": {"meta.tenant": "acme"}, "n": NOTHING, "e": NOTHING, "x": None, "op": None,
    }  # fmt: skip
    assert [name for name, one in found.items() if one and one.is_operator] == ["op"]


def test_a_requests_filter_stays_inside_of_the_tenants() -> None:
    acme = Caller(tenant="acme", where={"meta.tenant": "acme"})
    assert acme.within(None) == acme.within({}) == {"meta.tenant": "acme"}
    wide = {"or": [{}, {"meta.tenant": "globex"}]}
    assert acme.within(wide) == {"and": [{"meta.tenant": "acme"}, wide]}
    assert Caller(tenant="nobody").within(wide) == {"and": [NOTHING, wide]}
    assert OPERATOR.within(None) is None
    assert OPERATOR.within(wide) == wide


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("", "expected lines"),
        ("- a", "expected lines"),
        ("a: [", "cannot be read"),
        ({"secret": {"tenant": "a", "where": "all"}}, "SHA-256"),
        ({digest("a"): {"where": "all"}}, "tenant"),
        ({digest("a"): {"tenant": " ", "where": "all"}}, "tenant"),
        ({digest("a"): {"tenant": "a", "scope": "all"}}, "unknown key"),
        ({digest("a"): {"tenant": "a", "where": "everything"}}, "the word all"),
        ({digest("a"): {"tenant": "a", "where": {"owner": "a"}}}, "unknown field"),
        ({digest("a"): {"tenant": "a", "where": {"section": "a"}}}, "no section"),
        ({digest("a"): {"tenant": "a", "where": {"or": [{"source": "a"}, {"section": "b"}]}}}, "no section"),
        ({digest("a"): {"tenant": "a", "where": {"and": []}}}, "where: all"),
        ({digest("a"): {"tenant": "a", "where": {"or": [{}, {"source": "a"}]}}}, "where: all"),
        ({digest("a"): {"tenant": "a", "where": {"not": {"or": []}}}}, "where: all"),
        (
            {digest("a"): {"tenant": "a", "where": "all"}, digest("b"): {"tenant": "a", "where": {"source": "x"}}},
            "unlike filters",
        ),
    ],
)
def test_a_tokens_file_that_says_something_else_is_refused(tmp_path: Path, rows: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Tokens.load(None, tokens_file(tmp_path, rows))


# ---------------------------------------------------------------------- the gate


def test_the_gate_lets_in_what_runs_and_what_may_wait() -> None:
    gate = Gate(ServerLimits(threads=2, waiting=1))
    for _ in range(3):
        gate.enter()
    with pytest.raises(Busy) as busy:
        gate.enter()
    assert 1 <= busy.value.retry_seconds <= 60
    gate.leave(0.01)
    gate.enter()
    assert gate.inside == 3


def test_a_tenant_has_its_share_and_the_operator_all() -> None:
    gate = Gate(ServerLimits(threads=2, waiting=6, tenant_share=0.5))
    for _ in range(4):
        gate.enter("flood")
    for _ in range(100):
        with pytest.raises(Busy, match="4 of your requests"):
            gate.enter("flood")
    gate.enter("calm")
    for _ in range(3):
        gate.enter()
    with pytest.raises(Busy, match="the server is at its limit"):
        gate.enter("calm")
    gate.leave(0.01, "flood")
    gate.enter("flood")
    assert (gate.inside, ServerLimits(threads=1, waiting=0, tenant_share=0.1).tenant_places) == (8, 1)


def test_the_time_to_come_again_grows_with_the_work() -> None:
    gate = Gate(ServerLimits(threads=1, waiting=9))
    for _ in range(100):
        gate.enter()
        gate.leave(4.0)
    for _ in range(10):
        gate.enter()
    with pytest.raises(Busy) as busy:
        gate.enter()
    assert busy.value.retry_seconds == 40


@pytest.mark.parametrize(
    "wrong",
    [{"threads": 0}, {"request_seconds": -1}, {"drain_seconds": float("nan")}, {"waiting": -1}, {"tenant_share": 1.5}],
)
def test_limits_are_positive(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ServerLimits(**wrong)


# ---------------------------------------------------------------------- micro-batches


class Held:
    """Work that waits until it is let go, so that others queue up behind it."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.began, self.go = threading.Event(), threading.Event()

    def __call__(self, items: list[Any]) -> Sequence[Any]:
        self.batches.append(items)
        self.began.set()
        self.go.wait(10)
        return [ValueError(item) if item == "bad" else f"made {item}" for item in items]


def all_at_once(batches: Batches[Any, Any], work: Held, items: list[Any]) -> dict[Any, Any]:
    """The first item begins; the others arrive meanwhile; what each of them got."""
    got: dict[Any, Any] = {}

    def call(item: Any) -> None:
        try:
            got[item] = batches(item)
        except Exception as error:
            got[item] = error

    threads = [threading.Thread(target=call, args=(item,)) for item in items]
    threads[0].start()
    work.began.wait(10)
    for thread in threads[1:]:
        thread.start()
    while len(batches._waiting) < len(items) - 1:
        threading.Event().wait(0.001)
    work.go.set()
    for thread in threads:
        thread.join(10)
    return got


def test_what_waits_is_done_together_and_everybody_gets_the_own_result() -> None:
    work, sizes = Held(), []
    got = all_at_once(Batches(work, most=4, sizes=sizes.append), work, [0, 1, 2, 3, 4, 5])
    assert got == {item: f"made {item}" for item in range(6)}
    assert sizes == [len(batch) for batch in work.batches] == [1, 4, 1]


def test_only_what_has_the_same_key_goes_together() -> None:
    work = Held()
    got = all_at_once(Batches(work, most=9, key=lambda item: item[0]), work, ["a0", "a1", "b1", "a2", "b2"])
    assert got == {item: f"made {item}" for item in got}
    assert all(len({item[0] for item in batch}) == 1 for batch in work.batches)
    assert len(work.batches) == 3


def test_one_that_fails_does_not_take_the_others_with_it() -> None:
    work = Held()
    got = all_at_once(Batches(work, most=9), work, ["first", "good", "bad"])
    assert got["good"] == "made good"
    assert isinstance(got["bad"], ValueError)


def test_what_the_work_raises_everybody_of_the_batch_gets_and_the_next_batch_works() -> None:
    def work(items: list[int]) -> list[int]:
        if 13 in items:
            raise RagError("no")
        return items

    batches = Batches(work, most=4)
    with pytest.raises(RagError):
        batches(13)
    assert batches(1) == 1


def test_questions_together_have_the_vectors_that_they_have_alone() -> None:
    inner = HashingEmbedder(max_tokens=8)
    batched = BatchedQuestions(inner)
    questions = ["who approves travel", "how many days", "who approves travel", "word " * 20]
    rows = batched._embed_questions(questions)
    for question, row in zip(questions, rows, strict=True):
        assert np.array_equal(row, inner.embed_question(question))
    assert batched.fingerprint == inner.fingerprint
    assert batched.matches_meaning is False


def test_a_model_with_a_prompt_for_questions_gets_them_one_by_one() -> None:
    class Prompted(HashingEmbedder):
        def embed_question(self, text: str) -> Any:
            return super().embed_question(f"query query query query: {text}")

    inner = Prompted()
    rows = BatchedQuestions(inner)._embed_questions(["one thing", "another thing"])
    assert np.array_equal(rows[1], inner.embed_question("another thing"))
    assert not np.array_equal(rows[1], inner.embed(["another thing"])[0])
