"""What chunkers share that ask a language model how likely a text is: the model, its losses, groups of sentences."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from chunkers._asking import AskingChunker
from chunkers._base import tiles_of
from chunkers._headers import Headers
from chunkers._segment import Atoms, checked, joined, reach_back
from rag.errors import ConfigError
from rag.protocols import Generator, TextModel, TokenLoss
from rag.types import Chunk, Document

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["Likelihood", "LikelihoodChunker", "Unit", "losses_by_part"]

Unit = Literal["token", "byte"]
"""What a mean loss is per: a token of the model, or a byte of the text in UTF-8, which languages share."""

_PLACES = 200
"""Boundaries that a decision record lists."""


@dataclass
class Likelihood:
    """A language model at work on one document, and what it was asked; made anew for every document.

    `calls`: how often it was asked; `chars`: characters whose losses it told; `read`: characters given before those.
    """

    chunker: str
    generator: str
    model: TextModel
    calls: int = 0
    chars: int = 0
    read: int = 0

    @classmethod
    def of(cls, chunker: str, generator: Generator | None) -> Likelihood:
        """ConfigError that names the chunker, the generator and the cure when there is no model to ask."""
        if generator is None:
            raise ConfigError(f"{chunker} asks a language model, but there is no generator; {_CURE}")
        model = generator.text_model
        if model is None:
            raise ConfigError(f"{chunker}: the generator {type(generator).__name__} has no language model; {_CURE}")
        return cls(chunker, type(generator).__name__, model)

    def losses(self, text: str, *, after: str = "") -> list[TokenLoss]:
        """As `TextModel.losses`; ConfigError for a model that does not tell them."""
        self.calls += 1
        self.chars += len(text)
        self.read += len(after)
        found = self.model.losses(text, after=after)
        if found is None:
            raise ConfigError(
                f"{self.chunker}: the model of the generator {self.generator} does not tell how likely each token of "
                f"a text is; {_CURE}"
            )
        return found

    def total(self, text: str, *, after: str = "") -> float:
        """-ln P(text | after) in nats."""
        return float(sum(nats for _, _, nats in self.losses(text, after=after)))

    def mean(self, text: str, *, after: str = "", unit: Unit = "token") -> float:
        """-ln P(text | after) per token or byte of `text`; 0 for "". exp() of it is the perplexity."""
        return float(self.means(text, [len(text)], after=after, unit=unit)[0])

    def means(self, text: str, ends: Sequence[int], *, after: str = "", unit: Unit = "token") -> Floats:
        """(n,) mean loss of each part of `text`, given all of the text before it, from one pass.

        `ends` are the ends of the parts, which tile the text. A part in which no token begins has the value of the
        part before it, or 0.
        """
        import numpy as np

        sums, counts = losses_by_part(text, ends, self.losses(text, after=after))
        sizes = counts if unit == "token" else np.array([_bytes(text[a:b]) for a, b in tiles_of(ends)])
        values = np.divide(sums, sizes, out=np.zeros(len(sums)), where=sizes > 0)
        told = np.maximum.accumulate(np.where(counts > 0, np.arange(len(values)), -1))
        means: Floats = np.where(told >= 0, values[told], 0.0)
        return means

    def facts(self) -> dict[str, int]:
        """What it cost, for decision records."""
        return {"calls": self.calls, "characters_scored": self.chars, "characters_before": self.read}


_CURE = "set the slot generator to local, whose model runs in this process"


def losses_by_part(text: str, ends: Sequence[int], losses: Sequence[TokenLoss]) -> tuple[Floats, NDArray[np.int64]]:
    """Sum of the losses in each part of `text`, in nats, and how many tokens they are of: (n,) each.

    A token counts where its first visible character stands, or where it begins when it has none: the space before a
    word is often part of its token, and belongs to the sentence before. So a token over a boundary counts once, and
    tokens without width, or several within one character, count like others.
    """
    import numpy as np

    places = [start + _blank(text[start:end]) for start, end, _ in losses]
    part = np.minimum(np.searchsorted(np.array(ends), np.array(places, dtype=np.int64), side="right"), len(ends) - 1)
    weights = np.array([nats for _, _, nats in losses], dtype=np.float64)
    counts = np.bincount(part, minlength=len(ends)).astype(np.int64)
    sums: Floats = np.bincount(part, weights=weights, minlength=len(ends)).astype(np.float64)
    return sums, counts


def _blank(token: str) -> int:
    """Characters of white space before the first visible one; 0 when there is none."""
    return len(token) - len(token.lstrip()) if token.strip() else 0


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


@dataclass(frozen=True, kw_only=True)
class LikelihoodChunker(AskingChunker):
    """Base of chunkers that group whole sentences by what a language model finds likely.

    `generator`: the model is the one behind it; only those that tell losses will do, such as `local`. `min_tokens`: a
    chunk below it joins a neighbour when both fit together. `heading_header`: put the title and the heading path above
    a chunk into `Chunk.header`, at most a quarter of the limit; the model does not see it.
    """

    min_tokens: int = 16
    heading_header: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least("min_tokens", self.min_tokens, 0)
        if self.generator is not None:
            Likelihood.of(self.plugin, self.generator)

    def decide(self, document: Document) -> tuple[list[Chunk], Mapping[str, Any] | None]:
        """The chunks, and the values of the first 200 boundaries between sentences; `cut`: a chunk ends there."""
        if not document.text.strip():
            return [], None
        header = Headers(self, document, path=True, title=True, rows=False).at if self.heading_header else None
        atoms = Atoms.of(document, self.ruler(document, header=header))
        asked = Likelihood.of(self.plugin, self.generator)
        low = reach_back(atoms)
        found, reason, values = self.segment(atoms, low, asked)
        cuts = checked(atoms, joined(atoms, found, low, self.min_tokens))
        ends = dict.fromkeys(atoms.ends[cut - 1] for cut in cuts)
        places = zip(atoms.ends[: min(_PLACES, len(atoms) - 1)], values, strict=False)
        record = {
            "chunker": self.plugin,
            "reason": reason,
            "model": repr(self.generator),
            **asked.facts(),
            "boundaries": len(atoms) - 1,
            "places": [{"at": at, "cut": at in ends, **value} for at, value in places],
        }
        return self.cut(document, tiles_of(ends), atoms.ruler.tokens, header), record

    @abstractmethod
    def segment(
        self, atoms: Atoms, low: NDArray[np.int64], asked: Likelihood
    ) -> tuple[list[int], str, Sequence[Mapping[str, Any]]]:
        """(numbers of atoms after which a chunk ends, the last len(atoms); why; a record for each boundary).

        `low` is what `reach_back` gives: a group (j, i) keeps the limits when low[i] <= j.
        """
