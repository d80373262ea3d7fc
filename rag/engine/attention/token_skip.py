"""SPTS (Probe and Skip), arXiv 2601.13155: a few queries are run first, and the tokens that they attend to most stay;
the deeper the layer, the fewer, and a token that a layer left out stays out of all deeper ones.

Deviations: a selection cannot take tokens out of a layer, so that a skipped token is no key for later rows but still
has a row of its own, which reads what the others do (no MLP and no query is saved; the paper's proxy for the MLP, LTP,
has no place here). The probe is the last `probes` queries of a pass (PAP). All heads keep the same tokens. The budget
of a stage (MSDP) is a fixed share of the stage before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rag.engine.attention._base import Kept, Memory, Selection, Step
from rag.engine.attention._blocks import Blocks
from rag.engine.attention.units import Units
from rag.engine.errors import EngineError

__all__ = ["TokenSkip"]


@dataclass(frozen=True, kw_only=True)
class TokenSkip(Selection):
    """The first `start` layers are dense; from there on each `every` layers are a stage, which keeps the share `keep`
    of the tokens of the one before, `least` at least, and the first `sink`. Rows also read the last `local` slots. What
    a prompt kept stays for the answer, which reads all behind it too."""

    name: ClassVar[str] = "token-skip"
    foresight: ClassVar[Literal["none", "block", "pass"]] = "pass"
    keep: float = 0.6
    start: int = 4
    every: int = 6
    least: int = 128
    probes: int = 32
    sink: int = 4
    local: int = 64
    q_block: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise EngineError(f"token-skip: keep must lie in (0, 1], not {self.keep}")
        if min(self.every, self.probes, self.local, self.q_block) < 1 or min(self.start, self.least, self.sink) < 0:
            raise EngineError(
                "token-skip: every, probes, local and q_block must be >= 1, start, least and sink >= 0, not "
                f"{self.every}, {self.probes}, {self.local}, {self.q_block}, {self.start}, {self.least} and {self.sink}"
            )

    @property
    def label(self) -> str:
        return f"{self.name}({self.keep:g})"

    def select(self, step: Step, memory: Memory) -> Kept | None:
        if step.layer < self.start:
            return None
        held: _Tokens | None = memory.held.get("tokens")
        if step.queries == 1:
            if held is None or held.mask is None:
                return None
            return Kept(Units.pages(held.slots, 1, step.device), (0, 1), (held.slots,), held.mask[:, None, None])
        blocks = Blocks.of(step, self.q_block, window=self.local)
        tokens = self._tokens(step, memory, int(step.places[-1]) + 1)
        memory.held["tokens"] = _Tokens(tokens, tokens.shape[1])
        units = Units.pages(blocks.stop, 1, step.device)
        mask = tokens[:, None, None, : blocks.stop] & ~blocks.later(units.starts)
        return Kept(units, blocks.rows, blocks.local, mask)

    def _tokens(self, step: Step, memory: Memory, slots: int) -> Tensor:
        """(batch, slots): the tokens of the step's stage, which are among those of the stage before."""
        stage, at = divmod(step.layer - self.start, self.every)
        last: _Stage | None = memory.across.get(self.name)
        if stage and (last is None or last.layer != step.layer - 1 or last.of != (step.first, slots)):
            last = None  # the layer before was not asked in this pass
        if last is not None and at:
            tokens = last.tokens
        else:
            scores = self._probed(step, slots)
            if last is not None and stage:
                scores = scores.masked_fill(~last.tokens, -torch.inf)
            count = min(slots, max(self.least, round(self.keep ** (stage + 1) * slots)))
            tokens = torch.zeros_like(scores, dtype=torch.bool)
            tokens.scatter_(1, scores.argsort(dim=1, descending=True, stable=True)[:, :count], True)
            tokens &= scores > -torch.inf
            tokens[:, : self.sink] = True
        memory.across[self.name] = _Stage(step.layer, (step.first, slots), tokens)
        return tokens

    def _probed(self, step: Step, slots: int) -> Tensor:
        """(batch, slots) float32: the mean attention of the last queries, of all heads, to each slot."""
        rows = slice(max(0, step.queries - self.probes), step.queries)
        query = step.grouped[:, :, :, rows].detach()
        keys = step.key[:, :, :slots].detach().transpose(-1, -2)
        scores = ((query.flatten(2, 3) @ keys).float() * step.scaling).reshape(*query.shape[:4], slots)
        later = torch.arange(slots, device=step.device) > step.places[rows].to(step.device)[:, None]
        mass: Tensor = scores.masked_fill(later, -torch.inf).softmax(-1).mean((1, 2, 3))
        return mass


@dataclass(frozen=True, eq=False, slots=True)
class _Stage:
    """The tokens of a layer, in the pass that began and ended at the slots `of`."""

    layer: int
    of: tuple[int, int]
    tokens: Tensor


@dataclass(eq=False, slots=True)
class _Tokens:
    """What the last prompt kept of the first `slots` slots."""

    mask: Tensor | None
    slots: int

    def rewind(self, slots: int) -> None:
        if slots < self.slots:
            self.mask = None
