"""What every view works on: the index, the pipeline and the run that is looked at, opened once and kept.

Streamlit runs the whole script again at every click. Models, index and answers therefore stay behind its caches, each
keyed by what it depends on: a new generation of the index opens the index again and loads no model again.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from rag import Index, Pipeline, PipelineConfig
from rag.answer import Answer, GenerationStats, Prompt
from rag.config import resolve
from rag.errors import UsageError
from rag.replay import about
from rag.types import Bubble, Hit

if TYPE_CHECKING:
    from rag.protocols import Embedder, Generator
    from rag.types import Chunk, Document

__all__ = ["Desk", "Line", "Run", "line_of", "open_desk", "open_index"]

Run = dict[str, Any]
"""A run as the index keeps it: `Answer.to_dict()`, its sources, its generation and its config."""

RUNS_LISTED = 30


class Line(Pipeline):
    """A pipeline whose models are shared with every other one that names them the same way."""

    @cached_property
    def embedder(self) -> Embedder:
        embedder: Embedder = _embedder(_dump(self.config.embedder))
        return embedder

    @cached_property
    def generator(self) -> Generator:
        generator: Generator = _generator(_dump(self.config.generator), _dump(self.config.embedder))
        return generator


@st.cache_resource(max_entries=4, show_spinner=False)
def _embedder(spec: str) -> Embedder:
    """The embedder of a spec; a question that it has read is not read again."""
    embedder = Pipeline(_config({"embedder": json.loads(spec)})).embedder
    for one in (embedder, getattr(embedder, "light", embedder)):
        if "embed_question" not in vars(one):
            vars(one)["embed_question"] = lru_cache(maxsize=256)(one.embed_question)
    return embedder


@st.cache_resource(max_entries=4, show_spinner=False)
def _generator(spec: str, embedder: str) -> Generator:
    pipeline = Pipeline(_config({"generator": json.loads(spec), "embedder": json.loads(embedder)}))
    vars(pipeline)["embedder"] = _embedder(embedder)
    return pipeline.generator


@st.cache_resource(max_entries=16, show_spinner=False)
def _line(config: str) -> Line:
    return Line(PipelineConfig.from_dict(json.loads(config)))


def line_of(config: PipelineConfig | Mapping[str, Any]) -> Line:
    """The pipeline of a config, made once; ConfigError when the config is wrong."""
    values = config.to_dict() if isinstance(config, PipelineConfig) else dict(config)
    line: Line = _line(_dump(values))
    return line


@st.cache_resource(max_entries=3, show_spinner="Opening the index", on_release=lambda index: index.close())
def _index(directory: str, generation: int) -> Index:
    """A snapshot. Another `generation` opens another one; what it is for is the key."""
    return Index.open(directory)


def open_index(directory: Path) -> Index:
    """The index as it is on disk now, opened once for each generation."""
    with Index.open(directory) as index:
        generation = index.store.generation
    opened: Index = _index(str(directory), generation)
    return opened


@st.cache_resource(show_spinner=False)
def _busy() -> threading.Lock:
    """Models and searchers are used by one question at a time, however many browsers are open."""
    return threading.Lock()


@dataclass(frozen=True)
class Desk:
    """Given to every view. `run` is the picked run, None before the first question."""

    directory: Path
    pipeline: Pipeline
    index: Index
    run: Run | None
    generation: int

    # ------------------------------------------------------------------ questions

    def ask(self, question: str, pipeline: Pipeline | None = None, on_text: Callable[[str], None] | None = None) -> Run:
        """Asks and gives the run; it is not remembered here, see `answered`."""
        pipeline = pipeline or self.pipeline
        with _busy():
            answer = pipeline.ask(question, self.index, on_text=on_text)
        return {**answer.to_dict(), **about(answer, self.index.corpus), "config": pipeline.config.to_dict()}

    def answered(self, question: str, pipeline: Pipeline) -> Run:
        """As `ask`, from the cache when this pipeline has answered the question on this state of the index."""
        made: Run = _answered(str(self.directory), self.generation, question, _dump(pipeline.config.to_dict()), self)
        return made

    def reselect(self, run: Run, budget: int) -> Run:
        """The run with the context that this budget gives, from its stored candidates: nothing is searched or embedded.

        UsageError when its chunks are gone, or its selector knows no budget.
        """
        key = run.get("run_id") or run["bubble"]["digest"] + run["question"]
        made: Run = _reselected(str(self.directory), self.generation, key, budget, self, run)
        return made

    def pipeline_of(self, run: Run) -> Pipeline:
        """The pipeline that made a run; models are shared with all others."""
        return line_of(run["config"]) if run.get("config") else self.pipeline

    def pipeline_with(self, **slots: Any) -> Pipeline:
        """The pipeline at hand with other plugins in some slots; ConfigError says what is wrong with them."""
        config = self.pipeline.config.merged(slots, where="app")
        config.check()
        return line_of(config)

    # ------------------------------------------------------------------ the index

    def runs(self) -> list[Run]:
        """The newest runs, newest first."""
        kept: list[Run] = _runs(str(self.directory), _stamp(self.directory / "runs.sqlite"))
        return kept

    def document(self, name: str) -> Document:
        """By id, beginning of an id, or source."""
        return self.index.document(name)


@st.cache_data(max_entries=32, show_spinner="Asking")
def _answered(directory: str, generation: int, question: str, config: str, _desk: Desk) -> Run:
    return _desk.ask(question, _line(config))


@st.cache_data(max_entries=256, show_spinner=False)
def _reselected(directory: str, generation: int, key: str, budget: int, _desk: Desk, _run: Run) -> Run:
    pipeline, corpus = _desk.pipeline_of(_run), _desk.index.corpus
    facts = _run.get("candidates")
    if facts is None:
        raise UsageError("this run was stored without its candidates; ask the question again")
    with _busy():
        try:
            chunks = corpus.chunks(corpus.rows_of([one["chunk_id"] for one in facts]))
        except KeyError:
            raise UsageError("some candidates of this run are not in the index any more; ask again") from None
        by_id = {chunk.id: chunk for chunk in chunks}
        hits = [_hit(one, by_id[one["chunk_id"]]) for one in facts]
        bubble = _with_budget(pipeline.selector, budget).select(_run["question"], hits, corpus)
        return {**_run, **_context(pipeline, bubble, hits, corpus)}


def _context(pipeline: Pipeline, bubble: Bubble, hits: list[Hit], corpus: Any) -> dict[str, Any]:
    answer = Answer(
        question=bubble.question, text="", citations=(), sentences=(), supported=(), bubble=bubble,
        context=pipeline.compressor.compress(bubble, corpus), prompt=Prompt(), stats=GenerationStats(), trace=(),
        candidates=tuple(hits),
    )  # fmt: skip
    made = answer.to_dict()
    return {name: made[name] for name in ("bubble", "context")}


def _hit(fact: Mapping[str, Any], chunk: Chunk) -> Hit:
    return Hit(chunk=chunk, **{name: fact[name] for name in ("score", "rank", "retriever", "parts")})


def _with_budget(selector: Any, budget: int) -> Any:
    """The selector, or the one inside of it, with another budget."""
    names = {one.name for one in fields(selector)} if is_dataclass(selector) else set()
    if "budget" in names:
        return replace(selector, budget=budget)
    if "selector" in names:
        return replace(selector, selector=_with_budget(selector.selector, budget))
    raise UsageError(f"selector {type(selector).__name__} has no budget to move")


@st.cache_data(max_entries=4, show_spinner=False)
def _runs(directory: str, stamp: tuple[int, ...]) -> list[Run]:
    with Index.open(directory) as index:
        return index.store.runs(RUNS_LISTED)


def _stamp(path: Path) -> tuple[int, ...]:
    """Changes when the file does."""
    found = path.stat() if path.exists() else None
    return (found.st_mtime_ns, found.st_size, found.st_ino) if found else ()


def open_desk(directory: str | Path, run: Run | None = None) -> Desk:
    """The desk of an index; `run` or the newest one is picked. RagError when there is no sound index."""
    directory = Path(directory)
    index = open_index(directory)
    pipeline = line_of(resolve(index_config=index.manifest().get("config")).config)
    desk = Desk(directory, pipeline, index, run, index.corpus.generation)
    if run is None and (runs := desk.runs()):
        desk = replace(desk, run=runs[0])
    return desk


def _config(slots: Mapping[str, Any]) -> PipelineConfig:
    return PipelineConfig.default().merged(slots, where="app")


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
