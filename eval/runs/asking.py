"""Questions -> outcomes: those that are kept are read, the others are answered, by several processes if asked."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from eval.chunks.data import digest
from eval.runs.ingesting import Prepared, line_of, name_in
from eval.runs.likelihood import gold_nats, references
from eval.runs.metering import Meter
from eval.runs.outcomes import Outcome, failed, outcome_of
from eval.runs.settings import code_digest, config_hash
from rag.config import PipelineConfig
from rag.errors import ConfigError, IndexDamagedError, MissingError
from rag.index import Index
from rag.pipeline import Pipeline

__all__ = ["answer_all", "single_threaded"]

_BLOCK = 8
"""Questions that a process is given at once: what a kill can cost."""
_OF_ALL = (ConfigError, IndexDamagedError, MissingError)
"""What every question would meet as well: it ends the run."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_WATCH_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class _Job:
    """`config` is JSON, so that a process knows whether it has this line open already; `questions` have references."""

    directory: Path
    home: Path
    config: str
    questions: tuple[tuple[str, tuple[str, ...]], ...]


def answer_all(
    asked: Mapping[str, Sequence[str]],
    prepared: Prepared,
    config: PipelineConfig,
    cache: Path,
    pool: ProcessPoolExecutor | None,
    on_progress: Callable[[int, int], None],
) -> dict[str, Outcome]:
    """Question -> outcome; `asked`: question -> reference answers. `pool` None answers in this process.

    What is made is kept at once, errors are not. What is kept without the likelihood of a reference is asked again.
    """
    kept = _Kept(cache / "answers" / f"{digest([prepared.key, config_hash(config), code_digest()])}.jsonl")
    todo = [(text, references(answers)) for text, answers in asked.items()]
    todo = [(text, wanted) for text, wanted in todo if not kept.has(text, wanted)]
    total = len(asked)
    on_progress(total - len(todo), total)
    text = json.dumps(config.to_dict(), sort_keys=True)
    jobs = [
        _Job(directory=prepared.directory, home=prepared.home, config=text, questions=tuple(todo[at : at + _BLOCK]))
        for at in range(0, len(todo), _BLOCK)
    ]
    again = {text for text, _ in todo}
    done = {text: outcome for text, outcome in kept.found.items() if text in asked and text not in again}
    for made in _done(jobs, pool):
        kept.add({text: outcome for text, outcome in made.items() if outcome["error"] is None})
        done.update(made)
        on_progress(len(done), total)
    return {text: done[text] for text in asked}


@contextmanager
def single_threaded(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes with one thread each, so that sums are added in one order whatever the machine; None for 0 workers."""
    if not workers:
        yield None
        return
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin, initargs=(os.getpid(),))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _done(jobs: Sequence[_Job], pool: ProcessPoolExecutor | None) -> Iterator[dict[str, Outcome]]:
    if pool is None:
        yield from map(_answered, jobs)
        return
    running: set[Future[dict[str, Outcome]]] = {pool.submit(_answered, job) for job in jobs}
    while running:
        ready, running = wait(running, return_when=FIRST_COMPLETED)
        for one in ready:
            yield one.result()


def _begin(parent: int) -> None:
    """The parent handles Ctrl-C; when it is gone, so is this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _answered(job: _Job) -> dict[str, Outcome]:
    pipeline, index, meter = _opened(job.directory, job.config)
    names: dict[str, str] = {}

    def name_of(doc_id: str) -> str:
        if doc_id not in names:
            names[doc_id] = name_in(job.home, index.corpus.document(doc_id).source)
        return names[doc_id]

    made: dict[str, Outcome] = {}
    for question, wanted in job.questions:
        meter.take()
        try:
            answer = pipeline.ask(question, index)
            encoder = meter.take()
            gold = gold_nats(pipeline.generator.text_model, answer.prompt, wanted)
            made[question] = outcome_of(answer, name_of, pipeline.generator.counter, encoder=encoder, gold=gold)
        except _OF_ALL:
            raise
        except Exception as error:  # a plugin's bug costs its question, not the run
            made[question] = failed(error)
    return made


@lru_cache(maxsize=1)
def _opened(directory: Path, config: str) -> tuple[Pipeline, Index, Meter]:
    """The line and the index that this process works with, and what counts between them."""
    pipeline, index = line_of(PipelineConfig(**json.loads(config)), None), Index.open(directory)
    return pipeline, index, Meter(pipeline, index)


class _Kept:
    """Outcomes of one config on one index, a line each. A line that a kill has cut is not read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.found: dict[str, Outcome] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError, KeyError, TypeError):
                    row: Mapping[str, Any] = json.loads(line)
                    self.found[row["question"]] = row["outcome"]

    def has(self, question: str, wanted: Sequence[str]) -> bool:
        """Whether it is kept, with the likelihood of every reference or the word that the model does not tell."""
        one = self.found.get(question)
        return one is not None and (one["gold"] is None or set(wanted) <= one["gold"].keys())

    def add(self, made: Mapping[str, Outcome]) -> None:
        """Append in one write; a new line first, in case that the last one was cut."""
        if made:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            rows = (json.dumps({"question": asked, "outcome": outcome}) for asked, outcome in made.items())
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n" + "\n".join(rows) + "\n")
