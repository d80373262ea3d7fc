"""Dynamic Mask Attention, arXiv 2508.02124: values gate the keys. Each kv head gives every slot a bias from its value,
reads the slots with the largest, and adds the bias to their scores.

A layer that was trained for it has `A` and `dt_proj`, as those of Doge: bias = exp(A * softplus(dt_proj(v))). Doge in
transformers gates itself, by a mask of numbers, under which a pass is dense here. Other models read with `weights`,
gates that were distilled from their own attention: A * softplus(dt_proj(v)) chooses. All others get a gate without
training: the log of the value's length. `strength` times either is the bias.
Deviations: a block of rows chooses once, among the slots before it, and reads itself in full. Distilled gates start at
A = 1 (the paper: 0) and learn to hold the attention of a frozen model, not its next token; adding them to the scores
is no part of that, so that `strength` is 0. The gate without training chooses worse than recent tokens do: it is a
floor to compare with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rag.engine.attention._adapters import trained
from rag.engine.attention._base import Kept, Memory, Selection, Step
from rag.engine.attention._blocks import Blocks
from rag.engine.attention._choose import fill
from rag.engine.attention.units import Units
from rag.engine.errors import EngineError

__all__ = ["Dma"]


@dataclass(frozen=True, kw_only=True)
class Dma(Selection):
    """`keep_window_size` slots a row, the last `local` among them, its own included. `weights` is a file of gates from
    `eval.train_attention`. `trained`: refuse layers without a gate instead of using the one without training."""

    name: ClassVar[str] = "dma"
    foresight: ClassVar[Literal["none", "block", "pass"]] = "none"
    keep_window_size: int = 2048
    local: int = 64
    strength: float = 0.0
    trained: bool = False
    weights: str = ""
    q_block: int = 64

    def __post_init__(self) -> None:
        if self.strength < 0 or min(self.local, self.q_block) < 1:
            raise EngineError("dma: strength must be >= 0, local and q_block >= 1")
        if max(self.local, self.q_block) > self.keep_window_size:
            raise EngineError(f"dma: keep_window_size must hold local and q_block, not {self.keep_window_size}")

    @property
    def budget(self) -> int:
        return self.keep_window_size

    def select(self, step: Step, memory: Memory) -> Kept | None:
        blocks = Blocks.of(step, self.q_block, window=self.local)
        gate, bias = self._gate(step)
        units = Units.pages(blocks.stop, 1, step.device)
        open_to = gate.detach()[:, :, None, : blocks.stop].masked_fill(blocks.later(units.starts), -torch.inf)
        one = torch.ones((), dtype=torch.long, device=step.device)
        mask = fill(open_to, one, blocks.left(self.keep_window_size, step.device))
        return Kept(units, blocks.rows, blocks.local, mask, bias=bias)

    def _gate(self, step: Step) -> tuple[Tensor, Tensor | None]:
        """What chooses, and what is added to the scores: (batch, kv heads, slots), float32."""
        module = step.module
        if hasattr(module, "A") and hasattr(module, "dt_proj"):
            given = module.dt_proj(step.value.transpose(1, 2).flatten(2))
            bias: Tensor = torch.exp(module.A * softplus(given)).transpose(1, 2).float()
            return bias, bias
        if self.weights:
            gate: Tensor = trained(self.weights, self.name).layer(step)(step.value)
        elif self.trained:
            raise EngineError(
                "dma: this model's attention has no trained gate (A and dt_proj): set trained=False, or weights to a "
                "file that python -m eval.train_attention made for it"
            )
        else:
            gate = step.value.float().norm(dim=-1).clamp(min=1e-6).log()
        return gate, self.strength * gate if self.strength else None
