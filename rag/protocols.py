"""What every kind of plugin promises. Plugins subclass these and are checked by tests/contracts.

A plugin is a frozen, keyword-only dataclass: its fields are its hyper-parameters. Two helpers declare the fields that
are none: `service()` is handed over by the pipeline, `nested()` is another plugin (or several). Capabilities are class
constants. Plugins hold no state that outlives a call, except an open `Searcher`; same input, same result.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from rag.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rag.answer import Generation
    from rag.types import Bubble, Chunk, CompressedContext, Document, Hit

    Vectors = NDArray[np.float32]
    Rows = NDArray[np.int64]

__all__ = [
    "Chunker",
    "Compressor",
    "Corpus",
    "Embedder",
    "Filter",
    "Generator",
    "Metric",
    "Parser",
    "Retriever",
    "Searcher",
    "Selector",
    "SentenceView",
    "SliceCounter",
    "TextModel",
    "TokenCounter",
    "TokenLoss",
    "TokenNeed",
    "nested",
    "service",
]

Filter = Mapping[str, Any]
"""A metadata filter: `{"source": "a.md"}`, `{"meta.year": {"ge": 2020}}`, `{"and": [..]}`, `{"or": [..]}`,
`{"not": ..}`. Several keys side by side must all hold.
Fields: `source`, `doc_id`, `title`, `section`, `meta.NAME`. Operators: eq, ne, lt, le, gt, ge, in, contains, exists.
"""

TokenLoss = tuple[int, int, float]
"""Half-open range of characters of a token, and its negative log likelihood in nats."""

TokenNeed = tuple[int, int, float, float, tuple[str, ...]]
"""A TokenLoss, ATLAS's need to retrieve at that token (0 to 1), and the words before it that it leans on."""


def service(default: Any = MISSING) -> Any:
    """A field that the pipeline fills by its name: `embedder`, `counter`, `generator` or, for parsers, `limits`.

    Where nobody offers the service, the plugin gets `default`; without one it cannot be built.
    """
    return field(default=default, metadata={"service": True}, repr=False)


def nested(kind: str, default: Any = None) -> Any:
    """A field that holds another plugin of `kind`, or a tuple of them; `default` is a spec or a tuple of specs."""
    return field(default=default, metadata={"nested": kind})


class SliceCounter(Protocol):
    """Counts the tokens of a slice. `rag.text.TokenMap` is the fast one, any TokenCounter is the plain one."""

    @abstractmethod
    def count_slice(self, text: str, start: int, end: int) -> int:
        """Exactly `count(text[start:end])`."""


class TokenCounter(SliceCounter, Protocol):
    """Counts tokens as one model does, special tokens excluded.

    `limit` is how many tokens that model reads (None: no limit). `additive` says that counts add up over a
    seam that has a space, tab or line end on one side: then a document is tokenised once for all its chunks.
    """

    name: str
    limit: int | None
    additive: bool

    @abstractmethod
    def count(self, text: str) -> int:
        """Number of tokens of `text` alone; 0 for ""."""

    @abstractmethod
    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Half-open character range of every token, in order. Characters may lie between or outside of them."""

    def count_slice(self, text: str, start: int, end: int) -> int:
        return self.count(text[start:end])


class Parser(Protocol):
    """Bytes of one file -> Document with blocks and pages as exact spans."""

    suffixes: ClassVar[tuple[str, ...]]
    """Lower-case file suffixes with their dot, such as ".pdf"."""
    version: ClassVar[int]
    """Raised whenever the same bytes would give another text, so that indexes know to parse again."""
    isolate: ClassVar[bool] = False
    """True for formats whose readers can crash or hang: they run in a child process with limits."""

    @abstractmethod
    def parse(self, data: bytes, *, source: str) -> Document:
        """The document; InputError that names the reason when the bytes cannot be read, or hold no text."""


class Chunker(Protocol):
    """Document -> chunks, sorted by start. With overlap off they tile the text: joined, they are the text."""

    needs_question: ClassVar[bool] = False
    reads_around: ClassVar[bool] = False
    """True when vectors are pooled from tokens that are read with the text around: the embedder must `reads_within`."""

    @property
    def shaped_by(self) -> str:
        """What shapes the chunks beside parameters and tokenizer: a language model, the content of a file; "" for
        nothing. When it changes, files are cut again.
        """
        return ""

    @abstractmethod
    def chunk(self, document: Document) -> list[Chunk]:
        """The chunks; [] for an empty text. header + text never exceed `counter.limit` tokens."""

    def decide(self, document: Document) -> tuple[list[Chunk], Mapping[str, Any] | None]:
        """The chunks, and why they are what they are (JSON; None when there was nothing to decide).

        A record has at least `chunker` (whose chunks they are) and `reason` (a sentence).
        """
        return self.chunk(document), None


class SentenceView(Protocol):
    """A document as sentences that tile it, embedded once; several chunkers and metrics share one."""

    document: Document

    @property
    @abstractmethod
    def starts(self) -> Sequence[int]:
        """First character of each sentence."""

    @property
    @abstractmethod
    def ends(self) -> Sequence[int]:
        """The character after each sentence; the last is len(text)."""

    @property
    @abstractmethod
    def tokens(self) -> NDArray[np.int64]:
        """(n,) tokens of each sentence alone."""

    @property
    @abstractmethod
    def vectors(self) -> Vectors:
        """(n, d) unit vectors."""


class Metric(Protocol):
    """An intrinsic measure of how a document was cut: 0 to 1, higher is better."""

    label: ClassVar[str]
    """The short name of the measure in tables, such as "ICC"."""

    @abstractmethod
    def score(self, chunks: Sequence[Chunk], view: SentenceView) -> float | None:
        """The score of chunks that tile or cover `view.document`; None where the measure says nothing about them."""


class Embedder(Protocol):
    """Texts -> unit vectors."""

    matches_meaning: ClassVar[bool] = True
    """False for vectors that match words only, and so tell nothing that words do not tell better."""

    @property
    def light(self) -> Embedder:
        """The same model where it starts fastest, for a few short texts beside a question."""
        return self

    @property
    @abstractmethod
    def dimension(self) -> int:
        """Length of every vector."""

    @property
    @abstractmethod
    def counter(self) -> TokenCounter:
        """The model's own tokenizer; its `limit` is the hard ceiling for header + text of a chunk."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Names model, pooling and precision; the vectors of an index carry one fingerprint."""

    def agrees_with(self, fingerprint: str) -> bool:
        """True when vectors of that fingerprint may stand beside ours: the same model, and equal up to rounding."""
        return fingerprint == self.fingerprint

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> Vectors:
        """(len(texts), dimension) float32, rows of unit length. A text over `counter.limit` tokens is an InputError."""

    @property
    def reads_within(self) -> bool:
        """True when `embed_within` works: the model's vectors of single tokens can be had."""
        return False

    def embed_within(self, pieces: Sequence[tuple[str, int, int]]) -> Vectors:
        """(len(pieces), dimension) float32, rows of unit length: of text[start:end], read with the text around it.

        A piece is (text, start, end); a text may be of any length. A text that is one whole piece, and that the model
        reads at once, has the vector that `embed` gives it. ConfigError where the model gives no vectors of tokens.
        """
        raise ConfigError(
            f"embedder {self.fingerprint!r} gives no vectors of single tokens, which late chunking needs: "
            "set embedder: minilm, or a chunker other than late"
        )

    @abstractmethod
    def embed_question(self, text: str) -> Vectors:
        """(dimension,) float32, unit length. Loads as little as it can; an over-long question is windowed."""


@runtime_checkable
class Corpus(Protocol):
    """A consistent, read-only view of what is indexed, as the store offers it to retrievers and selectors.

    A row is an integer that names a chunk inside this index. Reading order is (document row, start).
    """

    directory: Path
    generation: int
    """Grows with every change of the chunks; derived files carry it."""

    def __len__(self) -> int:
        """Number of chunks."""

    @abstractmethod
    def chunks(self, rows: Sequence[int]) -> list[Chunk]:
        """Chunks in the order of `rows`; KeyError for an unknown row."""

    @abstractmethod
    def rows(self, where: Filter | None = None) -> Rows:
        """Sorted rows of all chunks that match; ConfigError names a bad filter."""

    @abstractmethod
    def rows_of(self, chunk_ids: Sequence[str]) -> list[int]:
        """Rows of known chunk ids, in order; KeyError for an unknown id."""

    @abstractmethod
    def vectors(self, rows: Sequence[int] | None = None) -> tuple[Rows, Vectors]:
        """(rows, matrix), of all chunks in row order or of `rows` in their order. ConfigError without vectors."""

    @abstractmethod
    def lexical(self, words: Sequence[str], k: int, where: Filter | None = None) -> list[tuple[int, float]]:
        """Best `k` (row, BM25 score) for any of `words`, best first, ties by row."""

    @abstractmethod
    def neighbours(self, chunk_id: str, before: int, after: int) -> list[Chunk]:
        """Chunks of the same document around `chunk_id`, itself excluded, in reading order."""

    @abstractmethod
    def document(self, doc_id: str) -> Document:
        """KeyError for an unknown id."""

    @abstractmethod
    def derived(self, name: str) -> Path | None:
        """The derived file `name` of this very generation, its checksum verified; else None."""

    @abstractmethod
    def derived_of_any(self, name: str) -> Path | None:
        """The newest derived file `name`, whatever generation it is of, its checksum verified; else None.

        Whoever reads it compares its rows with `rows()`. A row never stands for another chunk in a later generation,
        so rows that both have are good; the others are missing or gone.
        """

    @abstractmethod
    def vector_parts(self, size: int) -> Iterator[tuple[Rows, Vectors]]:
        """What `vectors()` gives, in consecutive parts of at most `size` rows: memory stays bounded."""

    def sentence_vectors(self, texts: Sequence[str], embedder: Embedder) -> Vectors:
        """What `embedder.embed` gives; a corpus may keep it, so that nothing is embedded twice."""
        return embedder.embed(texts)

    @abstractmethod
    def publish(self, name: str, write: Callable[[Path], None]) -> Path | None:
        """Make the derived file `name` for this generation durable; None, and nothing done, on a read-only view."""


class Searcher(Protocol):
    """A retriever that is open on one corpus view."""

    @abstractmethod
    def search(self, question: str, k: int, where: Filter | None = None) -> list[Hit]:
        """At most `k` hits, scores non-increasing, ranks from 1, ties by row; `where` binds inside the query."""

    def close(self) -> None:
        """Give back what is open. Calling twice is fine."""


class Retriever(Protocol):
    """Finds chunks for a question. `open` builds or loads a rebuildable index over the corpus."""

    needs_vectors: ClassVar[bool] = False
    k: int
    """How many hits a pipeline asks for unless the caller says otherwise."""

    @property
    def uses_vectors(self) -> bool:
        """True when this retriever, or one inside it, reads stored vectors."""
        return self.needs_vectors

    @abstractmethod
    def open(self, corpus: Corpus) -> Searcher:
        """A searcher over this view; an empty corpus is fine."""

    def check(self, corpus: Corpus) -> list[str]:
        """Where what this retriever keeps beside the store (an index file, a mirror) disagrees with it, for `verify`.

        One line per problem, each with its cure. Builds nothing and changes nothing; [] when nothing is kept.
        """
        return []


class Selector(Protocol):
    """Hits -> Bubble under a token budget, with a ledger that replays to the same bubble."""

    @abstractmethod
    def select(self, question: str, hits: Sequence[Hit], corpus: Corpus) -> Bubble:
        """`token_count` is counted on `rag.text.assemble` of `Bubble.texts` and is <= budget."""


class Compressor(Protocol):
    """Bubble -> pieces with kept spans."""

    verbatim: ClassVar[bool] = True

    @abstractmethod
    def compress(self, bubble: Bubble, corpus: Corpus) -> CompressedContext:
        """Order kept; kept spans lie inside their chunk; a target at or over the size changes nothing.

        The corpus is that of the bubble: it has the documents, and the vectors of chunks where the index has any.
        """


class TextModel(Protocol):
    """A language model as it is: a prompt in, the text that follows out."""

    @abstractmethod
    def complete(self, prompt: str, *, max_tokens: int, stop: Sequence[str] = ()) -> str:
        """At most `max_tokens` tokens, greedy; the text ends before the first of `stop`. Loads the model if need be."""

    def losses(self, text: str, *, after: str = "") -> list[TokenLoss] | None:
        """How surprising each token of `text` is, given `after` and all of `text` before it; [] for "".

        One (start, end, nats) per token, in order: a half-open range of characters of `text`, and -ln of the token's
        probability. `after` and `text` are tokenised apart. None where the model does not tell, as most endpoints.
        """
        return None

    def needs(self, text: str, *, after: str = "", reading: str = "from") -> list[TokenNeed] | None:
        """As `losses`, with what the model's attention says; None where the model does not show it."""
        return None


class Generator(Protocol):
    """Context -> answer with citations."""

    @property
    def text_model(self) -> TextModel | None:
        """The model behind this generator for prompts of other kinds; None where there is none. Loads nothing."""
        return None

    @property
    @abstractmethod
    def counter(self) -> TokenCounter:
        """The tokenizer that budgets are counted with. A property: no dataclass field may have this name."""

    @abstractmethod
    def generate(
        self, context: CompressedContext, corpus: Corpus, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        """The answer; `on_text` receives the text as it grows. Every citation is an exact span of its document."""
