"""The work of one file: read, hash, parse, chunk, check, sign; and of a batch of chunks: embed.

It runs wherever an executor puts it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.embedders._chunks import embed_chunks
from rag.errors import ConfigError, InputError, MissingError, RagError
from rag.executors._frames import Frame, outcome_frame, refusal, to_batch, to_job, vectors_frame
from rag.files import FoundFile, read_file
from rag.jobs import Batch, Job, Outcome, Work
from rag.limits import Limits
from rag.parsers._sandbox import ParserPool
from rag.protocols import Chunker
from rag.registry import Spec, build
from rag.store.checks import check_entry
from rag.store.records import Entry, FileRecord
from rag.tokens import counter_name
from rag.types import Chunk, Document

if TYPE_CHECKING:
    from rag.protocols import Embedder, Vectors

__all__ = ["FileWork", "answer", "name_cuts"]


class _ChunkerError(Exception):
    """A chunker raised what it should not."""


class FileWork(Work):
    """What a config says about single files. `chunker` gives the plugin when the first document is there to be cut.

    Without one the chunker is built from `slots`: the specs of chunker, embedder and generator. `cuts` names the
    chunker and its tokenizer in full, `vectors` is the fingerprint of the embedder; a plugin built elsewhere that
    turns out to be another one is a ConfigError.
    """

    def __init__(
        self,
        slots: Mapping[str, Spec],
        *,
        limits: Limits,
        cuts: str = "",
        vectors: str = "",
        signatures: bool = False,
        chunker: Callable[[], Chunker] | None = None,
    ) -> None:
        self._slots = dict(slots)
        self._limits = limits
        self._cuts = cuts
        self._vectors = vectors
        self._signatures = signatures
        self._services: dict[str, Any] = {}
        self._chunker = chunker or self._build
        self._pool = ParserPool(limits)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FileWork:
        """The inverse of `describe`."""
        return cls(**{**values, "limits": Limits.from_dict(values["limits"])})

    def describe(self) -> dict[str, Any]:
        names = {"cuts": self._cuts, "vectors": self._vectors, "signatures": self._signatures}
        return {"slots": self._slots, "limits": self._limits.to_dict(), **names}

    def copy(self) -> FileWork:
        names = {"cuts": self._cuts, "vectors": self._vectors}
        chunker: Callable[[], Chunker] = lambda: self.chunker  # noqa: E731  one plugin for all threads
        return FileWork(self._slots, limits=self._limits, **names, signatures=self._signatures, chunker=chunker)

    def close(self) -> None:
        self._pool.close()

    @cached_property
    def chunker(self) -> Chunker:
        """The chunker; built when first used."""
        return self._chunker()

    @cached_property
    def embedder(self) -> Embedder:
        """The embedder of the config; ConfigError when its vectors are not those that the caller's makes."""
        embedder: Embedder = self._service("embedder")
        if self._vectors not in ("", embedder.fingerprint):
            raise ConfigError(
                f"embedder: this pipeline makes vectors of {self._vectors!r}, a worker would make "
                f"{embedder.fingerprint!r}. Give all machines the same model and processor, or name the precision; or "
                "set embed: false for the executor, so that nothing is embedded in workers"
            )
        return embedder

    def embed(self, batch: Batch) -> Mapping[str, Vectors]:
        embedder = self.embedder
        try:
            return embed_chunks(embedder, batch.chunks, batch.texts.__getitem__)
        except RagError:
            raise
        except Exception as error:  # a library's own error is no death of the worker
            raise RagError(f"the embedder failed: {type(error).__name__}: {error}") from error

    def run(self, job: Job) -> Outcome:
        found = FoundFile(
            path=Path(job.path), source=job.source, parser=job.parser, size_bytes=job.size_bytes, mtime_ns=0
        )
        try:
            data = read_file(found, self._limits)
        except InputError as error:
            return Outcome(error=str(error))
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        if digest == job.known_hash:
            return Outcome(content_hash=digest)
        try:
            document = self._pool.parse(job.parser, data, job.source)
            del data
            chunks, decision = self._cut(document)
        except InputError as error:
            return Outcome(content_hash=digest, error=str(error), lasting=True)
        except (MissingError, _ChunkerError) as error:  # not the file's fault, so that it is tried again next time
            return Outcome(content_hash=digest, error=str(error))
        signature = self._sign(document.text) if self._signatures else None
        return Outcome(content_hash=digest, document=document, chunks=chunks, decision=decision, signature=signature)

    def _cut(self, document: Document) -> tuple[tuple[Chunk, ...], Mapping[str, Any] | None]:
        chunker = self.chunker
        try:
            cut, decision = chunker.decide(document)
        except (ConfigError, InputError, MissingError):
            raise
        except Exception as error:  # one document must not end the run; the next one may be cut well
            raise _ChunkerError(f"{document.source}: the chunker failed: {type(error).__name__}: {error}") from error
        record = FileRecord(
            origin="-", source=document.source, content_hash="-", size_bytes=0, mtime_ns=0, recipe="-",
            doc_id=document.id,
        )  # fmt: skip
        chunks = tuple(cut)
        check_entry(Entry(file=record, document=document, chunks=chunks, decision=decision))
        return chunks, decision

    def _sign(self, text: str) -> bytes:
        from rag.duplicates import sign

        return sign(text)

    def _build(self) -> Chunker:
        """The chunker of the config, its services built when it asks for them."""
        chunker: Chunker = build("chunker", self._slots["chunker"], services=self._makers(), path="chunker")
        counter = self._service("embedder").counter
        cuts = name_cuts(chunker, counter_name(counter))
        if self._cuts not in ("", cuts):
            raise ConfigError(
                f"chunker: this pipeline cuts with {self._cuts}, a worker process would build {cuts}. "
                "Plugins that are put in by hand work with the executors serial and threads only"
            )
        return chunker

    def _makers(self) -> dict[str, Callable[[], Any]]:
        return {
            "embedder": lambda: self._service("embedder"),
            "generator": lambda: self._service("generator"),
            "counter": lambda: self._service("embedder").counter,
        }

    def _service(self, name: str) -> Any:
        """The plugin of a slot, made once."""
        if name not in self._services:
            self._services[name] = build(name, self._slots[name], services=self._makers(), path=name)
        return self._services[name]


def answer(work: FileWork, verb: str, values: Mapping[str, Any]) -> Frame:
    """A worker's answer to a request of `rag.executors._crew`, also when it cannot be met."""
    try:
        if verb == "embed":
            return vectors_frame(work.embed(to_batch(values)))
        return outcome_frame(work.run(to_job(values)))
    except RagError as error:
        return refusal(error)


def name_cuts(chunker: Chunker, counter: str) -> str:
    """Names a chunker with its parameters, what else shapes its chunks, and the tokenizer that sizes them."""
    return ", ".join(filter(None, (repr(chunker), chunker.shaped_by, counter)))
