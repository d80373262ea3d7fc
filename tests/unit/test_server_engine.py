"""The engine without HTTP: micro-batches of answers, scopes, leaving clients, and the exchange of the open index."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="chunkwise[serve] is not installed")

from rag import Pipeline
from rag.answer import Answer, Generation
from rag.config import PipelineConfig
from rag.errors import InputError, RagError
from rag.generators.extractive import ExtractiveGenerator
from rag.protocols import Corpus
from rag.server.auth import OPERATOR, Caller
from rag.server.engine import AskJob, Engine, Gone
from rag.server.held import HeldIndex, ServedIndex
from rag.server.limits import Busy, ServerLimits
from rag.server.metrics import Metrics
from rag.store.runs import RUNS_NAME
from rag.store.store import Store
from rag.types import CompressedContext
from tests.e2e.served import CONFIG, TOPICS, WORDS, canary, make_home, question

SCOPES = {
    "acme": Caller(tenant="acme", where={"source": {"contains": "docs/acme/"}}),
    "globex": Caller(tenant="globex", where={"source": {"contains": "docs/globex/"}}),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("engine"))


@pytest.fixture
def engine(home: Path) -> Iterator[Engine]:
    limits = ServerLimits(threads=8, waiting=8, drain_seconds=10)
    made = Engine(home / "idx", {"default": PipelineConfig.from_dict(CONFIG)}, limits, Metrics())
    made.start()
    yield made
    assert made.close()


@dataclass(frozen=True, kw_only=True)
class TogetherGenerator(ExtractiveGenerator):
    """As extractive, several at once; the first call waits for `go`. `batches_seen` are the questions of each call."""

    go: threading.Event = field(default_factory=threading.Event)
    seen: list[list[str]] = field(default_factory=list)

    @property
    def batches(self) -> bool:
        return True

    def generate(self, context: CompressedContext, corpus: Corpus, on_text: Any = None) -> Generation:
        self.seen.append([context.question])
        self.go.wait(20)
        return super().generate(context, corpus, on_text)

    def generate_many(self, contexts: Sequence[CompressedContext], corpus: Corpus) -> list[Generation | RagError]:
        self.seen.append([context.question for context in contexts])
        self.go.wait(20)
        return [
            InputError("broken") if "broken" in one.question else ExtractiveGenerator.generate(self, one, corpus)
            for one in contexts
        ]


def together(engine: Engine) -> TogetherGenerator:
    pipeline = engine.pipelines["default"]
    made = TogetherGenerator(embedder=pipeline.embedder, min_support=0.2)
    vars(pipeline)["generator"] = made
    return made


def until(holds: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not so after {seconds} s: {what}"
        time.sleep(0.005)


async def asked(engine: Engine, jobs: Sequence[AskJob]) -> list[Any]:
    """All at once: answers, or what was raised."""

    def one(job: AskJob) -> Callable[[ServedIndex], Answer]:
        return lambda index: engine.ask(index, "default", job)

    return await asyncio.gather(*(engine.run(one(job), job.caller, job) for job in jobs), return_exceptions=True)


def test_questions_of_one_tenant_are_written_together_and_those_of_two_never(engine: Engine) -> None:
    generator, pipeline = together(engine), engine.pipelines["default"]
    jobs = [AskJob(SCOPES[who], question(topic)) for topic in TOPICS[:4] for who in ("acme", "globex")]

    def let_go() -> None:
        until(lambda: len(pipeline._asks._waiting) == 7, "the others wait behind the first")
        generator.go.set()

    waiter = threading.Thread(target=let_go)
    waiter.start()
    answers = asyncio.run(asked(engine, jobs))
    waiter.join()
    for job, answer in zip(jobs, answers, strict=True):
        topic = next(one for one in TOPICS if one in job.question)
        assert canary(job.caller.tenant, topic) in answer.text
        other = "globex" if job.caller.tenant == "acme" else "acme"
        assert WORDS[other] not in str(answer.to_dict())
        with engine.held.lend() as index:
            assert index.store.run(answer.run_id)["tenant"] == job.caller.tenant
    assert sorted(len(batch) for batch in generator.seen) == [1, 3, 4]


def test_a_question_that_fails_does_not_take_its_batch_with_it(engine: Engine) -> None:
    generator, pipeline = together(engine), engine.pipelines["default"]
    texts = [question("travel"), f"broken {question('travel')}", question("parking")]
    jobs = [AskJob(OPERATOR, text) for text in texts]

    def let_go() -> None:
        until(lambda: len(pipeline._asks._waiting) == 2, "two wait")
        generator.go.set()

    waiter = threading.Thread(target=let_go)
    waiter.start()
    answers = asyncio.run(asked(engine, [jobs[0], jobs[1], jobs[2]]))
    waiter.join()
    kinds = [type(one) for one in answers]
    assert kinds[2] is kinds[0] is Answer
    assert kinds[1] in (InputError, Answer)  # alone in its batch, `generate` answers it
    if len(generator.seen[1]) == 2:
        assert kinds[1] is InputError


def test_tenants_that_may_see_the_same_documents_do_not_see_each_others_runs(engine: Engine) -> None:
    one, other = Caller(tenant="one", where=None), Caller(tenant="other", where=None)
    answer = asyncio.run(asked(engine, [AskJob(one, question("travel"))]))[0]
    with engine.held.lend() as index:
        assert engine.run_of(index, other, answer.run_id) is None
        for caller in (one, OPERATOR):
            run = engine.run_of(index, caller, answer.run_id)
            assert run is not None
            assert run["question"] == question("travel")
        assert engine.run_of(index, Caller(tenant="one"), answer.run_id) is None  # its scope has shrunk since
        assert engine.run_of(index, OPERATOR, "ffffffff") is None


def test_who_has_left_is_not_answered(engine: Engine) -> None:
    job = AskJob(OPERATOR, question("travel"))
    job.cancel()
    assert isinstance(asyncio.run(asked(engine, [job]))[0], Gone)
    generator = together(engine)
    generator.go.set()
    assert isinstance(asyncio.run(asked(engine, [job]))[0], Gone)
    assert generator.seen == []


def test_a_stream_whose_client_leaves_ends_the_writing(engine: Engine) -> None:
    """The generator gets Gone at its next word, no run is kept, and the place is free again."""
    from rag.server.stream import pieces_of

    ended: list[BaseException] = []

    @dataclass(frozen=True, kw_only=True)
    class EndlessGenerator(ExtractiveGenerator):
        def generate(self, context: CompressedContext, corpus: Corpus, on_text: Any = None) -> Generation:
            try:
                while True:
                    on_text("word ")
                    time.sleep(0.001)
            except BaseException as error:
                ended.append(error)
                raise

    pipeline = engine.pipelines["default"]
    vars(pipeline)["generator"] = EndlessGenerator(embedder=pipeline.embedder)

    async def listen_shortly() -> None:
        pieces = pieces_of(engine, "default", OPERATOR, "What?")
        got = [await anext(pieces) for _ in range(3)]
        assert got == ["word "] * 3
        await pieces.aclose()  # type: ignore[attr-defined]

    asyncio.run(listen_shortly())
    until(lambda: engine.gate.inside == 0, "the place is free")
    assert [type(error) for error in ended] == [Gone]


def test_threads_serve_tenants_in_turn(home: Path) -> None:
    """One thread, five requests of one tenant, then one of another: it waits for two of them, not for five."""
    limits = ServerLimits(threads=1, waiting=9, drain_seconds=10)
    engine = Engine(home / "idx", {"default": PipelineConfig.from_dict(CONFIG)}, limits, Metrics())
    engine.start()
    go, order = threading.Event(), list[str]()

    async def flood() -> list[Any]:
        def work(tenant: str) -> Callable[[ServedIndex], None]:
            return lambda _: (go.wait(20), order.append(tenant))[1]

        admitted = [engine.submit(work("acme"), SCOPES["acme"]) for _ in range(5)]
        for _ in range(20):
            with pytest.raises(Busy):
                engine.submit(work("acme"), SCOPES["acme"])
        admitted.append(engine.submit(work("globex"), SCOPES["globex"]))
        go.set()
        return await asyncio.gather(*admitted)

    asyncio.run(flood())
    assert (order.count("acme"), order.count("globex")) == (5, 1)
    assert order.index("globex") <= 2
    assert engine.close()


def test_what_waits_at_the_end_is_given_up(home: Path) -> None:
    limits = ServerLimits(threads=1, waiting=9, drain_seconds=10)
    engine = Engine(home / "idx", {"default": PipelineConfig.from_dict(CONFIG)}, limits, Metrics())
    engine.start()
    go, ran = threading.Event(), list[int]()

    async def ended() -> list[Any]:
        def work(number: int) -> Callable[[ServedIndex], None]:
            return lambda _: (go.wait(20), ran.append(number))[1]

        admitted = [engine.submit(work(number), OPERATOR) for number in range(3)]
        threading.Timer(0.2, go.set).start()
        assert await asyncio.to_thread(engine.close), "only the first is waited for"
        return await asyncio.gather(*admitted, return_exceptions=True)

    first, *others = asyncio.run(ended())
    assert (first, ran, engine.gate.inside) == (None, [0], 0)
    assert all(isinstance(one, asyncio.CancelledError) for one in others)


def test_a_full_engine_says_so_at_once(engine: Engine) -> None:
    generator = together(engine)

    async def overfull() -> list[Any]:
        jobs = [AskJob(OPERATOR, question("travel")) for _ in range(17)]
        work = asyncio.ensure_future(asked(engine, jobs))
        await asyncio.sleep(0)
        while engine.gate.inside < 16:
            await asyncio.sleep(0.001)
        generator.go.set()
        return await work

    answers = asyncio.run(overfull())
    assert sorted(type(one).__name__ for one in answers) == ["Answer"] * 16 + ["Busy"]
    assert isinstance(next(one for one in answers if not isinstance(one, Answer)), Busy)


def test_texts_of_several_requests_are_embedded_as_they_are_alone(engine: Engine) -> None:
    pipeline = engine.pipelines["default"]
    lists = [["travel"], ["parking", "holidays"], ["who approves travel requests"]]
    made = pipeline._embed_all(lists)
    for texts, rows in zip(lists, made, strict=True):
        assert (rows == pipeline.embedder.embed(texts)).all()


def test_one_text_that_cannot_be_embedded_fails_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = engine.pipelines["default"]
    embed = pipeline.embedder.embed

    def strict(texts: Sequence[str]) -> Any:
        if "bad" in texts:
            raise InputError("too long")
        return embed(texts)

    monkeypatch.setattr(pipeline.embedder, "embed", strict)
    made = pipeline._embed_all([["good"], ["bad"], ["fine"]])
    assert isinstance(made[1], InputError)
    assert (made[0] == embed(["good"])).all()
    assert (made[2] == embed(["fine"])).all()


def test_a_journal_that_a_killed_process_left_on_the_runs_is_rolled_back_at_the_start(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    engine = Engine(home / "idx", {"default": PipelineConfig.from_dict(CONFIG)}, ServerLimits(), Metrics())
    engine.start()
    kept = asyncio.run(asked(engine, [AskJob(OPERATOR, question("travel"))]))[0].run_id
    engine.close()
    code = """
import os, sqlite3, sys
runs = sqlite3.connect(sys.argv[1], isolation_level=None)
runs.execute("PRAGMA cache_size=1")
runs.execute("BEGIN IMMEDIATE")
runs.execute("UPDATE runs SET run = 'torn'")
for number in range(300):
    runs.execute("INSERT INTO runs(run_id, run) VALUES (?, ?)", (str(number), "x" * 4000))
os._exit(9)
"""
    subprocess.run([sys.executable, "-c", code, str(home / "idx" / RUNS_NAME)], timeout=60, check=False)
    assert (home / "idx" / f"{RUNS_NAME}-journal").stat().st_size
    again = Engine(home / "idx", {"default": PipelineConfig.from_dict(CONFIG)}, ServerLimits(), Metrics())
    again.start()
    with again.held.lend() as index:
        run = again.run_of(index, OPERATOR, kept)
        assert run is not None
        assert run["question"] == question("travel")
        assert len(index.store.runs(100)) == 1
    assert again.close()


# ---------------------------------------------------------------------- the open index


def test_an_index_that_is_lent_stays_open_until_its_last_user_is_done(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    prepared: list[int] = []
    held = HeldIndex(home / "idx", lambda index: prepared.append(index.corpus.generation))
    held.open()
    assert not held.refresh()
    with held.lend() as old:
        count = len(old.corpus)
        (home / "docs" / "new.md").write_text("Something new about badgers.\n")
        Pipeline(PipelineConfig.from_dict(CONFIG)).index(home / "docs", home / "idx").close()
        assert held.refresh()
        with held.lend() as new:
            assert len(new.corpus) == count + 1
        assert len(old.corpus.chunks([int(row) for row in old.corpus.rows()])) == count  # the old one reads on
    assert old._corpus is None  # closed with its last user
    assert prepared == sorted(set(prepared))
    held.close()
    with pytest.raises(RuntimeError):
        held.lend().__enter__()


def test_a_writer_that_is_not_through_is_waited_for(tmp_path: Path) -> None:
    """Every batch of an ingest is a generation; only one that stands, or that is published, is taken."""
    home = make_home(tmp_path)
    held = HeldIndex(home / "idx", lambda index: None)
    held.open()
    before = held.generation
    sources = sorted((home / "docs").rglob("*.md"))
    with Store.create_or_open(home / "idx") as store:
        store.commit(removed=[str(sources[0].resolve())])
        assert not held.refresh()
        store.commit(removed=[str(sources[1].resolve())])
        assert not held.refresh()
        assert held.generation == before
        assert held.refresh()  # it stands since the look before
    assert held.generation > before
    held.close()


def test_what_cannot_be_read_anew_is_served_as_it_was(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HeldIndex, "_look", lambda self: (_ for _ in ()).throw(RagError("the disk is away")))
    engine.refresh()
    assert engine.failure == "the disk is away"
    with engine.held.lend() as index:
        assert len(index.corpus)


class Emptied(dict[str, Any]):
    """A memory that another thread empties between the look whether something is in it and the read."""

    def __contains__(self, key: object) -> bool:
        found = super().__contains__(key)
        self.clear()
        return found


def test_a_document_is_read_though_another_thread_empties_the_memory(engine: Engine) -> None:
    with engine.held.lend() as index:
        corpus = index.corpus
        corpus._documents = Emptied()
        doc_id = index.store.documents()[0].id
        for _ in range(3):
            assert corpus.document(doc_id).id == doc_id
        with pytest.raises(KeyError):
            corpus.document("0" * 16)
