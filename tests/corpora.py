"""A small, real corpus in memory for tests of retrievers and selectors, and hand-written texts to fill it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pkgutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag.errors import ConfigError
from rag.protocols import Corpus, Embedder, Filter
from rag.text import lexical_words, sentence_spans
from rag.tokens import WordCounter
from rag.types import Chunk, Document

if TYPE_CHECKING:
    from rag.protocols import Rows, Vectors

__all__ = ["TOPICS", "MemoryCorpus", "chunked", "plugins_of", "topic_corpus", "topic_documents"]


class MemoryCorpus(Corpus):
    """Rows are positions in `chunks`, so a changed corpus gives old rows to new chunks: a hard case on purpose.

    `embedder=None` leaves the corpus without vectors, `writable=False` makes it a read-only view.
    """

    def __init__(
        self,
        directory: Path,
        documents: Sequence[Document] = (),
        chunks: Sequence[Chunk] = (),
        *,
        embedder: Embedder | None = None,
        generation: int = 1,
        writable: bool = True,
    ) -> None:
        self.directory = directory
        self.generation = generation
        self._writable = writable
        self._documents = {document.id: document for document in documents}
        self._chunks = list(chunks)
        self._row = {chunk.id: row for row, chunk in enumerate(self._chunks)}
        self._matrix = None if embedder is None else embedder.embed([chunk.embed_text for chunk in self._chunks])
        self._words = sqlite3.connect(":memory:")
        self._words.execute("CREATE VIRTUAL TABLE words USING fts5(body, tokenize=\"unicode61 tokenchars '_'\")")
        self._words.executemany(
            "INSERT INTO words (rowid, body) VALUES (?, ?)",
            ((row, " ".join(lexical_words(chunk.embed_text))) for row, chunk in enumerate(self._chunks)),
        )

    def close(self) -> None:
        self._words.close()

    def __len__(self) -> int:
        return len(self._chunks)

    def chunks(self, rows: Sequence[int]) -> list[Chunk]:
        return [self._chunks[self._known(row)] for row in rows]

    def rows(self, where: Filter | None = None) -> Rows:
        found = [row for row, chunk in enumerate(self._chunks) if matches(where or {}, self._fields(chunk))]
        return np.array(found, dtype=np.int64)

    def rows_of(self, chunk_ids: Sequence[str]) -> list[int]:
        return [self._row[chunk_id] for chunk_id in chunk_ids]

    def vectors(self, rows: Sequence[int] | None = None) -> tuple[Rows, Vectors]:
        if self._matrix is None:
            raise ConfigError("this corpus was built without an embedder, so it has no vectors")
        wanted = range(len(self._chunks)) if rows is None else rows
        order = np.array([self._known(row) for row in wanted], dtype=np.int64)
        return order, self._matrix[order]

    def lexical(self, words: Sequence[str], k: int, where: Filter | None = None) -> list[tuple[int, float]]:
        if not words or k < 1:
            return []
        query = " OR ".join('"' + word.replace('"', '""') + '"' for word in words)
        allowed = json.dumps([int(row) for row in self.rows(where)])
        found = self._words.execute(
            "SELECT rowid, -bm25(words) AS score FROM words WHERE words MATCH ?"
            " AND rowid IN (SELECT value FROM json_each(?)) ORDER BY score DESC, rowid LIMIT ?",
            (query, allowed, k),
        )
        return [(int(row), float(score)) for row, score in found]

    def neighbours(self, chunk_id: str, before: int, after: int) -> list[Chunk]:
        home = self._chunks[self._row[chunk_id]].doc_id
        family = sorted((c for c in self._chunks if c.doc_id == home), key=lambda c: (c.span.start, c.span.end))
        at = [chunk.id for chunk in family].index(chunk_id)
        return family[max(0, at - before) : at] + family[at + 1 : at + 1 + after]

    def document(self, doc_id: str) -> Document:
        return self._documents[doc_id]

    def vector_parts(self, size: int) -> Iterator[tuple[Rows, Vectors]]:
        rows, matrix = self.vectors()
        for start in range(0, len(rows), size):
            yield rows[start : start + size], matrix[start : start + size]

    def derived(self, name: str) -> Path | None:
        path = self._derived_path(name)
        seal = path.with_name(path.name + ".sum")
        if not (path.exists() and seal.exists()):
            return None
        return path if hashlib.sha256(path.read_bytes()).hexdigest() == seal.read_text() else None

    def derived_of_any(self, name: str) -> Path | None:
        return self.derived(name)  # rows move here, so a file of another generation is of no use

    def publish(self, name: str, write: Callable[[Path], None]) -> Path | None:
        if not self._writable:
            return None
        path = self._derived_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
        path.with_name(path.name + ".sum").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
        return path

    def _derived_path(self, name: str) -> Path:
        return self.directory / "derived" / f"{self.generation}-{name}"

    def _known(self, row: int) -> int:
        if not 0 <= row < len(self._chunks):
            raise KeyError(row)
        return int(row)

    def _fields(self, chunk: Chunk) -> Mapping[str, Any]:
        document = self._documents[chunk.doc_id]
        fields = {"source": document.source, "doc_id": document.id, "title": document.title}
        meta = {f"meta.{name}": value for name, value in document.meta.items()}
        return {**fields, "section": " > ".join(chunk.section), **meta}


_TESTS: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": lambda value, given: bool(value == given),
    "ne": lambda value, given: bool(value != given),
    "lt": lambda value, given: bool(value < given),
    "le": lambda value, given: bool(value <= given),
    "gt": lambda value, given: bool(value > given),
    "ge": lambda value, given: bool(value >= given),
    "in": lambda value, given: value in given,
    "contains": lambda value, given: given in value,
}


def matches(where: Filter, fields: Mapping[str, Any]) -> bool:
    """True when `fields` satisfy the filter. An absent field satisfies `ne` and `exists: false` only."""
    return all(_holds(name, wanted, fields) for name, wanted in where.items())


def _holds(name: str, wanted: Any, fields: Mapping[str, Any]) -> bool:
    if name == "and":
        return all(matches(part, fields) for part in wanted)
    if name == "or":
        return any(matches(part, fields) for part in wanted)
    if name == "not":
        return not matches(wanted, fields)
    if name not in ("source", "doc_id", "title", "section") and not name.startswith("meta."):
        raise ConfigError(f"unknown filter field {name!r}; fields: source, doc_id, title, section, meta.NAME")
    tests = wanted if isinstance(wanted, Mapping) else {"eq": wanted}
    for operator, given in tests.items():
        if operator == "exists":
            good = (name in fields) == bool(given)
        elif operator not in _TESTS:
            raise ConfigError(f"unknown filter operator {operator!r}; operators: {', '.join(_TESTS)}, exists")
        else:
            good = _TESTS[operator](fields[name], given) if name in fields else operator == "ne"
        if not good:
            return False
    return True


TOPICS: Mapping[str, str] = {
    "bees.md": (
        "A honey bee colony keeps one queen, who lays up to two thousand eggs on a warm summer day. "
        "Worker bees visit clover and lime blossom and carry nectar home in a separate honey stomach. "
        "In winter the colony forms a tight cluster and shivers to hold the brood nest at thirty-four degrees. "
        "The varroa mite is the most harmful parasite of the hive; drone brood removal slows it down. "
        "Beekeepers harvest comb honey in July, once the cells are sealed with white wax."
    ),
    "bridges.md": (
        "A suspension bridge hangs its deck from vertical cables that pass the load to two main towers. "
        "Arch bridges push outward on their abutments, so firm rock on both banks is needed. "
        "Expansion joints let a steel deck grow several centimetres between a frosty night and a hot noon. "
        "Engineers test fatigue cracks in girders with ultrasound every two years. "
        "The Tacoma Narrows deck failed in 1940 because wind set up a twisting motion."
    ),
    "bread.md": (
        "Sourdough rises with wild yeast and lactic bacteria instead of baker's yeast. "
        "A wet dough of eighty percent hydration gives an open crumb but is hard to shape. "
        "Salt tightens gluten and slows fermentation, so bakers add it after the first rest. "
        "Steam in the first ten minutes keeps the crust soft while the loaf springs in the oven. "
        "Rye flour holds little gluten and is leavened with acid to keep the crumb from going gummy."
    ),
    "travel.md": (
        "Employees book domestic rail journeys themselves through the travel portal. "
        "Any trip above 5,000 EUR needs approval by the finance director before a ticket is bought. "
        "Receipts are handed in within thirty days; late claims are paid only once a year. "
        "Hotel rooms may cost up to 140 EUR a night, breakfast included. "
        "Mileage for a private car is refunded at thirty cents per kilometre."
    ),
    "volcano.md": (
        "Basaltic magma is runny and builds broad shield volcanoes such as Mauna Loa. "
        "Sticky rhyolite traps gas, and the pressure ends in explosive eruptions with pumice and ash. "
        "A lahar is a mudflow of ash and meltwater that follows river valleys for many kilometres. "
        "Seismometers hear tremor weeks before magma reaches the surface. "
        "Sulphur dioxide from the Pinatubo eruption cooled the globe by half a degree in 1992."
    ),
}
"""Source name -> five sentences each on a topic of its own; no sentence occurs twice."""


def topic_documents(sources: Iterable[str] = tuple(TOPICS)) -> list[Document]:
    """One document a topic, with its place in TOPICS as `meta.number`."""
    numbers = {source: number for number, source in enumerate(TOPICS)}
    return [
        Document(text=TOPICS[s], source=s, title=s.removesuffix(".md"), meta={"number": numbers[s]}) for s in sources
    ]


def chunked(document: Document) -> list[Chunk]:
    """One chunk per sentence, white space at the end included."""
    counter = WordCounter()
    spans = sentence_spans(document)
    return [Chunk.cut(document, span.start, span.end, counter=counter, chunker="sentence") for span in spans]


def topic_corpus(
    directory: Path,
    embedder: Embedder | None,
    documents: Sequence[Document] | None = None,
    *,
    generation: int = 1,
    writable: bool = True,
) -> MemoryCorpus:
    """The topics as sentence chunks; other documents may be given instead."""
    documents = topic_documents() if documents is None else documents
    chunks = [chunk for document in documents for chunk in chunked(document)]
    return MemoryCorpus(directory, documents, chunks, embedder=embedder, generation=generation, writable=writable)


def plugins_of(package: str) -> dict[str, Callable[..., Any]]:
    """Plugin name -> function of all services that makes it with its defaults, for every module of a room."""
    room = import_module(package)
    names = [module.name for module in pkgutil.iter_modules(room.__path__) if not module.ispkg]
    return {name.replace("_", "-"): _maker(f"{package}.{name}") for name in names if not name.startswith("_")}


_ROOMS = {"retriever": "retrievers", "selector": "retrievers.selectors", "compressor": "compressors"}


def _maker(module_name: str) -> Callable[..., Any]:
    """Services are taken as the plugin's fields ask for them; nested specs are made the same way."""

    def make(**services: Any) -> Any:
        module = import_module(module_name)
        classes = [value for value in vars(module).values() if isinstance(value, type)]
        [plugin] = [c for c in classes if c.__module__ == module_name and not c.__name__.startswith("_")]
        given: dict[str, Any] = {}
        for field in dataclasses.fields(plugin):
            if field.metadata.get("service"):
                given[field.name] = services[field.name]
            elif "nested" in field.metadata:
                given[field.name] = _nested(field.metadata["nested"], field.default, services)
        return plugin(**given)

    return make


def _nested(kind: str, spec: Any, services: Mapping[str, Any]) -> Any:
    if isinstance(spec, tuple):
        return tuple(_nested(kind, item, services) for item in spec)
    name, options = (spec, {}) if isinstance(spec, str) else (spec["use"], {k: spec[k] for k in spec if k != "use"})
    made = plugins_of(_ROOMS[kind])[name](**services)
    return dataclasses.replace(made, **options)
