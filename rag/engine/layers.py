"""A sparse pass that stops after every layer, so that fewer tokens go on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from rag.engine.attend import read_as_asked
from rag.engine.cache import KvCache
from rag.engine.errors import EngineError
from rag.engine.model import EngineModel

__all__ = ["LayerPass"]

_LAST = 16
"""Tokens that the last layer answers for: one alone is read by other kernels, which round otherwise."""


class LayerPass:
    """Tokens `ids` at `slots` (ascending) of `cache`; they read every slot up to their own, in the way that the cache
    asks for, and overwrite theirs.

    `step` runs the next layer; between steps `keep` may drop tokens, but not the last one. As EngineModel.run with
    slots does, if nothing is dropped.
    """

    def __init__(self, model: EngineModel, cache: KvCache, ids: Sequence[int], slots: Sequence[int]) -> None:
        model.require_chunk_reuse()
        if cache.dropped:
            raise EngineError(f"{cache.dropped} tokens of this cache are gone: slots are no positions any more")
        self._model, self._cache, self._body = model, cache, model.model.base_model
        self.slots = torch.tensor(list(slots), device=model.device)
        self.layer = 0
        with torch.no_grad():
            self._hidden: Tensor = self._body.embed_tokens(torch.tensor([list(ids)], device=model.device))
        self._place()

    def _place(self) -> None:
        self._mask = self._model.slot_mask(self.slots)
        self._standing = self.slots.tolist()
        with torch.no_grad():
            self._turns: Any = self._body.rotary_emb(self._hidden, self.slots[None])

    def held(self) -> tuple[Tensor, Tensor]:
        """Copies of what the layer last run, or before the first step the first one, keeps for the present tokens:
        keys and values (kv heads, tokens, d)."""
        return self._read(max(0, self.layer - 1))

    def held_next(self) -> tuple[Tensor, Tensor]:
        """The same of the layer that is to run."""
        return self._read(self.layer)

    def _read(self, layer: int) -> tuple[Tensor, Tensor]:
        keys, values = self._cache.kv_layers[layer].buffers()
        return keys[0].index_select(1, self.slots), values[0].index_select(1, self.slots)

    def step(self) -> None:
        asked = self._model.reading(self._cache, self._standing)
        own_way = read_as_asked(self._model.model) if asked else nullcontext()
        with torch.no_grad(), own_way, self._cache.writing_at(self.slots):
            self._hidden = self._body.layers[self.layer](
                self._hidden,
                attention_mask=self._mask,
                position_ids=self.slots[None],
                past_key_values=self._cache,
                use_cache=True,
                position_embeddings=self._turns,
                **asked,
            )
        self.layer += 1

    def finish(self) -> None:
        """Runs the layers that are left. Of the last one only what it keeps of every token is computed, and its output
        for the last few, since the last alone answers; unless the cache asks for a way of reading of its own."""
        while self.layer < self._model.layers - 1:
            self.step()
        if self.layer < self._model.layers:
            if len(self.slots) > _LAST and not self._cache.attention:
                self._store()
                self.keep(torch.arange(len(self.slots) - _LAST, len(self.slots), device=self.slots.device))
            self.step()

    def _store(self) -> None:
        """Writes the keys and values of the layer that is to run, and does nothing else of it."""
        layer = self._body.layers[self.layer]
        attention, shape = layer.self_attn, (1, len(self.slots), -1, self._model.head_dim)
        with torch.no_grad(), self._cache.writing_at(self.slots):
            hidden = layer.input_layernorm(self._hidden)
            keys = attention.k_proj(hidden).view(shape)
            if hasattr(attention, "k_norm"):  # Qwen 3
                keys = attention.k_norm(keys)
            turned = apply_rotary_pos_emb(keys.transpose(1, 2)[:, :0], keys.transpose(1, 2), *self._turns)[1]
            self._cache.update(turned, attention.v_proj(hidden).view(shape).transpose(1, 2), self.layer)

    def keep(self, rows: Tensor) -> None:
        """Goes on with the tokens in `rows` (ascending places in `slots`)."""
        if int(rows[-1]) != len(self.slots) - 1:
            raise EngineError("the last token stays: the model answers after it")
        if len(rows) == len(self.slots):
            return
        self.slots, self._hidden = self.slots[rows], self._hidden[:, rows]
        self._place()

    def logits(self) -> Tensor:
        """(vocabulary), float32, after the last token; every layer must have run."""
        if self.layer != self._model.layers:
            raise EngineError(f"{self.layer} of {self._model.layers} layers have run")
        with torch.no_grad():
            last = self._body.norm(self._hidden[:, -1:])
            logits: Tensor = self._model.model.lm_head(last)[0, -1].float()
        return logits
