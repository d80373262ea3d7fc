"""Losses of the small modules that choose for a frozen model, and the attention that a selection keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval._attention_data import Text
from rag.engine.attention import Memory, Selection, Step
from rag.engine.attention._adapters import ChunkAdapter, DynamicMask, Forecast, QkAdapter, flat, turned
from rag.engine.attention.executors.dense_mask import pair_mask

__all__ = ["FIRST", "Seen", "boundary_auc", "kept_of", "loss_of", "module_of", "seen", "train_boundary"]

PAGE, LOCAL, RANK, FIRST = 64, 64, 32, 2
"""Slots of a chunk or block in training; slots that every row reads anyway; dimensions of ChunkLLM's one head; the
first layer that is tested."""


@dataclass(frozen=True, eq=False)
class Seen:
    """One layer on one text, as a module is trained on it. `query` (heads, rows, d) of the layer before its rotation,
    `before` the same of the layer before it; `means` (kv heads, pages, d) of keys, `bare` of keys before their
    rotation; `mass` (kv heads, rows, slots): the attention of a kv head's queries to slots before the last LOCAL ones;
    `paged` (kv heads, rows, pages) the same without the first page, `open` (rows, pages) where it may be."""

    query: Tensor
    before: Tensor
    value: Tensor
    means: Tensor
    bare: Tensor
    places: Tensor
    mass: Tensor
    paged: Tensor
    open: Tensor


def read_layer(path: Path, layer: int, names: Sequence[str] = ("query", "key", "value")) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as held:
        return {name: held.get_tensor(f"{layer}.{name}").float() for name in names}


def seen(path: Path, layer: int, places: Tensor, rotary: Tensor) -> Seen:
    now = read_layer(path, layer)
    query, key = now["query"], now["key"]
    before = read_layer(path, layer - 1, ("query",))["query"] if layer else query
    slots = torch.arange(key.shape[1])
    grouped = query.reshape(key.shape[0], -1, *query.shape[1:])
    scores = grouped @ key[:, None].transpose(-1, -2) * key.shape[-1] ** -0.5
    mass = scores.masked_fill(slots > places[:, None], -torch.inf).softmax(-1).mean(1)
    far = slots <= places[:, None] - LOCAL
    stop = len(slots) // PAGE * PAGE
    open_to = far[:, :stop].reshape(len(far), -1, PAGE).all(-1)
    open_to[:, 0] = False
    mass = mass * far
    bare = turned(key, slots, rotary, back=True)
    return Seen(
        query=turned(query, places, rotary, back=True),
        before=turned(before, places, rotary, back=True),
        value=now["value"],
        means=_paged(key[:, :stop]),
        bare=_paged(bare[:, :stop]),
        places=places,
        mass=mass,
        paged=mass[..., :stop].reshape(*mass.shape[:2], -1, PAGE).sum(-1) * open_to,
        open=open_to,
    )


def _paged(key: Tensor) -> Tensor:
    return key.reshape(key.shape[0], -1, PAGE, key.shape[2]).mean(2)


def module_of(method: str, heads: int, kv_heads: int, width: int) -> torch.nn.Module:
    if method == "dma":
        return DynamicMask(kv_heads, width)
    return Forecast(heads, kv_heads, width) if method == "sparda" else QkAdapter(heads, kv_heads, width, RANK)


def loss_of(method: str, module: torch.nn.Module, one: Seen, rotary: Tensor) -> Tensor:
    """Cross entropy of what the module says with the attention's mass, over the slots or pages that may be chosen: the
    divergence from it, up to a constant, where rows count by the mass that is theirs to choose."""
    if isinstance(module, DynamicMask):
        return _cross(module(one.value[None])[0][:, None], one.mass, one.mass > 0)
    scale = one.means.shape[-1] ** -0.5
    if isinstance(module, Forecast):
        asked = turned(module(one.before[None])[0], one.places, rotary)
        return _cross(asked @ one.means.transpose(-1, -2) * scale, one.paged, one.open)
    assert isinstance(module, QkAdapter)  # noqa: S101
    asked, keys = module.q_adapter(flat(one.query[None])), module.k_adapter(flat(one.bare[None]))
    told = asked[0] @ keys[0].T * keys.shape[-1] ** -0.5
    return _cross(told, one.paged.mean(0), one.open)


def _cross(scores: Tensor, target: Tensor, open_to: Tensor) -> Tensor:
    low = torch.finfo(scores.dtype).min
    told = scores.expand_as(target).masked_fill(~open_to, low).log_softmax(-1)
    return -(told.masked_fill(~open_to, 0.0) * target).sum(-1).mean()


def kept_of(
    path: Path, text: Text, layers: int, places: Tensor, selections: Mapping[str, Selection]
) -> dict[str, tuple[float, float]]:
    """Of each selection the shares of the attention mass, and of the evidence, that it keeps: each of `places` is a
    token behind the slots before it, as in decoding. Every selection is asked in every layer and none is followed. The
    layers before FIRST, which some leave dense, do not count."""
    mass: dict[str, list[float]] = {name: [] for name in selections}
    found: dict[str, list[float]] = {name: [] for name in selections}
    across: dict[tuple[str, int], dict[str, Any]] = {}
    for layer in range(layers):
        now = read_layer(path, layer)
        for at, place in enumerate(places.tolist()):
            key, value = (now[name][None, :, : place + 1] for name in ("key", "value"))
            query = now["query"][None, :, at : at + 1]
            step = Step(layer, query, key, value, torch.tensor([place]), key.shape[-1] ** -0.5)
            weights = (step.grouped @ key[:, :, None].transpose(-1, -2) * step.scaling).softmax(-1).mean(2)
            for name, selection in selections.items():
                kept = selection.select(step, Memory(across=across.setdefault((name, at), {})))
                if layer < FIRST:
                    continue
                read = torch.ones(1, 1, 1, place + 1) if kept is None else pair_mask(step, kept).float()
                mass[name].append(float((weights * read).sum(-1).mean()))
                if text.evidence is not None:
                    found[name].append(float(read[..., slice(*text.evidence)].mean()))
    return {name: (mean(mass[name]), mean(found[name] or [0.0])) for name in selections}


def train_boundary(paths: Sequence[Path], texts: Sequence[Text], layer: int, steps: int = 300) -> ChunkAdapter:
    """Learns the ends of sentences from the values of a layer."""
    value, ends = _values(paths, texts, layer)
    module = ChunkAdapter(value.shape[1], value.shape[3])
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.02, weight_decay=0.01)
    for _ in range(steps):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(module(value), ends)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        optimizer.step()
    return module


def boundary_auc(module: ChunkAdapter, paths: Sequence[Path], texts: Sequence[Text], layer: int) -> dict[str, float]:
    """How well it tells the ends of sentences: AUC, and the shares of the told that are, and of those that are told."""
    from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped, unused-ignore]

    value, ends = _values(paths, texts, layer)
    with torch.no_grad():
        told = module(value).flatten().numpy()
    wanted = ends.flatten().numpy() > 0
    right = float((wanted & (told > 0)).sum())
    return {
        "auc": float(roc_auc_score(wanted, told)), "precision": right / max(1.0, float(np.sum(told > 0))),
        "recall": right / max(1.0, float(wanted.sum())),
    }  # fmt: skip


def _values(paths: Sequence[Path], texts: Sequence[Text], layer: int) -> tuple[Tensor, Tensor]:
    value = torch.stack([read_layer(path, layer, ("value",))["value"] for path in paths])
    return value, torch.tensor([text.ends for text in texts], dtype=torch.float32)
