"""The forward pass of BERT (Devlin et al., arXiv 1810.04805) with mean pooling in plain torch, without transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own usage)
from safetensors.torch import load_file
from torch import Tensor

from rag.embedders._batches import Ids, Run, Runtime, runs
from rag.embedders._files import EncoderFiles

if TYPE_CHECKING:
    from rag.protocols import Vectors

__all__ = ["TorchBert"]


class TorchBert(Runtime):
    """An encoder with float32 or bfloat16 weights. Pooling is float32 always."""

    most_tokens = 1 << 20

    def __init__(self, files: EncoderFiles, *, bf16: bool) -> None:
        config = files.config
        self.dimension = int(config["hidden_size"])
        self._heads = int(config["num_attention_heads"])
        self._layers = int(config["num_hidden_layers"])
        self._eps = float(config["layer_norm_eps"])
        dtype = torch.bfloat16 if bf16 else torch.float32
        self._weights: dict[str, Tensor] = {
            name.removeprefix("bert."): value.to(dtype)
            for name, value in load_file(files.weights).items()
            if value.is_floating_point()
        }
        self._joined = [self._join_heads(f"encoder.layer.{layer}.attention.self.") for layer in range(self._layers)]

    def _join_heads(self, name: str) -> tuple[Tensor, Tensor]:
        """One matrix for query, key and value: one large product instead of three."""
        parts = [(self._weights.pop(f"{name}{p}.weight"), self._weights.pop(f"{name}{p}.bias")) for p in _PROJECTIONS]
        return torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts])

    @torch.inference_mode()
    def encode(self, batch: Sequence[Ids]) -> Vectors:
        state = self._states(batch)
        parts = [state[at : at + n * length].view(n, length, -1).mean(dim=1) for at, n, length in runs(batch)]
        vectors: Vectors = torch.cat(parts).numpy()
        return vectors

    @torch.inference_mode()
    def states(self, batch: Sequence[Ids]) -> Vectors:
        vectors: Vectors = self._states(batch).numpy()
        return vectors

    def _states(self, batch: Sequence[Ids]) -> Tensor:
        """(tokens of the batch, width) in float32."""
        stretches = runs(batch)
        state = self._embed(batch)
        for layer in range(self._layers):
            state = self._layer(layer, state, stretches)
        return state.float()

    def _embed(self, batch: Sequence[Ids]) -> Tensor:
        weights = self._weights
        ids = torch.tensor([token for one in batch for token in one])
        places = torch.cat([torch.arange(len(one)) for one in batch])
        state = weights["embeddings.word_embeddings.weight"][ids]
        state = state + weights["embeddings.position_embeddings.weight"][places]
        return self._norm("embeddings.LayerNorm", state + weights["embeddings.token_type_embeddings.weight"][0])

    def _layer(self, layer: int, state: Tensor, stretches: Sequence[Run]) -> Tensor:
        name = f"encoder.layer.{layer}."
        projected = F.linear(state, *self._joined[layer])
        attended = torch.cat([self._attention(projected, run) for run in stretches])
        state = self._norm(
            f"{name}attention.output.LayerNorm", state + self._linear(f"{name}attention.output.dense", attended)
        )
        inner = F.gelu(self._linear(f"{name}intermediate.dense", state))
        return self._norm(f"{name}output.LayerNorm", state + self._linear(f"{name}output.dense", inner))

    def _attention(self, projected: Tensor, run: Run) -> Tensor:
        """(tokens, 3 * width) -> (n * length, width) of one run; each text attends to itself only."""
        at, n, length = run
        rows = projected[at : at + n * length].view(n, length, 3, self._heads, -1)
        query, key, value = rows.permute(2, 0, 3, 1, 4)  # each (n, heads, length, dim)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return mixed.transpose(1, 2).reshape(n * length, -1)

    def _linear(self, name: str, state: Tensor) -> Tensor:
        return F.linear(state, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, name: str, state: Tensor) -> Tensor:
        weight = self._weights[f"{name}.weight"]
        return F.layer_norm(state, weight.shape, weight, self._weights[f"{name}.bias"], self._eps)


_PROJECTIONS = ("query", "key", "value")
