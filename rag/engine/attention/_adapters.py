"""Small modules that were trained to choose for a frozen model, and the file that holds one for each of its layers.

Distilled from the model's own attention by `python -m eval.train_attention`. They see queries and keys as they were
before their rotation, so that what is learnt does not hang on the places of a text.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from rag.engine.attention._base import Step
from rag.engine.errors import EngineError

__all__ = ["ChunkAdapter", "DynamicMask", "Forecast", "QkAdapter", "Trained", "flat", "trained", "turned"]


class DynamicMask(nn.Module):
    """Of DMA: what a value says about its slot. (batch, kv heads, slots, d) to (batch, kv heads, slots)."""

    def __init__(self, kv_heads: int, width: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.ones(kv_heads))
        self.dt_proj = nn.Linear(kv_heads * width, kv_heads)

    def forward(self, value: Tensor) -> Tensor:
        gate: Tensor = self.A * softplus(self.dt_proj(flat(value)))
        return gate.transpose(1, 2)


class QkAdapter(nn.Module):
    """Of ChunkLLM: all query heads, and all key heads, as one of `rank` dimensions."""

    def __init__(self, heads: int, kv_heads: int, width: int, rank: int) -> None:
        super().__init__()
        self.q_adapter = nn.Linear(heads * width, rank, bias=False)
        self.k_adapter = nn.Linear(kv_heads * width, rank, bias=False)


class ChunkAdapter(nn.Module):
    """Of ChunkLLM: the logit that a chunk ends with a token. (batch, kv heads, slots, d) to (batch, slots)."""

    def __init__(self, kv_heads: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(kv_heads * width, 1)

    def forward(self, value: Tensor) -> Tensor:
        logit: Tensor = self.linear(flat(value))[..., 0]
        return logit


class Forecast(nn.Module):
    """Of SparDA: from a layer's queries the ones that choose in the next, one for each kv head. (batch, heads, rows, d)
    to (batch, kv heads, rows, d)."""

    def __init__(self, heads: int, kv_heads: int, width: int) -> None:
        super().__init__()
        self.forecast = nn.Linear(heads * width, kv_heads * width, bias=False)
        self.kv_heads = kv_heads

    def forward(self, query: Tensor) -> Tensor:
        made: Tensor = self.forecast(flat(query))
        return made.reshape(*made.shape[:2], self.kv_heads, -1).transpose(1, 2)


def flat(heads: Tensor) -> Tensor:
    """(batch, n, heads * d) float32, of (batch, heads, n, d)."""
    return heads.transpose(1, 2).flatten(2).float()


def turned(given: Tensor, places: Tensor, frequencies: Tensor, *, back: bool = False) -> Tensor:
    """`given` (..., n, d) rotated to its places (n), or back from them; float32. `frequencies` (d/2) in radians."""
    angles = places.to(frequencies.device, torch.float64)[:, None] * frequencies.double()
    cos, sin = angles.cos().float(), angles.sin().float() * (-1 if back else 1)
    first, second = given.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Trained:
    """What a file of weights holds. `rotary` (d/2) are the frequencies by which the model rotates."""

    def __init__(self, path: str, method: str, tensors: dict[str, Tensor]) -> None:
        self.path, self.method, self.tensors = path, method, tensors
        self._modules: dict[str, nn.Module] = {}

    @property
    def rotary(self) -> Tensor:
        return self.tensors["rotary"]

    def layer(self, step: Step) -> Any:
        """The module of the step's layer; EngineError where the file is of another shape of model."""
        module = self._module(f"layers.{step.layer}", step)
        if module is None:
            raise EngineError(
                f"{self.method}: {self.path} has no weights for layer {step.layer}: it was trained for another model. "
                "Train them for this one: python -m eval.train_attention"
            )
        return module

    def boundary(self, step: Step) -> Any | None:
        """The chunk adapter, if it is one of this layer."""
        return self._module(f"boundary.{step.layer}", step)

    def _module(self, name: str, step: Step) -> nn.Module | None:
        if name not in self._modules:
            state = {key[len(name) + 1 :]: one for key, one in self.tensors.items() if key.startswith(f"{name}.")}
            if not state:
                return None
            module = _module_of(self.method, name, step, state)
            wanted = {key: tuple(one.shape) for key, one in module.state_dict().items()}
            given = {key: tuple(one.shape) for key, one in state.items()}
            if given != wanted:
                raise EngineError(
                    f"{self.method}: {self.path} was trained for another model: {name} has {given}, where this model "
                    f"needs {wanted}. Train them for this one: python -m eval.train_attention"
                )
            module.load_state_dict(state)
            self._modules[name] = module.to(step.device).requires_grad_(False)
        module = self._modules[name]
        if next(module.parameters()).device != step.device:
            module.to(step.device)
        return module


def _module_of(method: str, name: str, step: Step, state: dict[str, Tensor]) -> nn.Module:
    heads, kv_heads, width = step.kv_heads * step.group, step.kv_heads, step.key.shape[3]
    if name.startswith("boundary"):
        return ChunkAdapter(kv_heads, width)
    if method == "dma":
        return DynamicMask(kv_heads, width)
    if method == "sparda":
        return Forecast(heads, kv_heads, width)
    return QkAdapter(heads, kv_heads, width, next(iter(state.values())).shape[0])


def trained(path: str, method: str) -> Trained:
    """EngineError if there is no such file, or if it holds something else."""
    file = Path(path)
    if not file.is_file():
        raise EngineError(f"{method}: no weights at {path}: make them with python -m eval.train_attention")
    return _read(path, method, file.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _read(path: str, method: str, changed: int) -> Trained:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as held:
            found = (held.metadata() or {}).get("method")
            tensors = {name: held.get_tensor(name).float() for name in held.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise EngineError(f"{method}: {path} is not a safetensors file: {error}") from error
    if found != method or "rotary" not in tensors:
        raise EngineError(f"{method}: {path} holds weights of {found or 'something else'}, not of {method}")
    return Trained(path, method, tensors)
