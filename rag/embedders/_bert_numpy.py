"""The forward pass of BERT (Devlin et al., arXiv 1810.04805) with mean pooling in NumPy.

For questions and for machines without torch: it starts in a fraction of the time that torch takes to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rag.embedders._batches import Ids, Run, Runtime, runs
from rag.embedders._files import EncoderFiles

if TYPE_CHECKING:
    from rag.protocols import Vectors

__all__ = ["NumpyBert", "erf"]

Array = NDArray[np.float32]


class NumpyBert(Runtime):
    """An encoder in float32. `encode` takes texts as token ids with their special tokens."""

    most_tokens = 256  # larger intermediate matrices fall out of the CPU's cache: 2,048 is 20 % slower

    def __init__(self, files: EncoderFiles) -> None:
        from safetensors.numpy import load_file

        config = files.config
        self.dimension = int(config["hidden_size"])
        self._heads = int(config["num_attention_heads"])
        self._layers = int(config["num_hidden_layers"])
        self._eps = np.float32(config["layer_norm_eps"])
        self._weights: dict[str, Array] = {
            name.removeprefix("bert."): value.astype(np.float32, copy=False)
            for name, value in load_file(files.weights).items()
            if value.dtype.kind == "f"
        }

    def encode(self, batch: Sequence[Ids]) -> Vectors:
        state = self.states(batch)
        parts = [state[at : at + n * length].reshape(n, length, -1).mean(axis=1) for at, n, length in runs(batch)]
        return np.concatenate(parts)

    def states(self, batch: Sequence[Ids]) -> Vectors:
        stretches = runs(batch)
        state = self._embed(batch)
        for layer in range(self._layers):
            state = self._layer(f"encoder.layer.{layer}.", state, stretches)
        return state

    def _embed(self, batch: Sequence[Ids]) -> Array:
        weights = self._weights
        ids = np.concatenate([np.asarray(one) for one in batch])
        places = np.concatenate([np.arange(len(one)) for one in batch])
        state: Array = weights["embeddings.word_embeddings.weight"][ids]
        state = state + weights["embeddings.position_embeddings.weight"][places]
        state = state + weights["embeddings.token_type_embeddings.weight"][0]
        return self._norm("embeddings.LayerNorm", state)

    def _layer(self, name: str, state: Array, stretches: Sequence[Run]) -> Array:
        attended = self._linear(f"{name}attention.output.dense", self._attention(name, state, stretches))
        state = self._norm(f"{name}attention.output.LayerNorm", state + attended)
        inner = _gelu(self._linear(f"{name}intermediate.dense", state))
        return self._norm(f"{name}output.LayerNorm", state + self._linear(f"{name}output.dense", inner))

    def _attention(self, name: str, state: Array, stretches: Sequence[Run]) -> Array:
        """(tokens, width) -> (tokens, width); each text attends to itself only."""
        query, key, value = (self._linear(f"{name}attention.self.{part}", state) for part in ("query", "key", "value"))
        scale = np.float32((self.dimension // self._heads) ** -0.5)
        out = np.empty_like(state)
        for at, n, length in stretches:
            q, k, v = (self._by_head(part[at : at + n * length], n, length) for part in (query, key, value))
            scores = (q * scale) @ k.transpose(0, 1, 3, 2)
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ v
            out[at : at + n * length] = mixed.transpose(0, 2, 1, 3).reshape(n * length, -1)
        return out

    def _by_head(self, rows: Array, n: int, length: int) -> Array:
        """(n * length, width) -> (n, heads, length, dim)."""
        return rows.reshape(n, length, self._heads, -1).transpose(0, 2, 1, 3)

    def _linear(self, name: str, state: Array) -> Array:
        product: Array = state @ self._weights[f"{name}.weight"].T
        product += self._weights[f"{name}.bias"]
        return product

    def _norm(self, name: str, state: Array) -> Array:
        centred = state - state.mean(axis=-1, keepdims=True)
        centred /= np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + self._eps)
        scaled: Array = centred * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return scaled


def _gelu(x: Array) -> Array:
    """The exact GELU, x * Phi(x), as BERT was trained with; not the tanh form."""
    grown: Array = np.float32(0.5) * x * (np.float32(1.0) + erf(x * np.float32(0.5**0.5)))
    return grown


def erf(x: Array) -> Array:
    """The error function with an absolute error below 5e-7 in float32.

    Abramowitz and Stegun, Handbook of Mathematical Functions, formula 7.1.26; NumPy has no erf of its own.
    """
    size = np.abs(x)
    t = np.float32(1.0) / (np.float32(1.0) + np.float32(0.3275911) * size)
    series = np.float32(1.061405429) * t - np.float32(1.453152027)
    for term in (1.421413741, -0.284496736, 0.254829592):
        series = series * t + np.float32(term)
    value: Array = np.copysign(np.float32(1.0) - series * t * np.exp(-size * size), x)
    return value
