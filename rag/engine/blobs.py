"""Blocks as safetensors bytes and back: in the model's own type, or int8 with a scale per channel.

A channel is one dimension of one head of one layer, scaled over the block's tokens; its error is at most half a step,
largest value / 127 / 2, plus the rounding to the block's type. Variance and attention stay float32.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rag.engine.blocks import AttentionBefore, KvBlock
from rag.engine.errors import EngineError

__all__ = ["KvType", "block_key", "kv_type", "pack", "unpack"]

KvType = Literal["bf16", "fp16", "fp32", "int8"]
TYPES: dict[str, torch.dtype] = {
    "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "int8": torch.int8,
}  # fmt: skip
FORMAT = "1"


def kv_type(dtype: torch.dtype) -> KvType:
    """In which type blocks of a model of `dtype` are kept as they are."""
    known: dict[torch.dtype, KvType] = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
    return known[dtype]


def block_key(ids: Sequence[int], fingerprint: str, policy: str, dtype: KvType) -> str:
    """32 hex digits over everything that decides a blob's content. `policy` names how the block was made, with its
    parameters: the prefix and the donors before it among them."""
    if dtype not in TYPES:
        raise EngineError(f"a stored type is one of {', '.join(TYPES)}, not {dtype!r}")
    head = json.dumps([FORMAT, fingerprint, policy, dtype])
    state = hashlib.blake2b(f"{len(head)}:{head}".encode(), digest_size=16)
    state.update(array("q", ids).tobytes())
    return state.hexdigest()


def pack(block: KvBlock, dtype: KvType) -> bytes:
    """The file's content; the tensors k and v are (layers, kv heads, tokens, d)."""
    tensors: dict[str, Tensor] = {"ids": torch.tensor(block.ids, dtype=torch.int64)}
    for name, tensor in (("k", block.k), ("v", block.v)):
        held = tensor.detach().cpu()
        if dtype == "int8":
            tensors[name], tensors[f"{name}_scale"] = _quantise(held)
        else:
            tensors[name] = held.to(TYPES[dtype]).contiguous()
    if block.variance is not None:
        tensors["variance"] = block.variance.float().cpu().contiguous()
    if block.seen is not None:
        tensors["inter"] = block.seen.inter.float().cpu().contiguous()
        tensors["intra"] = block.seen.intra.float().cpu().contiguous()
    about = {
        "format": FORMAT,
        "fingerprint": block.fingerprint,
        "type": str(block.dtype).removeprefix("torch."),
        "behind": json.dumps(block.seen.behind if block.seen else []),
    }
    content: bytes = save(tensors, about)
    return content


def unpack(file: Path) -> KvBlock:
    """The block in `file`, in the type that it had. Where that is the stored type, its tensors are mapped, not copied,
    and stay valid when the file is deleted."""
    try:
        with safe_open(str(file), "pt") as held:
            about: dict[str, str] = held.metadata() or {}
            tensors: dict[str, Tensor] = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
        kind = _type_of(about["type"])
        seen = None
        if "inter" in tensors:
            seen = AttentionBefore(tuple(json.loads(about["behind"])), tensors["inter"], tensors["intra"])
        return KvBlock(
            tuple(tensors["ids"].tolist()),
            _values(tensors, "k", kind),
            _values(tensors, "v", kind),
            about["fingerprint"],
            variance=tensors.get("variance"),
            seen=seen,
        )
    except (KeyError, SafetensorError, ValueError) as error:
        raise EngineError(f"{file} is no block of this store ({error}): delete it, it can be made again") from error


def _quantise(values: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 values, float32 scales (layers, kv heads, 1, d))."""
    wide = values.float()
    scale = wide.abs().amax(dim=2, keepdim=True) / 127
    return (wide / scale.clamp_min(1e-30)).round().clamp(-127, 127).to(torch.int8), scale


def _values(tensors: dict[str, Tensor], name: str, kind: torch.dtype) -> Tensor:
    held = tensors[name]
    scale = tensors.get(f"{name}_scale")
    return held.to(kind) if scale is None else (held.float() * scale).to(kind)


def _type_of(name: str) -> torch.dtype:
    kind: Any = getattr(torch, name, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ValueError(f"{name!r} is no type of keys and values")
    return kind
