"""Attention that a cache can ask for: some of its slots read with a temperature and a scale, its weights summed, a
context that a whole batch shares read before its own slots, or layers that hold different numbers of slots.

The function is registered with transformers once, under a name of its own, and used only while such a cache is read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from rag.engine.cache import KvCache
from rag.engine.tiles import attend_in_tiles

__all__ = ["AttentionMass", "ScaledContext", "SharedContext", "SparseCache", "WindowVotes", "read_as_asked"]

NAME = "chunkwise-asked"
_SCORES = 1 << 24
"""Attention scores against a shared context that are in memory at a time, for each layer."""


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


@dataclass(frozen=True, slots=True)
class SharedContext:
    """Keys and values (1, kv heads, tokens, d) of every layer: all tokens of all sequences of a batch read all of them,
    before the slots of their own sequence. Hydragen, arXiv 2402.05099."""

    layers: Sequence[tuple[Tensor, Tensor]]


@dataclass(eq=False, slots=True)
class WindowVotes:
    """Of every layer, by its number, the attention (kv heads, slots) that the tokens of the last pass gave to all
    slots, summed over the tokens and over the query heads of a kv head; float32.

    With `whole`, every pass is also summed: `received` (kv heads, slots) is the attention that each token got from all
    tokens that ran, and `entropy` (tokens) that of each token's own attention, in nats, mean over heads.
    """

    of_layer: dict[int, Tensor] = field(default_factory=dict)
    whole: bool = False
    received: dict[int, Tensor] = field(default_factory=dict)
    entropy: dict[int, Tensor] = field(default_factory=dict)

    def add(self, layer: int, weights: Tensor, kv_heads: int) -> None:
        """`weights` (1, heads, queries, slots)."""
        self.of_layer[layer] = given = weights[0].reshape(kv_heads, -1, weights.shape[-1]).sum(1)
        if self.whole:
            spread = torch.special.entr(weights[0]).sum(-1).mean(0)
            if layer in self.received:
                before = self.received[layer]
                given = given + pad(before, (0, given.shape[-1] - before.shape[-1]))
                spread = torch.cat((self.entropy[layer], spread))
            self.received[layer], self.entropy[layer] = given, spread


class SparseCache(KvCache):
    """A cache that `sparse`, a `rag.engine.attention.Sparse`, reads, wherever nothing else is asked of it."""

    def __init__(self, layers: int, capacity: int, sparse: Any) -> None:
        self.sparse = sparse
        super().__init__(layers, capacity)

    @property
    def attention(self) -> dict[str, Any]:
        return self._asked or {"sparse": self.sparse}

    @attention.setter
    def attention(self, asked: dict[str, Any]) -> None:
        self._asked = asked


_LOCK = threading.Lock()
_INSIDE: WeakKeyDictionary[Any, tuple[int, str]] = WeakKeyDictionary()
"""Of models that are read as asked: how many passes do so now, and what they attend by otherwise."""


@contextmanager
def read_as_asked(model: Any) -> Iterator[None]:
    """Inside, the layers of `model` attend as the cache's `attention` says. Passes in other threads may begin and end
    meanwhile: those that ask for nothing attend as torch does."""
    with _LOCK:
        passes, before = _INSIDE.get(model, (0, model.config._attn_implementation))
        _INSIDE[model] = passes + 1, before
        model.config._attn_implementation = NAME
    try:
        yield
    finally:
        with _LOCK:
            passes, before = _INSIDE.pop(model)
            if passes > 1:
                _INSIDE[model] = passes - 1, before
            else:
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
    shared: SharedContext | None = None,
    votes: WindowVotes | None = None,
    own_lengths: bool = False,
    sparse: Any = None,
    tiles: Tensor | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: query (1, heads, queries, d); key and value (1, kv heads, slots, d). With a shared
    context the batch may be larger, and a mask (batch, 1, queries, slots) is needed. `own_lengths`: the layers hold
    different numbers of slots, so that the model's one mask does not fit them all and each layer gets its own. `sparse`
    is a `rag.engine.attention.Sparse` that reads for the model. `tiles` (queries) are the slots of the queries, where
    nothing else is asked and the model is one that `attend_in_tiles` reads faster."""
    if sparse is not None:
        return sparse.attend(module, query, key, value, attention_mask, scaling), None
    if own_lengths:
        attention_mask = _causal(query.shape[-2], key.shape[-2], query.device)[None, None]
    if shared is not None and attention_mask is not None:
        own, context = (key, value), shared.layers[module.layer_idx]
        merged = _attend_shared(query, own, attention_mask, context, scaling or query.shape[-1] ** -0.5)
        return merged.transpose(1, 2).contiguous(), None
    if scaled_context is None and mass is None and votes is None:
        if tiles is not None and not own_lengths:
            return attend_in_tiles(query, key, value, tiles, scaling or query.shape[-1] ** -0.5), None
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **given
        )
        return plain
    batch, heads, queries, width = query.shape
    kv_heads, slots = key.shape[1:3]
    # the query heads that share a kv head as rows of one product: keys and values are not copied for each of them
    grouped = query.reshape(batch, kv_heads, -1, width)
    scores = (grouped @ key.transpose(2, 3)).float().reshape(batch, heads, queries, slots)
    scores *= scaling or width**-0.5
    scores = scores.masked_fill(~_seen(scores, attention_mask), -torch.inf)
    if scaled_context is not None:
        _scale(scores, scaled_context)
    weights = scores.softmax(-1)
    if mass is not None:
        mass.add(weights)
    if votes is not None:
        votes.add(module.layer_idx, weights, kv_heads)
    out = weights.to(value.dtype).reshape(batch, kv_heads, -1, slots) @ value
    return out.reshape(batch, heads, queries, width).transpose(1, 2).contiguous(), None


def _attend_shared(
    query: Tensor, own: tuple[Tensor, Tensor], mask: Tensor, context: tuple[Tensor, Tensor], scaling: float
) -> Tensor:
    """(batch, heads, queries, d): attention to the context with all queries of the batch in one matrix product, and to
    the own slots, each with its log-sum-exp, by which the two are weighed."""
    batch, heads, queries, width = query.shape
    kv_heads = own[0].shape[1]
    split = query.reshape(batch, kv_heads, -1, queries, width)
    stacked = split.transpose(0, 1).reshape(kv_heads, -1, width)
    rows = max(1, _SCORES // (kv_heads * context[0].shape[2]))
    parts = [_weigh(part, context[0][0], context[1][0], None, scaling) for part in torch.split(stacked, rows, dim=1)]
    far, far_sum = (
        torch.cat(one, dim=1).reshape(kv_heads, batch, -1, queries, one[0].shape[-1]).transpose(0, 1)
        for one in zip(*parts, strict=True)
    )
    near, near_sum = _weigh(split, own[0][:, :, None], own[1][:, :, None], mask[:, :, None], scaling)
    share = torch.sigmoid(far_sum - near_sum)
    return (share * far + (1 - share) * near).to(query.dtype).reshape(batch, heads, queries, width)


def _weigh(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
    """(softmax attention in float32, its log-sum-exp with a last dimension of 1); every query must see something."""
    scores = (query @ key.transpose(-1, -2)).float().mul_(scaling)
    if mask is not None:
        scores.masked_fill_(~mask, -torch.inf)
    top = scores.amax(-1, keepdim=True)
    scores.sub_(top).exp_()
    total = scores.sum(-1, keepdim=True)
    return (scores.to(value.dtype) @ value).float() / total, top + total.log()


def _seen(scores: Tensor, mask: Tensor | None) -> Tensor:
    """No mask means that the queries are the last of the slots and none reads a later one."""
    if mask is not None:
        return mask
    return _causal(scores.shape[-2], scores.shape[-1], scores.device)


def _causal(queries: int, slots: int, device: torch.device) -> Tensor:
    return torch.ones(queries, slots, dtype=torch.bool, device=device).tril(slots - queries)


def _scale(scores: Tensor, asked: ScaledContext) -> None:
    """In place. exp(x + (S - 1) lse(x)) sums to exp(S lse(x)), so one softmax over all merges both parts."""
    context = scores[..., asked.start : asked.stop]
    context /= asked.temperature
    total = context.logsumexp(-1, keepdim=True)
    context += torch.where(total.isfinite(), (asked.scale - 1) * total, 0.0)  # a query may see none of it


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
