"""The pipelines of a server on their one index: a bounded pool of threads, filters of tenants, micro-batches."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rag.answer import Answer
from rag.config import PipelineConfig
from rag.errors import ConfigError, IndexDamagedError, InputError, RagError
from rag.generators._many import WritesMany
from rag.generators._reuse import reads_others
from rag.generators.local import LocalGenerator
from rag.pipeline import Pipeline
from rag.server.auth import Caller, Tokens
from rag.server.batching import BatchedQuestions, Batches
from rag.server.held import HeldIndex, ServedIndex, TenantIndex
from rag.server.limits import Gate, ServerLimits
from rag.server.metrics import Metrics
from rag.server.turns import Job, Turns
from rag.store.runs import copy_runs

if TYPE_CHECKING:
    from rag.protocols import Embedder, Filter, Vectors
    from rag.types import Hit

__all__ = ["AskJob", "Engine", "Gone", "LeakError", "ServedPipeline"]

_log = logging.getLogger("rag.server")
Made = TypeVar("Made")
_PROBE = "What is in these documents?"


class Gone(Exception):  # noqa: N818 (no failure: nobody listens any more)
    """The client has left, or its time is over: a generator that writes stops at its next word."""


class LeakError(Exception):
    """Something of another tenant was found in a result; it is not given out."""


class AskJob:
    """A question on its way. `on_text` gets the text as it grows; after `cancel` the next text ends the work."""

    def __init__(self, caller: Caller, question: str, on_text: Callable[[str], None] | None = None) -> None:
        self.caller, self.question, self._on_text = caller, question, on_text
        self._is_cancelled = threading.Event()
        self.is_streamed = on_text is not None

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self._is_cancelled.set()

    def on_text(self, text: str) -> None:
        """What the generator calls."""
        if self.is_cancelled:
            raise Gone
        if self._on_text:
            self._on_text(text)

    @property
    def is_cancelled(self) -> bool:
        return self._is_cancelled.is_set()

    @property
    def company(self) -> object:
        """Questions of one scope may be written together; a stream is written alone."""
        scope = json.dumps(self.caller.where, sort_keys=True, default=repr)
        return self if self.is_streamed else (self.caller.tenant, scope)


class ServedPipeline(Pipeline):
    """A pipeline for several threads: questions that are asked at once are encoded, and written, together."""

    def __init__(self, config: PipelineConfig, metrics: Metrics) -> None:
        super().__init__(config)
        self._metrics = metrics
        size = metrics.batches.labels
        self._texts: Batches[list[str], Vectors] = Batches(
            self._embed_all, most=16, sizes=lambda count: size("embeddings").observe(count)
        )
        self._asks: Batches[tuple[AskJob, TenantIndex], Answer] = Batches(
            self._ask_all,
            most=64,
            key=lambda one: one[0].company if one[0].is_streamed else (id(one[1].corpus), one[0].company),
            sizes=lambda count: size("answers").observe(count),
        )

    @cached_property
    def embedder(self) -> Embedder:
        size = self._metrics.batches.labels("questions")
        return BatchedQuestions(self._build("embedder", {}), sizes=size.observe)

    def warm(self, index: ServedIndex) -> None:
        """Load the models and open the retriever on the index; an endpoint elsewhere is not called."""
        unkept = TenantIndex(index, "", keeps_runs=False)
        if not len(index.corpus):
            index.searcher(self.retriever)
            return
        found = self._find(_PROBE, unkept, None)
        self.embedder.embed_question(_PROBE)
        if isinstance(self.generator, LocalGenerator) or self.generator.text_model is None:
            self.generator.generate(found.context, unkept.corpus)

    def embed_texts(self, texts: list[str]) -> Vectors:
        """(len(texts), dimension) float32, together with what other requests want embedded at this moment."""
        return self._texts(texts)

    def answer(self, job: AskJob, index: TenantIndex) -> Answer:
        """The answer; one at a time, or several together, where the generator is a model in this process."""
        if job.is_cancelled:
            raise Gone
        if isinstance(self.generator, WritesMany):
            return self._asks((job, index))
        return self.ask(job.question, index, where=job.caller.where, on_text=job.on_text)

    def _ask_all(self, jobs: list[tuple[AskJob, TenantIndex]]) -> list[Any]:
        made: dict[int, Any] = {}
        awaited = [number for number, (job, _) in enumerate(jobs) if not job.is_cancelled]
        if len(awaited) == 1:
            job, index = jobs[awaited[0]]
            made[awaited[0]] = self.ask(job.question, index, where=job.caller.where, on_text=job.on_text)
        elif awaited:
            (first, index), questions = jobs[awaited[0]], [jobs[number][0].question for number in awaited]
            answers = self.ask_many(questions, index, where=first.caller.where, at_once=len(awaited))
            made.update(zip(awaited, answers, strict=True))
        return [made.get(number, Gone()) for number in range(len(jobs))]

    def _embed_all(self, lists: list[list[str]]) -> list[Any]:
        try:
            rows = self.embedder.embed([text for texts in lists for text in texts])
        except InputError as error:
            return [error] if len(lists) == 1 else [self._embed_all([texts])[0] for texts in lists]
        made, at = [], 0
        for texts in lists:
            made.append(rows[at : at + len(texts)])
            at += len(texts)
        return made


class Engine:
    """What the routes call. `start` loads everything; `run` is one request's work in a thread of the pool."""

    def __init__(
        self, directory: Path, configs: Mapping[str, PipelineConfig], limits: ServerLimits, metrics: Metrics
    ) -> None:
        self.limits, self.metrics = limits, metrics
        self.pipelines = {name: ServedPipeline(config, metrics) for name, config in configs.items()}
        self.held = HeldIndex(directory, self._prepare)
        self.gate = Gate(limits)
        self.is_ready = False
        self.failure = ""
        self.started_at = int(time.time())
        self._turns = Turns()
        self._pool = ThreadPoolExecutor(limits.threads, thread_name_prefix="rag-serve")
        metrics.inside.set_function(lambda: self.gate.inside)
        metrics.generation.set_function(lambda: self.held.generation)

    def _prepare(self, index: ServedIndex) -> None:
        for pipeline in self.pipelines.values():
            pipeline.warm(index)

    def check_tenants(self, tokens: Tokens) -> None:
        """ConfigError for a pipeline in which the text of one tenant would leave a trace in the answers of another."""
        for name, pipeline in self.pipelines.items():
            local = pipeline.generator
            if tokens.narrows and isinstance(local, LocalGenerator) and (way := reads_others(local)):
                raise ConfigError(
                    f"pipeline {name}: {way} makes keys and values of a chunk behind other chunks of the index, and "
                    "--tokens has tenants that may not see all of it. Choose another one in its generator, or give "
                    "every tenant an index and a server of its own"
                )

    def start(self) -> None:
        """Open the index and load the models; RagError when that cannot be."""
        with suppress(IndexDamagedError):  # a file of runs that cannot be written stops no answer
            copy_runs(self.held.directory, ())  # its journal is rolled back, if a killed process has left one
        self.held.open()
        self.is_ready = True

    def refresh(self) -> None:
        """Look for a new generation; what stands in the way is logged, and the index of before serves on."""
        try:
            self.held.refresh()
            self.failure = ""
        except (RagError, OSError) as error:
            if self.failure != str(error):
                _log.warning("the index cannot be read anew, the snapshot of before is served: %s", error)
            self.failure = str(error)

    async def run(self, work: Callable[[ServedIndex], Made], caller: Caller, job: AskJob | None = None) -> Made:
        """What `work` gives, done in the pool; Busy when there is no room, TimeoutError when it takes too long."""
        future = self.submit(work, caller)
        try:
            return await asyncio.wait_for(asyncio.shield(future), self.limits.request_seconds)
        except (TimeoutError, asyncio.CancelledError):
            if job:
                job.cancel()
            raise

    def submit(self, work: Callable[[ServedIndex], Made], caller: Caller) -> asyncio.Future[Made]:
        """Admit one request of this caller, or raise Busy; its place is free again when its thread is."""
        self.gate.enter(caller.tenant)
        started = time.perf_counter()

        def lent() -> Made:
            with self.held.lend() as index:
                return work(index)

        job = Job(lent, lambda: self.gate.leave(time.perf_counter() - started, caller.tenant))
        self._turns.put(caller.tenant, job)
        try:
            self._pool.submit(self._turns.run_next)
        except RuntimeError:  # the pool takes nothing any more: the server is going down
            self._turns.clear()
            raise
        future: asyncio.Future[Made] = asyncio.wrap_future(job.future)
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, even when nobody waits
        return future

    # ------------------------------------------------------------------ the work, in a thread

    def search(
        self, index: ServedIndex, caller: Caller, model: str, question: str, k: int | None, where: Filter | None
    ) -> list[Hit]:
        """Hits inside of the caller's scope."""
        view = TenantIndex(index, caller.tenant)
        hits = self.pipelines[model].search(question, view, k=k, where=caller.within(where))
        self._guard(index, caller, [hit.chunk.doc_id for hit in hits])
        return hits

    def ask(self, index: ServedIndex, model: str, job: AskJob) -> Answer:
        """An answer from inside of the caller's scope, kept as a run of the caller."""
        answer = self.pipelines[model].answer(job, TenantIndex(index, job.caller.tenant))
        read = [hit.chunk.doc_id for hit in (*answer.candidates, *answer.bubble.hits)]
        self._guard(index, job.caller, [*read, *(one.doc_id for one in answer.citations)])
        self.metrics.answered(answer)
        return answer

    def sees(self, index: ServedIndex, caller: Caller, doc_id: str) -> bool:
        """Whether there is such a document inside of the caller's scope."""
        scope = {"doc_id": doc_id} if caller.where is None else {"and": [{"doc_id": doc_id}, caller.where]}
        return len(index.corpus.rows(scope)) > 0

    def run_of(self, index: ServedIndex, caller: Caller, run_id: str) -> dict[str, Any] | None:
        """The run, if it is the caller's and names nothing that the caller may not see by now."""
        from rag.errors import UsageError

        try:
            run = index.store.run(run_id)
        except UsageError:
            return None
        if caller.is_operator:
            return run
        if run.get("tenant") != caller.tenant or self._hidden(index, caller, list(run.get("sources", ()))):
            return None
        return run

    def _guard(self, index: ServedIndex, caller: Caller, doc_ids: list[str]) -> None:
        """A second look at what leaves: the filter binds inside of the query, this finds a plugin that ignores it."""
        if self._hidden(index, caller, doc_ids):
            raise LeakError(f"a result for tenant {caller.tenant!r} named documents outside of its scope")

    def _hidden(self, index: ServedIndex, caller: Caller, doc_ids: list[str]) -> bool:
        if caller.where is None or not doc_ids:
            return False
        others = {"and": [{"doc_id": {"in": sorted(set(doc_ids))}}, {"not": caller.where}]}
        return len(index.corpus.rows(others)) > 0

    # ------------------------------------------------------------------ the end

    def close(self) -> bool:
        """Take nothing more and wait for what runs, `drain_seconds` at most; False when something still runs."""
        self.is_ready = False
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._turns.clear()
        end = time.monotonic() + self.limits.drain_seconds
        while self.gate.inside and time.monotonic() < end:
            time.sleep(0.02)
        if self.gate.inside:
            return False
        self.held.close()
        return True
