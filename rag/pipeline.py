"""The line: index documents, search them, ask them. Every stage is a plugin behind a typed slot."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.answer import Answer, Generation, GenerationStats, Prompt, StageTrace
from rag.config import PipelineConfig
from rag.errors import ConfigError, IndexDamagedError, IndexLockedError, MissingError, RagError, UsageError
from rag.index import Index
from rag.registry import build, spec_name
from rag.telemetry import batch_spans, stage_span, traced

if TYPE_CHECKING:
    from rag.files import FileListing
    from rag.jobs import Executor
    from rag.limits import Limits
    from rag.protocols import Chunker, Compressor, Embedder, Filter, Generator, Retriever, Selector
    from rag.report import IngestReport, Progress
    from rag.store.store import Store
    from rag.types import Chunk, Document, Hit

__all__ = ["Pipeline", "tried"]

_CHUNKS_AT_ONCE = 32
_OF_ALL = (ConfigError, IndexDamagedError, IndexLockedError, MissingError)


class Pipeline:
    """A configured line. Plugins are built, and models loaded, when a call first needs them.

    Chunk sizes are counted with the embedder's tokenizer, since its limit is their ceiling; budgets are counted
    with the generator's, since that is what reads the context.
    """

    def __init__(self, config: PipelineConfig | None = None) -> None:
        self.config = config or PipelineConfig.default()

    @classmethod
    def from_yaml(cls, path: str | Path) -> Pipeline:
        """The pipeline of a YAML file."""
        return cls(PipelineConfig.from_yaml(path))

    # ------------------------------------------------------------------ the slots

    @cached_property
    def embedder(self) -> Embedder:
        plugin: Embedder = self._build("embedder", {})
        return plugin

    @cached_property
    def chunker(self) -> Chunker:
        services = {"counter": lambda: self.embedder.counter, "generator": lambda: self.generator}
        plugin: Chunker = self._build("chunker", services)
        return plugin

    @cached_property
    def retriever(self) -> Retriever:
        services = {"counter": lambda: self.embedder.counter, "generator": lambda: self.generator}
        plugin: Retriever = self._build("retriever", services)
        return plugin

    @cached_property
    def selector(self) -> Selector:
        plugin: Selector = self._build("selector", {"counter": lambda: self.generator.counter})
        return plugin

    @cached_property
    def compressor(self) -> Compressor:
        services = {"counter": lambda: self.generator.counter, "generator": lambda: self.generator}
        plugin: Compressor = self._build("compressor", services)
        return plugin

    @cached_property
    def generator(self) -> Generator:
        plugin: Generator = self._build("generator", {"counter": lambda: self.embedder.counter})
        return plugin

    def _build(self, slot: str, services: Mapping[str, Any]) -> Any:
        everywhere = {"embedder": lambda: self.embedder} if slot != "embedder" else {}
        return build(slot, getattr(self.config, slot), services={**everywhere, **services}, path=slot)

    # ------------------------------------------------------------------ the verbs

    def parse(self, path: str | Path) -> Document:
        """The document of one file; InputError when it cannot be read."""
        from rag.limits import Limits
        from rag.reading import read_document

        return read_document(path, limits=Limits.from_dict(self.config.limits))

    def chunk(self, document: Document | str | Path) -> list[Chunk]:
        """The chunks of a document, or of a file."""
        if isinstance(document, str | Path):
            document = self.parse(document)
        return self.chunker.chunk(document)

    def decide(self, document: Document | str | Path) -> tuple[list[Chunk], dict[str, Any]]:
        """As `chunk`, and why: the chunker's own record, or the word that the config names it."""
        if isinstance(document, str | Path):
            document = self.parse(document)
        chunks, decision = self.chunker.decide(document)
        named = {"chunker": spec_name(self.config.chunker), "reason": "named by the config"}
        return chunks, dict(decision or named)

    def index(
        self,
        paths: str | Path | Iterable[str | Path],
        into: str | Path,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        hidden: bool = False,
        delete_missing: bool = False,
        wait_seconds: float = 0.0,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Index:
        """Ingest files and folders into the index folder `into`, and open it for reading.

        Idempotent: unchanged files are skipped, changed ones replaced. Resumable: what a killed run had committed
        stays. Files that cannot be read are listed in `index.report.failed`; the others go in.
        """
        from rag.files import find_files
        from rag.limits import Limits
        from rag.store.store import Store
        from rag.twins import usable

        near_duplicates = usable(self.config.near_duplicates)
        paths = [paths] if isinstance(paths, str | Path) else list(paths)
        limits = Limits.from_dict(self.config.limits)
        listing = find_files(paths, include=include, exclude=exclude, hidden=hidden, limits=limits)
        roots = [Path(path).resolve() for path in paths if Path(path).is_dir()] if delete_missing else []
        with Store.create_or_open(Path(into), wait_seconds=wait_seconds) as store:
            report = self._ingest(store, listing, roots, limits, near_duplicates, on_progress)
            self._open_once(store)
        return Index(Store.open(Path(into)), report)

    def _ingest(
        self,
        store: Store,
        listing: FileListing,
        roots: Sequence[Path],
        limits: Limits,
        near_duplicates: str,
        on_progress: Callable[[Progress], None] | None,
    ) -> IngestReport:
        from rag.executors._work import FileWork, name_cuts
        from rag.ingest import Ingestion
        from rag.tokens import counter_name
        from rag.twins import Twins

        config, embedder = self.config, self.embedder if self.retriever.uses_vectors else None
        fingerprint = self._claim(store, embedder)
        counter = counter_name(self.embedder.counter)
        twins = None if near_duplicates == "off" else Twins(store, config.duplicate_threshold)
        work = FileWork(
            {slot: getattr(config, slot) for slot in ("chunker", "embedder", "generator")},
            limits=limits,
            cuts=name_cuts(self.chunker, counter),
            vectors=embedder.fingerprint if embedder else "",
            signatures=twins is not None,
            chunker=lambda: self.chunker,
        )
        executor: Executor = self._build("executor", {})
        with closing(executor.open(work)) as runner:
            run = Ingestion(
                store=store,
                chunker=self.chunker,
                embedder=embedder,
                fingerprint=fingerprint,
                counter=counter,
                runner=runner,
                limits=limits,
                twins=twins,
                leave_out=near_duplicates == "skip",
                sentences=self.embedder if config.sentences else None,
                on_progress=batch_spans(on_progress),
            )
            return run.run(listing, delete_below=roots)

    def _open_once(self, store: Store) -> None:
        """Let the retriever publish its derived files, while the writer lock is held and when chunks have changed."""
        ready = {"generation": store.generation, "retriever": repr(self.retriever)}
        if store.manifest().get("ready") != ready or not store.derived_present():
            with store.corpus() as corpus:
                self.retriever.open(corpus).close()
            store.set_manifest({**store.manifest(), "ready": ready})

    def prefill_kv(self, index: Index | None) -> int:
        """Make the keys and values of all chunks ahead, those that are not kept yet; how many were made. A run that was
        interrupted goes on where it was. None only says, by ConfigError, whether this pipeline keeps any."""
        from rag.generators._neighbours import no_vectors
        from rag.generators.local import LocalGenerator

        generator = self.generator
        if not isinstance(generator, LocalGenerator) or generator.reuse != "chunk":
            raise ConfigError(
                "keys and values of chunks are kept by the generator local with reuse: chunk, and this config has "
                f"{spec_name(self.config.generator)}. Set generator: {{use: local, reuse: chunk}}"
            )
        if generator.blocks == "neighbour-mean" and not self.retriever.uses_vectors:
            raise no_vectors()
        if index is None:
            return 0
        rows = [int(row) for row in index.corpus.rows()]
        parts = (rows[at : at + _CHUNKS_AT_ONCE] for at in range(0, len(rows), _CHUNKS_AT_ONCE))
        return sum(generator.prefill_kv(index.corpus.chunks(part), index.corpus) for part in parts)

    @traced("retrieval", "retriever")
    def search(
        self, question: str, index: Index | str | Path, *, k: int | None = None, where: Filter | None = None
    ) -> list[Hit]:
        """The best `k` chunks (default: the retriever's own `k`)."""
        question = _asked(question)
        if k is not None and k < 1:
            raise UsageError(f"k must be at least 1, not {k}")
        if isinstance(index, str | Path):
            with Index.open(index) as opened:
                return self.search(question, opened, k=k, where=where)
        self._check_vectors(index)
        try:
            return index.searcher(self.retriever).search(question, k or self.retriever.k, where)
        except KeyError as error:  # a row that the snapshot itself has named
            raise IndexDamagedError(
                f"{index.directory}: its tables disagree about chunk row {error}. Run `rag verify` for the details and "
                "`rag repair` to mend the index."
            ) from error

    @traced("invoke_workflow")
    def ask(
        self,
        question: str,
        index: Index | str | Path,
        *,
        where: Filter | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Retrieve, select, compress, generate. The answer carries its ledger and trace and is kept as a run."""
        question = _asked(question)
        if isinstance(index, str | Path):
            with Index.open(index) as opened:
                return self.ask(question, opened, where=where, on_text=on_text)
        found = self._find(question, index, where)
        at = time.perf_counter()
        return self._written(found, self.generator.generate(found.context, index.corpus, on_text), at, index)

    def ask_many(
        self, questions: Iterable[str], index: Index | str | Path, *, where: Filter | None = None, at_once: int = 64
    ) -> Iterator[Answer | RagError]:
        """As `ask` for each of `questions`, in their order: the answer, or the error of a question that has none.

        Where the generator writes several answers together, `at_once` questions are looked up first, and those whose
        prompts begin alike share that part of the work: more share more, and wait longer. Else one is answered after
        the other. What concerns every question (the config, the index, a missing model) is raised, not returned.
        """
        from rag.generators._many import WritesMany

        if at_once < 1:
            raise UsageError(f"at_once must be at least 1, not {at_once}")
        if isinstance(index, str | Path):
            with Index.open(index) as opened:
                yield from self.ask_many(questions, opened, where=where, at_once=at_once)
            return
        generator, todo = self.generator, iter(questions)
        if not isinstance(generator, WritesMany) or not generator.batches:
            for question in todo:
                yield tried(self.ask, question, index, where=where)
            return
        while some := list(islice(todo, at_once)):
            found = [tried(self._find, question, index, where) for question in some]
            contexts = [one.context for one in found if isinstance(one, Answer)]
            made = iter(generator.generate_many(contexts, index.corpus))
            for one in found:
                written = next(made) if isinstance(one, Answer) else one
                if isinstance(written, _OF_ALL):
                    raise written
                if isinstance(one, Answer) and isinstance(written, Generation):
                    yield self._written(one, written, time.perf_counter() - written.stats.total_seconds, index)
                elif isinstance(written, RagError):
                    yield written

    def _find(self, question: str, index: Index, where: Filter | None) -> Answer:
        """Retrieve, select, compress: all of an answer but its text."""
        question = _asked(question)
        trace: list[StageTrace] = []
        at = time.perf_counter()
        hits = self.search(question, index, where=where)
        at = self._note(trace, "retrieve", at, len(index.corpus), len(hits))
        bubble = self.selector.select(question, hits, index.corpus)
        at = self._note(
            trace, "select", at, len(hits), len(bubble.hits), tokens=bubble.token_count, budget=bubble.budget
        )
        context = self.compressor.compress(bubble, index.corpus)
        self._note(trace, "compress", at, len(bubble.hits), len(context.pieces), keep_ratio=context.keep_ratio)
        return Answer(
            question=question, text="", citations=(), sentences=(), supported=(), context=context, bubble=bubble,
            prompt=Prompt(), stats=GenerationStats(), trace=tuple(trace), candidates=tuple(hits),
        )  # fmt: skip

    def _written(self, found: Answer, made: Generation, started: float, index: Index) -> Answer:
        """With the text, kept as a run."""
        trace = list(found.trace)
        self._note(trace, "generate", started, len(found.context.pieces), len(made.citations), **made.notes)
        stage_span(trace[-1], made.stats)
        answer = replace(
            found, text=made.text, citations=made.citations, sentences=made.sentences, supported=made.supported,
            prompt=made.prompt, stats=made.stats, trace=tuple(trace),
        )  # fmt: skip
        return _kept(answer, index, self.config)

    def describe(self) -> str:
        """The YAML of this pipeline."""
        return self.config.to_yaml()

    # ------------------------------------------------------------------ helpers

    def _note(
        self, trace: list[StageTrace], stage: str, started: float, items_in: int, items_out: int, **notes: Any
    ) -> float:
        """Append a stage to the trace; the time now."""
        slot = {"retrieve": "retriever", "select": "selector", "compress": "compressor", "generate": "generator"}[stage]
        plugin, now = spec_name(getattr(self.config, slot)), time.perf_counter()
        trace.append(
            StageTrace(
                stage=stage, plugin=plugin, seconds=now - started, items_in=items_in, items_out=items_out, notes=notes
            )
        )
        stage_span(trace[-1])
        return now

    def _claim(self, store: Store, embedder: Embedder | None) -> str | None:
        """Write the manifest, or check that this pipeline may add to what is there; the name of the vectors."""
        manifest, ours = store.manifest(), embedder.fingerprint if embedder else None
        theirs = manifest.get("fingerprint")
        if embedder and theirs and embedder.agrees_with(theirs):
            ours = theirs  # another precision on another machine: the index keeps its name for them
        if ours and theirs and ours != theirs:
            raise ConfigError(
                f"{store.directory} holds vectors of {theirs!r}, this pipeline makes {ours!r}; they cannot be mixed. "
                f"Use the same embedder, or ingest into a new --index folder"
            )
        if theirs and not ours:
            raise ConfigError(
                f"{store.directory} holds vectors of {theirs!r}, and this config would add chunks without any. "
                f"Use a retriever that reads vectors, or ingest into a new --index folder"
            )
        wanted = {
            "config": self.config.for_index(),
            "fingerprint": ours,
            "dimension": embedder.dimension if embedder else None,
            "counter": self.embedder.counter.name,
        }
        if any(manifest.get(key) != value for key, value in wanted.items()):
            store.set_manifest({**manifest, **wanted})
        return ours

    def _check_vectors(self, index: Index) -> None:
        if not self.retriever.uses_vectors or not len(index.corpus):
            return
        theirs = index.manifest().get("fingerprint")
        if theirs is None:
            raise ConfigError(
                f"{index.directory} was ingested without vectors, and retriever "
                f"{spec_name(self.config.retriever)!r} reads them. Use retriever bm25, or ingest again with this config"
            )
        if not self.embedder.agrees_with(theirs):
            raise ConfigError(
                f"{index.directory} was built with {theirs!r}, this config asks with {self.embedder.fingerprint!r}. "
                f"Use the embedder that the index was built with (rag stats shows it)"
            )


def _asked(question: str) -> str:
    if not question.strip():
        raise UsageError("the question is empty; write one, such as: rag ask 'Who approves travel?'")
    return question


def _kept(answer: Answer, index: Index, config: PipelineConfig) -> Answer:
    from rag.replay import about

    run_id = index.store.add_run({**answer.to_dict(), **about(answer, index.corpus), "config": config.to_dict()})
    return replace(answer, run_id=run_id)


def tried(work: Callable[..., Answer], *given: Any, **named: Any) -> Answer | RagError:
    """What `work` gives, or its error; one that the next question meets as well is raised."""
    try:
        return work(*given, **named)
    except _OF_ALL:
        raise
    except RagError as error:
        return error
