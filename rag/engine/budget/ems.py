"""EMS, arXiv 2412.08521: each head evicts by a global and a local score, then merges what it evicted.

The global score is the attention that a token got from the whole prompt, the local one that from the prompt's last
tokens. What goes is averaged into the kept token with the nearest key of the same head; where no key is near it goes
into the paper's zero class: it is lost.

Deviations: the global score is a mean over the tokens that could see a token, so that early ones are not favoured for
being early; each score is divided by its sum over the prompt and the larger of the two counts. Weights of a merge are
these scores. Keys are compared and averaged as they are rotated. All evicted tokens may merge, and `tau` is ours to
choose. Query heads that share a kv head vote together. The first `sink` tokens stay, and nothing merges into them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rag.engine.attend import WindowVotes
from rag.engine.budget._base import KvBudget
from rag.engine.budget._choose import top_slots
from rag.engine.budget._merge import evicted_of, weighed_in
from rag.engine.errors import EngineError

__all__ = ["Ems"]


@dataclass(frozen=True, kw_only=True)
class Ems(KvBudget):
    """The last `window` tokens, the first `sink`, and of the others those with the highest score, `budget` in all.

    An evicted token is merged where the cosine of its key with the nearest kept one is at least `tau`; above 1 nothing
    is.
    """

    budget: int = 256
    window: int = 32
    tau: float = 0.9
    sink: int = 4

    def __post_init__(self) -> None:
        if self.window < 1 or self.sink < 0 or self.window + self.sink > self.budget:
            raise EngineError(
                "ems: window must be >= 1, sink >= 0, and both together at most budget, not "
                f"{self.window}, {self.sink} and {self.budget}"
            )
        if self.tau < -1:
            raise EngineError(f"ems: tau is a cosine, or above 1 to merge nothing, not {self.tau}")

    @property
    def whole(self) -> bool:
        return True

    def slots(self, length: int, votes: WindowVotes, layers: int) -> list[Tensor]:
        return [
            top_slots(_scores(votes, layer), self.budget, first=self.sink, last=self.window) for layer in range(layers)
        ]

    def merge(
        self, layer: int, keys: Tensor, values: Tensor, slots: Tensor, votes: WindowVotes
    ) -> tuple[Tensor, Tensor] | None:
        scores, evicted = _scores(votes, layer), evicted_of(keys, slots)
        near = (evicted.cosine >= self.tau) & (evicted.nearest >= self.sink)
        weights = scores.gather(1, evicted.slots) * near
        own = scores.gather(1, slots).clamp_min(torch.finfo(scores.dtype).tiny)
        return weighed_in(keys, slots, own, evicted, weights), weighed_in(values, slots, own, evicted, weights)


def _scores(votes: WindowVotes, layer: int) -> Tensor:
    """(kv heads, tokens): the larger of both scores, each a share of its sum."""
    far, near = votes.received[layer], votes.of_layer[layer]
    far = far / torch.arange(far.shape[-1], 0, -1, device=far.device)
    return torch.maximum(far / far.sum(-1, keepdim=True), near / near.sum(-1, keepdim=True))
