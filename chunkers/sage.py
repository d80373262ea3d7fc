"""Chunks whose borders lie where a small trained model expects a paragraph to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from chunkers._boundary import pair_features, weights
from chunkers._embedded import EmbeddedChunker
from chunkers._segment import Atoms, best_cuts, coherence_gain, size_penalty, within_limits
from rag.errors import ConfigError
from rag.types import Chunk, Document

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class SageChunker(EmbeddedChunker):
    """Scores every place between two sentences with a model trained on paragraph ends (chunkers/boundary.md).

    `mode` "dp" takes the segmentation with the highest
    boundary_weight x sum of evidence of its cuts - size_weight x sum of (tokens / target_tokens - 1)^2,
    the evidence being the log-odds less those of any place in the training text: sizes are the other term's matter.
    `mode` "threshold" cuts where the probability that two sentences belong together is below `ss`, and a group over
    the limit again where it is lowest. `target_tokens` None means three quarters of the limit.

    The model reads vectors of all-MiniLM-L6-v2. With another encoder the chunks are those of cluster-semantic, and
    `decide` says so.

    Source: the semantic segmentation of SAGE (arXiv 2503.01713), features and threshold `ss`.
    Deviations: |x1 - x2| instead of x1 - x2; besides, how alike up to five sentences on both sides are, and eight bits
    on the words around the place; trained on other text, with MiniLM, as a classifier (cross-entropy); the "dp" mode;
    hard limits. The paper's value of `ss` was not available.
    """

    mode: Literal["dp", "threshold"] = "dp"
    ss: float = 0.5
    target_tokens: int | None = None
    boundary_weight: float = 1.0
    size_weight: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("dp", "threshold"):
            raise ConfigError(f"sage: mode must be dp or threshold, not {self.mode!r}")
        if not 0.0 <= self.ss <= 1.0:
            raise ConfigError(f"sage: ss must be between 0 and 1, not {self.ss}")
        self._check_at_least("target_tokens", self.target_tokens, 1)
        if self.target_tokens is not None and self.target_tokens > self.token_limit:
            raise ConfigError(
                f"sage: target_tokens must be <= max_tokens ({self.token_limit}), not {self.target_tokens}"
            )
        for name, value in (("boundary_weight", self.boundary_weight), ("size_weight", self.size_weight)):
            if not 0.0 <= value < float("inf"):
                raise ConfigError(f"sage: {name} must be >= 0 and finite, not {value}")

    def decide(self, document: Document) -> tuple[list[Chunk], Mapping[str, Any] | None]:
        chunks = self.chunk(document)
        return (chunks, self._reason()) if chunks else (chunks, None)

    def segment(self, atoms: Atoms, low: NDArray[np.int64]) -> list[int]:
        import numpy as np

        if not self.learned:
            return best_cuts(low, coherence_gain(atoms.sums))
        prior = np.zeros(len(atoms))
        prior[1:] = self.log_odds(atoms.texts, atoms.vectors)
        if self.mode == "dp":
            return self._best(atoms, low, prior)
        together = 1.0 / (1.0 + np.exp(np.clip(prior[1:], -60.0, 60.0)))
        cuts = [*(np.flatnonzero(together < self.ss) + 1).tolist(), len(atoms)]
        return within_limits(cuts, prior[1:], low)

    @property
    def learned(self) -> bool:
        """True when the model can read the vectors of this embedder."""
        return self.embedder.agrees_with(weights().model)

    def pair_features(self, texts: Sequence[str], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n - 1, f) what the model sees of each pair of neighbours among n sentences; needs no weights."""
        return pair_features(vectors, texts)

    def log_odds(self, texts: Sequence[str], vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n - 1,) natural log-odds that a paragraph ends between neighbours."""
        return weights().logits(vectors, texts)

    def _best(self, atoms: Atoms, low: NDArray[np.int64], prior: NDArray[np.float64]) -> list[int]:
        size = size_penalty(atoms.tokens, self.target_tokens or max(1.0, 0.75 * self.token_limit))
        evidence = self.boundary_weight * (prior - float(weights().base))
        return best_cuts(low, lambda i, first: self.size_weight * size(i, first), evidence)

    def _reason(self) -> dict[str, Any]:
        if self.learned:
            reason = f"paragraph ends as the trained model expects them, mode {self.mode}"
        else:
            reason = (
                "the boundary model reads vectors of all-MiniLM-L6-v2 only, so the sentences were grouped by coherence "
                "as cluster-semantic does"
            )
        scoring = "learned" if self.learned else "coherence"
        return {"chunker": self.plugin, "reason": reason, "scoring": scoring, "embedder": self.embedder.fingerprint}
