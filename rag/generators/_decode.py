"""Prompts into a model and tokens out of it, by the engine; models it refuses are read by transformers alone.

Prompts are computed in steps of STEP tokens from their start, and prefixes are kept by such steps. A step is then the
same computation, over the same shapes, whether what stands before it was computed or copied: the answer does not depend
on what was asked before, not even by rounding in bfloat16.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rag.engine.errors import EngineError
from rag.engine.model import EngineModel
from rag.engine.prefill import Prefill, prefill
from rag.engine.prefix import PrefixPool, prefill_with_prefix
from rag.errors import ConfigError

__all__ = ["STEP", "Decoder", "Reading", "read_on"]

STEP = 256


@dataclass(frozen=True, eq=False)
class Reading:
    """A prompt that was read: the logits (vocabulary), float32, after its last token, and `step`, which reads one more
    token. The counts are those of GenerationStats; `made` are the blocks that were made for it."""

    logits: Tensor
    step: Callable[[int], Tensor]
    computed: int
    reused: int = 0
    repaired: int = 0
    loaded: int = 0
    made: int = 0
    policy: str = "none"


def read_on(engine: EngineModel, done: Prefill, **counts: Any) -> Reading:
    """The reading after a prefill; `counts` replace those of the prefill."""
    told = {"computed": done.computed, "reused": done.reused, "repaired": done.repaired, **counts}
    return Reading(done.logits, lambda token: engine.run([token], done.cache)[-1], **told)


class Decoder:
    """`model` with what it keeps between prompts: the prefixes, at most `pool_bytes` of them. For several threads."""

    def __init__(
        self, model: Any, *, stops: set[int], reuse: Literal["none", "prefix", "chunk"], pool_bytes: int
    ) -> None:
        self._model, self._stops = model, stops
        self.lock = threading.RLock()
        self.engine: EngineModel | None = None
        self.pool: PrefixPool | None = None
        try:
            self.engine = EngineModel(model)
            if reuse == "chunk":
                self.engine.require_chunk_reuse()
        except EngineError as error:
            if reuse == "chunk":
                raise ConfigError(f"local: reuse chunk: {error}. Set reuse: prefix or none") from error
        if self.engine is not None and reuse == "prefix":
            salt = self.engine.fingerprint.encode()
            self.pool = PrefixPool(max_bytes=pool_bytes, block_tokens=STEP, salt=salt)

    @property
    def required(self) -> EngineModel:
        """The engine, which a decoder that reuses chunks has."""
        if self.engine is None:
            raise EngineError("no KV reuse works with this model")
        return self.engine

    def read(self, ids: Sequence[int], room: int) -> Reading:
        """The whole prompt, exactly; `room` is how many tokens may follow."""
        if self.engine is None:
            return self._read_plainly(ids)
        if self.pool is None:
            cache = self.engine.new_cache(len(ids) + room)
            return read_on(self.engine, prefill(self.engine, ids, cache, chunk_tokens=STEP))
        with self.lock:
            done = prefill_with_prefix(self.engine, ids, self.pool, room=room, chunk_tokens=STEP)
        return read_on(self.engine, done, policy="prefix")

    def _read_plainly(self, ids: Sequence[int]) -> Reading:
        cache: Any = None

        def run(step: Sequence[int]) -> Tensor:
            nonlocal cache
            given = torch.tensor([list(step)], device=self._model.device)
            with torch.inference_mode():
                out = self._model(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            logits: Tensor = out.logits[0, -1].float()
            return logits

        return Reading(run(ids), lambda token: run([token]), computed=len(ids))

    def tokens(self, reading: Reading, most: int, *, temperature: float, seed: int) -> Iterator[int]:
        """New ids, one by one, up to an end-of-text id, which is not given; temperature 0 is greedy."""
        random = torch.Generator(device="cpu").manual_seed(seed)
        logits = reading.logits
        for count in range(most):
            logits = logits.cpu()
            if temperature:
                chances = torch.softmax(logits / temperature, dim=-1)
                token = int(torch.multinomial(chances, 1, generator=random))
            else:
                token = int(logits.argmax())
            if token in self._stops:
                return
            yield token
            if count + 1 < most:
                logits = reading.step(token)
