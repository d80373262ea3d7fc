"""Files -> documents -> chunks -> vectors -> store, one durable batch at a time.

An executor reads, parses, cuts, and embeds where it can; everything that decides or writes happens here, in the order
of the listing, so that any executor with any number of workers gives the same bytes. Batches are cut from the whole
sorted listing, unchanged files included, so that a run that is resumed after a kill forms the very same batches as one
that was never interrupted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rag.embedders._chunks import check_reads
from rag.executors._vectors import Embedded, VectorStage
from rag.files import FileListing, FoundFile
from rag.jobs import Job, Outcome
from rag.limits import Limits
from rag.planning import Plan, Planner, batches, cutting, left_out, missing, recipe, twin_of
from rag.report import Failure, IngestReport, NearDuplicate, Progress
from rag.store.presplit import keep_sentences
from rag.store.records import Entry, FileRecord
from rag.twins import Twins

if TYPE_CHECKING:
    from rag.jobs import Runner
    from rag.protocols import Chunker, Embedder, Vectors
    from rag.store.store import Store

__all__ = ["Failure", "IngestReport", "Ingestion", "NearDuplicate", "Progress", "cutting", "recipe"]


@dataclass
class _Batch:
    """What will be committed together."""

    entries: list[Entry] = field(default_factory=list)
    touched: list[FileRecord] = field(default_factory=list)
    broken: list[FileRecord] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    moved: dict[str, str] = field(default_factory=dict)
    """Document id -> the origin that it had, which is among `removed`."""
    source: str = ""
    done: int = 0
    bytes_done: int = 0


@dataclass
class _Tally:
    """The report as it grows."""

    documents: int = 0
    chunks: int = 0
    embedded: int = 0
    sentences: int = 0
    skipped: int = 0
    left_out: int = 0
    failed: list[Failure] = field(default_factory=list)
    near_duplicates: list[NearDuplicate] = field(default_factory=list)
    done: int = 0
    bytes_done: int = 0
    bytes_read: int = 0

    def fail(self, source: str, error: str) -> None:
        """Note a failure whose reason does not say its source twice."""
        self.failed.append(Failure(source=source, error=error.removeprefix(f"{source}: ")))


@dataclass
class Ingestion:
    """One run of ingestion into a writable store; use it once.

    `embedder` is None when no retriever reads vectors; `fingerprint` is the name that the index has for its vectors;
    `counter` names the tokenizer that sizes the chunks. `twins` finds near-duplicates, `leave_out` keeps them out.
    `sentences` embeds every sentence of what is in the index, so that questions need not; None: they do.
    """

    store: Store
    chunker: Chunker
    embedder: Embedder | None
    fingerprint: str | None
    counter: str
    runner: Runner
    limits: Limits = field(default_factory=Limits)
    twins: Twins | None = None
    leave_out: bool = False
    sentences: Embedder | None = None
    on_progress: Callable[[Progress], None] | None = None
    changed: bool = field(default=False, init=False)
    """True when something was committed."""

    def run(self, listing: FileListing, *, delete_below: Sequence[Path] = ()) -> IngestReport:
        """Ingest the listing; every batch is durable when the next one starts.

        Indexed files below the folders `delete_below` that exist no longer are removed, last of all, so that what
        has moved finds its vectors. ConfigError when the embedder cannot embed what the chunker cuts.
        """
        if self.embedder is not None:
            check_reads(self.chunker, self.embedder)
        self._started = time.perf_counter()
        self._planner = Planner(
            store=self.store,
            chunker=self.chunker,
            counter=self.counter,
            fingerprint=self.fingerprint,
            limits=self.limits,
            left_out_at=self.twins.threshold if self.twins and self.leave_out else None,
            started_ns=time.time_ns(),
        )
        self._listing, self._tally, self._batch = listing, _Tally(), _Batch()
        self._bytes_total = sum(found.size_bytes for found in listing.files)
        self._vectors = VectorStage[_Batch](self.store, self.embedder, self.fingerprint, self.runner)
        self._asleep: list[tuple[FoundFile, str]] = []
        for source, error in listing.problems:
            self._tally.fail(source, error)
        self._pass(listing.files)
        woken = [found for found, twin in self._asleep if self.twins is None or not self.twins.is_there(twin)]
        if woken:
            self._tally.left_out -= len(woken)
            self._pass(woken, again=True)
        gone = missing(self.store, listing, delete_below) if delete_below else []
        if gone:
            self.store.commit(removed=gone)
            self.changed = True
        if self.sentences:  # those of documents that an earlier run left without
            self._tally.sentences += keep_sentences(self.store, self.sentences)
        return self._report(len(gone))

    def _report(self, removed: int) -> IngestReport:
        tally = self._tally
        return IngestReport(
            documents=tally.documents,
            chunks=tally.chunks,
            embedded=tally.embedded,
            sentences=tally.sentences,
            skipped=tally.skipped,
            removed=removed,
            left_out=tally.left_out,
            ignored=self._listing.ignored,
            ignored_types=tuple(sorted(self._listing.ignored_suffixes)),
            failed=tuple(tally.failed),
            near_duplicates=tuple(tally.near_duplicates),
            seconds=time.perf_counter() - self._started,
        )

    # ------------------------------------------------------------------ one pass over files

    def _pass(self, files: Sequence[FoundFile], *, again: bool = False) -> None:
        """Plan, read and commit. The runner pulls jobs ahead of the outcomes that it gives; plans wait in between."""
        waiting: deque[Plan] = deque()

        def jobs() -> Iterator[Job]:
            for group in batches(files):
                for plan in self._planner.plans(group, again=again):
                    waiting.append(plan)
                    if plan.job:
                        yield plan.job
                    else:
                        self._settle(waiting)

        for outcome in self.runner.run(jobs()):
            self._settle(waiting)
            plan = waiting.popleft()
            self._take(plan, outcome)
            self._end(plan)
            self._settle(waiting)
        self._commit_all(self._vectors.rest())

    def _settle(self, waiting: deque[Plan]) -> None:
        """Put those plans behind us that need no outcome and wait for none before them."""
        while waiting and not waiting[0].job:
            plan = waiting.popleft()
            if plan.error:
                self._tally.fail(plan.source, plan.error)
            elif plan.old:
                self._keep(plan.old, plan.found)
            self._end(plan)

    def _take(self, plan: Plan, outcome: Outcome) -> None:
        """Put the outcome of a job into the batch."""
        old, document = plan.old, outcome.document
        self._tally.bytes_read += plan.found.size_bytes
        if outcome.error and not (outcome.lasting and outcome.content_hash):
            self._tally.fail(plan.source, outcome.error)
            return
        if plan.moved_from:
            self._batch.removed.append(plan.moved_from)
            if document:
                self._batch.moved[document.id] = plan.moved_from
        if outcome.error:
            self._batch.broken.append(self._planner.record(plan, outcome.content_hash, error=outcome.error))
            self._tally.fail(plan.source, outcome.error)
        elif document:
            record = self._planner.record(plan, outcome.content_hash, doc_id=document.id)
            entry = Entry(
                file=record,
                document=document,
                chunks=outcome.chunks,
                decision=outcome.decision,
                signature=outcome.signature,
            )
            self._put(plan, entry)
        elif old:
            record = self._planner.record(plan, outcome.content_hash, doc_id=old.doc_id, error=old.error)
            if record != old:
                self._batch.touched.append(record)
            self._keep(old, plan.found)

    def _put(self, plan: Plan, entry: Entry) -> None:
        """A document goes into the batch, or stays out because its twin is in."""
        document, twin = entry.document, None
        if self.twins and entry.signature:
            twin = self.twins.find(document.id, document.source, entry.signature)
            if plan.old and plan.old.doc_id and plan.old.doc_id != document.id:
                self.twins.drop(plan.old.doc_id)
        if twin:
            self._tally.near_duplicates.append(
                NearDuplicate(
                    source=document.source, of=twin.source, similarity=twin.similarity, left_out=self.leave_out
                )
            )
        if self.twins and twin and self.leave_out:
            self._tally.left_out += 1
            self.twins.drop(document.id)
            record = self._planner.record(plan, entry.file.content_hash, error=left_out(twin))
            self._batch.broken.append(record)
            self._batch.removed.append(record.origin)  # an older version of it goes too
            return
        if self.twins and entry.signature:
            self.twins.add(document.id, document.source, entry.signature)
        self._batch.entries.append(entry)

    def _keep(self, old: FileRecord, found: FoundFile) -> None:
        """A file that is what it was."""
        if old.error is None:
            self._tally.skipped += 1
        elif twin := twin_of(old.error):
            self._tally.left_out += 1
            self._asleep.append((found, twin))
        else:
            self._tally.fail(old.source, old.error)

    # ------------------------------------------------------------------ commits

    def _end(self, plan: Plan) -> None:
        """Count a file, and commit when it is the last of its batch."""
        batch, tally = self._batch, self._tally
        tally.done += 1
        tally.bytes_done += plan.found.size_bytes
        if not plan.ends_batch:
            return
        batch.source, batch.done, batch.bytes_done = plan.source, tally.done, tally.bytes_done
        self._batch = _Batch()
        self._commit_all(self._vectors.put(batch, batch.entries))

    def _commit_all(self, ready: Iterable[Embedded[_Batch]]) -> None:
        """Make each batch durable before the next one is looked at."""
        for one in ready:
            self._commit(one.batch, one.vectors, one.lost)
            self._tally.embedded += len(one.vectors)
            self._tally.documents += len(one.batch.entries)
            self._tally.chunks += sum(len(entry.chunks) for entry in one.batch.entries)
            if self.on_progress:
                self.on_progress(self._progress(one.batch))

    def _progress(self, batch: _Batch) -> Progress:
        tally, seconds, total = self._tally, time.perf_counter() - self._started, len(self._listing.files)
        left = max(0, self._bytes_total - batch.bytes_done)
        return Progress(
            done=min(batch.done, total),
            total=total,
            bytes_done=min(batch.bytes_done, self._bytes_total),
            bytes_total=self._bytes_total,
            source=batch.source,
            failed=len(tally.failed),
            seconds=round(seconds, 3),
            eta_seconds=round(seconds * left / tally.bytes_read, 1) if tally.bytes_read else None,
        )

    def _commit(self, batch: _Batch, vectors: Mapping[str, Vectors], lost: Mapping[str, str]) -> None:
        """Make the batch durable, without the documents that could not be embedded."""
        for entry in [entry for entry in batch.entries if entry.document.id in lost]:
            self._tally.fail(entry.document.source, lost[entry.document.id])
            batch.entries.remove(entry)
            if entry.document.id in batch.moved:
                batch.removed.remove(batch.moved[entry.document.id])
            if self.twins:
                self.twins.drop(entry.document.id)
        if self.fingerprint is not None:
            batch.entries = [_with_vectors(entry, vectors, self.fingerprint) for entry in batch.entries]
        if batch.entries or batch.touched or batch.broken:
            self.changed = True
            self.store.commit(entries=batch.entries, failed=batch.broken, touched=batch.touched, removed=batch.removed)
        new = {entry.document.id for entry in batch.entries}
        if self.twins:
            self.twins.commit(new)
        if self.sentences:
            self._tally.sentences += keep_sentences(self.store, self.sentences, new)


def _with_vectors(entry: Entry, vectors: Mapping[str, Vectors], fingerprint: str) -> Entry:
    keys = sorted({chunk.key for chunk in entry.chunks} & vectors.keys())
    return replace(entry, vectors={key: vectors[key] for key in keys}, fingerprint=fingerprint)
