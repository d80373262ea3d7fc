"""A causal language model of transformers, with what KV reuse must know of it: shapes, rotations, identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, sdpa_mask

from rag.engine.attend import read_as_asked
from rag.engine.cache import KvCache
from rag.engine.errors import EngineError
from rag.engine.tiles import faster_in_tiles

__all__ = ["EngineModel"]

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose keys are rotated in halves over the whole head; tested against the installed transformers."""
_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}
_SAMPLES = 64


@dataclass(frozen=True)
class EngineModel:
    """`model` is any causal language model of transformers, in evaluation mode.

    Every one with attention in all layers can reuse prefixes. `frequencies` and `run(..., slots=)`, on which chunk
    reuse rests, need a family in FAMILIES with fixed rotary frequencies and full attention.
    """

    model: Any

    def __post_init__(self) -> None:
        kinds = set(getattr(self.config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
        if kinds or getattr(self.config, "kv_sharing_modes", None):
            kind = ", ".join(sorted(kinds)) or "shared keys"
            raise EngineError(
                f"a {self.config.model_type} model has layers ({kind}) that keep no keys of their own: no KV reuse "
                "works with it. Generate without reuse"
            )

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def layers(self) -> int:
        return int(self.config.num_hidden_layers)

    @property
    def kv_heads(self) -> int:
        return int(getattr(self.config, "num_key_value_heads", None) or self.config.num_attention_heads)

    @property
    def head_dim(self) -> int:
        given = getattr(self.config, "head_dim", None)
        return int(given or self.config.hidden_size // self.config.num_attention_heads)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize

    def new_cache(self, capacity: int = 256) -> KvCache:
        return KvCache(self.layers, max(1, capacity))

    def run(
        self,
        ids: Sequence[int],
        cache: KvCache,
        *,
        slots: Sequence[int] | None = None,
        keep: int = 1,
        attention: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """One forward pass over `ids`, whose keys and values go into `cache`; returns the logits (keep, vocabulary) of
        the last `keep` ids in float32.

        Without `slots` the ids follow what the cache holds. With them, id i stands at position `slots[i]` (ascending),
        attends to every slot up to its own, and overwrites that slot. `attention` is handed to the attention function
        of every layer, for executors registered with transformers.
        """
        step = torch.tensor([list(ids)], device=self.device)
        asked = self.reading(cache, slots or range(cache.length, cache.length + len(ids)))
        extra, own_way = {**asked, **(attention or {})}, read_as_asked(self.model) if asked else nullcontext()
        with torch.no_grad(), own_way:
            if slots is None:
                if cache.dropped:
                    first = cache.length + cache.dropped
                    extra["position_ids"] = torch.arange(first, first + len(ids), device=self.device)[None]
                mask = self._decode_mask(cache.length) if len(ids) == 1 else None
                out = self.model(
                    input_ids=step,
                    past_key_values=cache,
                    use_cache=True,
                    attention_mask=mask,
                    logits_to_keep=keep,
                    **extra,
                )
                return _logits(out)
            if cache.dropped:
                raise EngineError(f"{cache.dropped} tokens of this cache are gone: slots are no positions any more")
            places = self._places(slots, len(ids))
            with cache.writing_at(places):
                out = self.model(
                    input_ids=step,
                    past_key_values=cache,
                    use_cache=True,
                    position_ids=places[None],
                    attention_mask=self.slot_mask(places),
                    logits_to_keep=keep,
                    **extra,
                )
        return _logits(out)

    def reading(self, cache: KvCache, slots: Sequence[int]) -> dict[str, Any]:
        """What the attention function is told of tokens at `slots` (ascending) that read `cache`: what the cache asks
        for, and where tiles are faster than the model's own way, the slots. Empty: the model's own way."""
        if len(slots) < 2 or not self._tiles:  # one token alone: see _decode_mask
            return cache.attention
        return {**cache.attention, "tiles": torch.tensor(list(slots))}

    @property
    def _tiles(self) -> bool:
        own = self.config._attn_implementation == "sdpa" and self._rotation[0] is not None
        return own and faster_in_tiles(self.device, self.dtype)

    def _places(self, slots: Sequence[int], tokens: int) -> Tensor:
        if len(slots) != tokens or any(b <= a for a, b in pairwise(slots)):
            raise EngineError(f"{tokens} ids need as many ascending slots, not {len(slots)}")
        self.require_chunk_reuse()
        return torch.tensor(list(slots), device=self.device)

    def _decode_mask(self, length: int) -> Tensor | None:
        """A mask that hides nothing, where it makes one-token steps faster: on CPU.

        With a mask, transformers packs the query heads that share a key head into rows of one matrix product; without
        one it asks torch for grouped attention, whose bfloat16 kernel takes about 6 times as long at 8,000 tokens.
        """
        if self.device.type != "cpu" or self.config._attn_implementation != "sdpa" or self._rotation[0] is None:
            return None
        return torch.ones(1, 1, 1, length + 1, dtype=torch.bool)

    def slot_mask(self, places: Tensor) -> Tensor:
        """(1, 1, queries, slots): each query reads the slots up to its own position."""
        seen = torch.arange(int(places[-1]) + 1, device=self.device)[None, :] <= places[:, None]
        kind = self.config._attn_implementation
        made_by = ALL_MASK_ATTENTION_FUNCTIONS.get(kind)
        if made_by is sdpa_mask:
            return seen[None, None]
        if made_by is eager_mask:
            lowest = torch.finfo(self.dtype).min
            return torch.zeros(seen.shape, dtype=self.dtype, device=self.device).masked_fill(~seen, lowest)[None, None]
        raise EngineError(
            f"chunk reuse needs an attn_implementation that reads the masks of sdpa or eager, not {kind!r}: set sdpa"
        )

    @cached_property
    def _rotation(self) -> tuple[Tensor | None, str]:
        """(frequencies, "") or (None, why keys cannot be moved)."""
        kind, rotary = self.config.model_type, getattr(self.model.base_model, "rotary_emb", None)
        if kind not in FAMILIES or rotary is None:
            return None, f"its family is {kind!r}, not one of {', '.join(FAMILIES)}"
        if rotary.rope_type not in _STATIC_ROPE:
            return None, f"its rotary frequencies change with the length ({rotary.rope_type!r})"
        window = getattr(self.config, "sliding_window", None)
        kinds = getattr(self.config, "layer_types", None)
        if window is not None and (kinds is None or "sliding_attention" in kinds):
            return None, f"its attention slides over {window} tokens"
        frequencies: Tensor = rotary.inv_freq.detach().float().cpu()
        if 2 * frequencies.numel() != self.head_dim:
            return None, f"it rotates {2 * frequencies.numel()} of {self.head_dim} dimensions"
        if not _turns_by(rotary, frequencies):
            return None, "its rotary module does not turn by its own frequencies"
        return frequencies, ""

    @property
    def frequencies(self) -> Tensor:
        """(head_dim / 2) radians per position, as the model's own rotary module has them: scaling is in them."""
        frequencies, why = self._rotation
        if frequencies is None:
            raise EngineError(f"chunk reuse cannot move this model's keys: {why}. Exact prefix reuse works with it")
        return frequencies

    def require_chunk_reuse(self) -> None:
        """Raises unless keys can be moved and the model reads the mask that the sparse pass gives it."""
        _ = self.frequencies

    def cost(self, start: int, stop: int) -> float:
        """FLOPs of computing the tokens [start, stop) behind the `start` tokens before them."""
        tokens = stop - start
        pairs = (start + stop + 1) * tokens / 2
        width = int(self.config.num_attention_heads) * self.head_dim
        return 2.0 * self._body_parameters * tokens + 4.0 * self.layers * width * pairs

    @cached_property
    def _body_parameters(self) -> int:
        body = self.model.base_model
        embedding = body.get_input_embeddings()
        return int(sum(p.numel() for p in body.parameters()) - sum(p.numel() for p in embedding.parameters()))

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits over the config and a sample of every weight: KV of one fingerprint fits no other."""
        config = {k: v for k, v in self.config.to_dict().items() if k not in _UNRELATED and not k.startswith("_")}
        state = hashlib.blake2b(json.dumps(config, sort_keys=True, default=str).encode(), digest_size=16)
        state.update(str(self.dtype).encode())
        for name, weight in self.model.named_parameters():
            flat = weight.detach().reshape(-1)
            places = torch.linspace(0, flat.numel() - 1, min(_SAMPLES, flat.numel()), dtype=torch.float64)
            state.update(f"{name}{tuple(weight.shape)}".encode())
            state.update(flat[places.long().to(flat.device)].float().cpu().numpy().tobytes())
        return state.hexdigest()


_UNRELATED = {
    "architectures", "dtype", "output_attentions", "output_hidden_states", "transformers_version", "use_cache",
}  # fmt: skip


def _logits(out: Any) -> Tensor:
    logits: Tensor = out.logits[0].float()
    return logits


def _turns_by(rotary: Any, frequencies: Tensor) -> bool:
    """Whether the module's cosines at some positions are those of `frequencies`, up to its constant scaling."""
    positions = torch.tensor([[0, 1, 17, 1000]], device=rotary.inv_freq.device)
    cos, _ = rotary(torch.zeros(1, dtype=torch.float32, device=positions.device), positions)
    angles = positions[0, :, None].cpu() * frequencies
    expected = torch.cat((angles, angles), dim=-1).cos() * float(rotary.attention_scaling)
    return bool(torch.allclose(cos[0].cpu(), expected, atol=1e-3))
