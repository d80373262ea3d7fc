"""A key-value cache that models write to in place: room for all tokens is taken at once, nothing is copied per token.

`DynamicCache` of transformers concatenates, so every new token copies the whole cache. A `KvCache` goes wherever
transformers takes `past_key_values`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from rag.engine.errors import EngineError

__all__ = ["KvCache", "KvLayer", "Merge"]

Merge = Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor] | None]
"""From a layer's number, its keys and values (kv heads, slots, d) and the kept slots (kv heads, kept): the keys and
values (kv heads, kept, d) that stand there from now on. None: those that stood there."""


class KvLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # transformers' __init_subclass__
    """One layer: `keys` and `values` are (batch, kv heads, capacity, d), of which the first `length` slots are used.

    With `slots` set, an update overwrites those slots instead of appending, and attention sees slots up to the last
    of them. `lead` slots of it are more than the shortest layer of the cache has.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self, capacity: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity = capacity
        self.length = 0
        self.lead = 0
        self.slots: Tensor | None = None
        self.slots_stop = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = self._room(key_states), self._room(value_states)
        self.is_initialized = True

    def _room(self, like: Tensor) -> Tensor:
        batch, heads, _, width = like.shape
        # not an inference tensor, whatever mode the caller is in: those refuse later writes outside that mode.
        # Zeros, since a masked slot still meets a weight of 0, and 0 times an uninitialised NaN is NaN.
        with torch.inference_mode(False):
            return torch.zeros(batch, heads, self.capacity, width, dtype=like.dtype, device=like.device)

    def buffers(self) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            raise EngineError("the cache is empty: run the model or write a range first")
        return self.keys, self.values

    def reserve(self, tokens: int) -> None:
        """Makes room for `tokens` in all; at least doubles, so that growing costs little in the end."""
        if tokens <= self.capacity:
            return
        self.capacity = max(tokens, 2 * self.capacity)
        if not self.is_initialized:
            return
        keys, values = self.buffers()
        self.keys, self.values = self._room(keys), self._room(values)
        with torch.no_grad():
            self.keys[:, :, : self.length] = keys[:, :, : self.length]
            self.values[:, :, : self.length] = values[:, :, : self.length]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Stores the new tokens; returns views of everything that attention may read."""
        stop = self.length + key_states.shape[-2] if self.slots is None else self.slots_stop
        self.reserve(stop)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.buffers()
        if self.slots is None:
            keys[:, :, self.length : stop] = key_states
            values[:, :, self.length : stop] = value_states
        else:
            keys.index_copy_(2, self.slots, key_states)
            values.index_copy_(2, self.slots, value_states)
        self.length = max(self.length, stop)
        return keys[:, :, :stop], values[:, :, :stop]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1  # grows

    def reset(self) -> None:
        super().reset()
        self.length = self.lead = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last tokens; as in transformers the count is negative."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes a negative count of tokens to remove, not {tokens_to_remove}")
        self.length = max(0, self.length + tokens_to_remove)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            keys, values = self.buffers()
            self.keys, self.values = keys.repeat_interleave(repeats, dim=0), values.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.is_initialized:
            keys, values = self.buffers()
            self.keys, self.values = keys[indices], values[indices]


class KvCache(Cache):
    """The cache of one model. `capacity` tokens are allocated at the first write; more is taken when they are full.

    Ranges are read and written as (layers, kv heads, tokens, d) for the one sequence of batch size 1. `attention` says
    how this cache wants to be read, by the names that `rag.engine.attend` knows; empty is the model's own way. `moved`
    says that the keys of its prefix were turned to other positions, or that some are gone: no other prompt can start
    with them. `length` is that of the shortest layer, and `dropped` tokens are gone from it, so the next one's position
    is `length` + `dropped`.
    """

    def __init__(self, layers: int, capacity: int = 256) -> None:
        if layers < 1 or capacity < 1:
            raise EngineError(f"a cache needs at least one layer and one token, not {layers} and {capacity}")
        self.kv_layers = [KvLayer(capacity) for _ in range(layers)]
        super().__init__(layers=list(self.kv_layers))
        self.attention: dict[str, Any] = {}
        self.moved = False
        self.dropped = 0

    @property
    def length(self) -> int:
        return self.kv_layers[0].length - self.kv_layers[0].lead

    @property
    def even(self) -> bool:
        """Whether all layers hold the same number of slots; a cache where they do not is only decoded from."""
        return not any(layer.lead for layer in self.kv_layers)

    def reset(self) -> None:
        super().reset()  # type: ignore[no-untyped-call]
        self.attention, self.moved, self.dropped = {}, False, 0

    def reserve(self, tokens: int) -> None:
        for layer in self.kv_layers:
            layer.reserve(tokens + layer.lead)

    def truncate(self, length: int) -> None:
        """Keeps the first `length` tokens."""
        if not 0 <= length <= self.length:
            raise EngineError(f"cannot keep {length} tokens of a cache of {self.length}")
        for layer in self.kv_layers:
            layer.length = length + layer.lead

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Copies of the keys and values of [start, stop), keys as rotated to their positions."""
        self._require_even()
        if not 0 <= start < stop <= self.length:
            raise EngineError(f"cannot read [{start}, {stop}) of a cache of {self.length} tokens")
        pairs = [layer.buffers() for layer in self.kv_layers]
        if pairs[0][0].shape[0] != 1:
            raise EngineError(f"ranges are read from one sequence, not from a batch of {pairs[0][0].shape[0]}")
        with torch.no_grad():
            keys = torch.stack([k[0, :, start:stop] for k, _ in pairs])
            values = torch.stack([v[0, :, start:stop] for _, v in pairs])
        return keys, values

    def write(self, start: int, keys: Tensor, values: Tensor) -> None:
        """Overwrites or extends from slot `start` on. Slots that this leaves open must be filled before a read."""
        if keys.shape != values.shape or keys.dim() != 4 or keys.shape[0] != len(self.kv_layers):
            raise EngineError(
                f"a range is (layers, kv heads, tokens, d) with {len(self.kv_layers)} layers, "
                f"not {tuple(keys.shape)} and {tuple(values.shape)}"
            )
        for number, (k, v) in enumerate(zip(keys, values, strict=True)):
            held = self.room(number, start, start + keys.shape[2], k)
            with torch.no_grad():
                held[0].copy_(k)
                held[1].copy_(v)

    def room(self, layer: int, start: int, stop: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the slots [start, stop) of a layer, keys and values (batch, kv heads, slots, d), to be filled; they
        are of the type and heads of `like` (kv heads, any, d). All layers must be filled alike."""
        self._require_even()
        held = self.kv_layers[layer]
        held.reserve(stop)
        if not held.is_initialized:
            held.lazy_initialization(like[None], like[None])
        held.length = max(held.length, stop)
        keys, values = held.buffers()
        return keys[:, :, start:stop], values[:, :, start:stop]

    def keep(self, slots: Sequence[Tensor], merge: Merge | None = None) -> None:
        """Of every layer and kv head only these slots, ascending: for every layer (kv heads, kept), or (1, kept) for
        all heads alike. Keys stay as they are rotated, so that the tokens keep their positions.

        Layers may keep different numbers. `merge` may say what stands in the kept slots instead of what stood there.
        """
        if len(slots) != len(self.kv_layers):
            raise EngineError(f"every one of {len(self.kv_layers)} layers is told what it keeps, not {len(slots)}")
        shortest = min(one.shape[-1] for one in slots)
        position = self.length + self.dropped
        for number, (layer, chosen) in enumerate(zip(self.kv_layers, slots, strict=True)):
            held = [one[:, :, : layer.length] for one in layer.buffers()]
            if held[0].shape[0] != 1:
                raise EngineError(f"slots are kept of one sequence, not of a batch of {held[0].shape[0]}")
            places = chosen.to(held[0].device).expand(held[0].shape[1], -1)
            with torch.no_grad():
                made = merge(number, held[0][0], held[1][0], places) if merge is not None else None
                kept = made or tuple(one[0].gather(1, places[..., None].expand(-1, -1, one.shape[3])) for one in held)
            layer.capacity = layer.length = chosen.shape[-1]  # the room of what is gone is given back
            layer.lead = layer.length - shortest
            layer.keys, layer.values = (layer._room(one) for one in held)
            with torch.no_grad():
                for part, room in zip(kept, layer.buffers(), strict=True):
                    room.copy_(part[None])
        self.dropped = position - shortest
        self.moved = self.moved or self.dropped > 0
        if not self.even:
            self.attention = {"own_lengths": True}

    def _require_even(self) -> None:
        if not self.even:
            raise EngineError("the layers of this cache hold different numbers of slots: it is only decoded from")

    def append(self, keys: Tensor, values: Tensor) -> None:
        self.write(self.length, keys, values)

    @contextmanager
    def writing_at(self, slots: Tensor) -> Iterator[None]:
        """Inside, the model's new tokens go to `slots` (ascending) instead of the end."""
        stop = int(slots[-1]) + 1
        for layer in self.kv_layers:
            layer.slots, layer.slots_stop = slots, stop
        try:
            yield
        finally:
            for layer in self.kv_layers:
                layer.slots = None
