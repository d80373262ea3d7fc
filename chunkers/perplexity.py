"""Perplexity chunks: cut where a language model, given all text before, is surprised little and then more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from chunkers._likelihood import Likelihood, LikelihoodChunker, Unit
from chunkers._segment import Atoms, best_cuts, size_penalty, within_limits
from rag.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PerplexityChunker(LikelihoodChunker):
    """Cuts where the mean loss of the language model is low before and rises after, by one of two objectives.

    The loss of a sentence is the mean of -ln P(token | all text before it), in nats per token, or per byte with `unit`
    "byte". `objective` "paper": a sentence is a minimum when its loss is below both neighbours' and at least one side
    rises by `threshold` or more, or when it equals the next one's and the left side falls by that much; the first and
    the last never are. A group ends with each minimum, one over the limit is cut again after its lowest loss, and
    adjacent groups are merged, from left to right, as long as they have at most `target_tokens` together.
    "rise": the segmentation with the highest boundary_weight x sum of (rise of the loss to the next sentence / standard
    deviation of the losses) over its cuts - sum of (tokens / target_tokens - 1)^2 over its chunks; `threshold` has no
    part in it. `target_tokens` None means three quarters of the limit.

    One pass of the model over the text; what it sees before a token is bounded by its own window.

    Measured with SmolLM2-135M on 2026-11-22 on five documents of about twenty paragraphs each, of different CLAPnq
    articles and without line ends, target_tokens the mean paragraph (F1 of the cuts; boundary_weight chosen on five
    others): "paper" .28 per token and .28 per byte, "rise" .53 and .51, sizes alone .26, cosines of MiniLM vectors in
    place of the rise .80. So a small model tells a new topic by the sentence that surprises it, hardly by the one that
    does not; where vectors are there, they tell more.

    Source: PPL chunking of Meta-Chunking (arXiv 2410.12788) and its code; "paper" is theirs.
    Deviations: "rise" and `unit` "byte"; hard limits, and chunks below `min_tokens` join a neighbour; the text is
    tokenised as a whole, where the code tokenises sentence by sentence; the first token is scored too. The code cuts
    English sentences short that have more than 512 words; here nothing is lost, such a sentence is several atoms.
    """

    threshold: float = 0.0
    unit: Unit = "token"
    target_tokens: int | None = None
    objective: Literal["paper", "rise"] = "paper"
    boundary_weight: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit not in ("token", "byte"):
            raise ConfigError(f"perplexity: unit must be token or byte, not {self.unit!r}")
        if self.objective not in ("paper", "rise"):
            raise ConfigError(f"perplexity: objective must be paper or rise, not {self.objective!r}")
        for name, value in (("threshold", self.threshold), ("boundary_weight", self.boundary_weight)):
            if not 0.0 <= value < float("inf"):
                raise ConfigError(f"perplexity: {name} must be >= 0 and finite, not {value}")
        self._check_at_least("target_tokens", self.target_tokens, 1)
        if self.target_tokens is not None and self.target_tokens > self.token_limit:
            raise ConfigError(
                f"perplexity: target_tokens must be <= max_tokens ({self.token_limit}), not {self.target_tokens}"
            )

    def segment(
        self, atoms: Atoms, low: NDArray[np.int64], asked: Likelihood
    ) -> tuple[list[int], str, Sequence[Mapping[str, Any]]]:
        import numpy as np

        text, count = atoms.document.text, len(atoms)
        if count < (3 if self.objective == "paper" else 2):  # nothing that a loss could decide
            return (
                within_limits([count], np.zeros(max(0, count - 1)), low),
                "too few sentences for the model to decide",
                [],
            )
        values = asked.means(text, atoms.ends, unit=self.unit)
        minima = _minima(values, self.threshold)
        places = [{"loss": round(loss, 4), "minimum": at in minima} for at, loss in enumerate(values.tolist())]
        paper = self.objective == "paper"
        cuts = self._grouped(atoms, low, values, minima) if paper else self._best(atoms, low, values)
        reason = f"the loss per {self.unit} has {len(minima)} minima in {count} sentences, objective {self.objective}"
        return cuts, reason, places

    @property
    def _target(self) -> float:
        return self.target_tokens or max(1.0, 0.75 * self.token_limit)

    def _grouped(self, atoms: Atoms, low: NDArray[np.int64], values: Floats, minima: Mapping[int, None]) -> list[int]:
        cuts = within_limits([*(at + 1 for at in minima), len(atoms)], -values[:-1], low)
        return _merged(atoms, cuts, low, self._target)

    def _best(self, atoms: Atoms, low: NDArray[np.int64], values: Floats) -> list[int]:
        import numpy as np

        prior, spread = np.zeros(len(atoms)), float(values.std())
        if spread > 1e-9:  # equal losses but for rounding say nothing
            prior[1:] = self.boundary_weight * np.diff(values) / spread
        return best_cuts(low, size_penalty(atoms.tokens, self._target), prior)


def _minima(values: Floats, threshold: float) -> dict[int, None]:
    """Places that are minima as the paper's code has it; on a level stretch that a fall leads to, its first place."""
    import numpy as np

    inner, fall, rise = values[1:-1], values[:-2] - values[1:-1], values[2:] - values[1:-1]
    valley = (inner < values[:-2]) & (inner < values[2:]) & (np.maximum(fall, rise) >= threshold)
    level = (inner < values[:-2]) & (inner == values[2:]) & (fall >= threshold)
    return dict.fromkeys((np.flatnonzero(valley | level) + 1).tolist())


def _merged(atoms: Atoms, cuts: Sequence[int], low: NDArray[np.int64], target: float) -> list[int]:
    """The cuts without those between neighbours that together keep `target` and the limits, from left to right."""
    edges = atoms.edges
    kept: list[int] = []
    for cut in cuts:
        begin = kept[-2] if len(kept) > 1 else 0
        if kept and low[cut] <= begin and edges[cut] - edges[begin] <= target:
            kept[-1] = cut
        else:
            kept.append(cut)
    return kept
