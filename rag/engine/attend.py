"""Attention that a cache can ask for: some of its slots read with a temperature and a scale, or its weights summed.

The function is registered with transformers once, under a name of its own, and used only while such a cache is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

__all__ = ["AttentionMass", "ScaledContext", "read_as_asked"]

NAME = "chunkwise-asked"


@dataclass(frozen=True, slots=True)
class ScaledContext:
    """The slots [start, stop) are read as in APE, arXiv 2502.05431: their logits are divided by `temperature`, and
    their log-sum-exp is multiplied by `scale` before it is weighed against that of all other slots."""

    start: int
    stop: int
    temperature: float
    scale: float


@dataclass(eq=False, slots=True)
class AttentionMass:
    """Sums the attention that the tokens from slot `first` on give to each range of slots; mean over heads."""

    first: int
    ranges: Sequence[tuple[int, int]]
    tokens: int
    total: Tensor = field(init=False)
    """(tokens, ranges), float32, summed over layers."""

    def __post_init__(self) -> None:
        self.total = torch.zeros(self.tokens, len(self.ranges))

    def add(self, weights: Tensor) -> None:
        """`weights` (1, heads, queries, slots); the queries are the last of the slots."""
        queries, slots = weights.shape[-2:]
        row = slots - queries - self.first
        for column, (start, stop) in enumerate(self.ranges):
            given = weights[0, :, :, start:stop].sum(-1).mean(0)
            self.total[row : row + queries, column] += given.cpu()


@contextmanager
def read_as_asked(model: Any) -> Iterator[None]:
    """Inside, the layers of `model` attend as the cache's `attention` says. Not for several threads of one model."""
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    scaled_context: ScaledContext | None = None,
    mass: AttentionMass | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: query (1, heads, queries, d); key and value (1, kv heads, slots, d)."""
    if scaled_context is None and mass is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **given
        )
        return plain
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = (query @ key.transpose(2, 3)).float() * (scaling or query.shape[-1] ** -0.5)
    scores = scores.masked_fill(~_seen(scores, attention_mask), -torch.inf)
    if scaled_context is not None:
        _scale(scores, scaled_context)
    weights = scores.softmax(-1)
    if mass is not None:
        mass.add(weights)
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), None


def _seen(scores: Tensor, mask: Tensor | None) -> Tensor:
    """No mask means that the queries are the last of the slots and none reads a later one."""
    if mask is not None:
        return mask
    queries, slots = scores.shape[-2:]
    return torch.ones(queries, slots, dtype=torch.bool, device=scores.device).tril(slots - queries)


def _scale(scores: Tensor, asked: ScaledContext) -> None:
    """In place. exp(x + (S - 1) lse(x)) sums to exp(S lse(x)), so one softmax over all merges both parts."""
    context = scores[..., asked.start : asked.stop]
    context /= asked.temperature
    total = context.logsumexp(-1, keepdim=True)
    context += torch.where(total.isfinite(), (asked.scale - 1) * total, 0.0)  # a query may see none of it


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
