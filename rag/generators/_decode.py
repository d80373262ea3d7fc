"""Prompts into a model and tokens out of it, by the engine; models it refuses are read by transformers alone.

Prompts are computed in steps of STEP tokens from their start, and prefixes are kept by such steps. A step is then the
same computation, over the same shapes, whether what stands before it was computed or copied: the answer does not depend
on what was asked before, not even by rounding in bfloat16.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from rag.engine.decode import Runs, generate
from rag.engine.draft import Draft, SuffixDraft
from rag.engine.errors import EngineError
from rag.engine.model import EngineModel
from rag.engine.prefill import PartCount, Prefill, prefill
from rag.engine.prefix import PrefixPool, prefill_with_prefix
from rag.engine.share import generate_batch
from rag.errors import ConfigError

if TYPE_CHECKING:
    from rag.generators._sparsely import SparsePrompt

__all__ = ["STEP", "CountedDraft", "Decoder", "Reading", "read_on", "stop_ids"]

STEP = 256


@dataclass(frozen=True, eq=False)
class Reading:
    """A prompt that `model` read into `cache`: the logits (vocabulary), float32, are those after its last token.

    The counts are those of GenerationStats; `made` are the blocks that were made for it, `made_tokens` what was taken
    from those. `parts` count for every part what was taken from blocks, these among them; () where there are no blocks.
    """

    logits: Tensor
    model: Runs[Any]
    cache: Any
    computed: int
    reused: int = 0
    repaired: int = 0
    loaded: int = 0
    made: int = 0
    made_tokens: int = 0
    policy: str = "none"
    parts: tuple[PartCount, ...] = ()
    skipped: tuple[int, ...] = ()
    """Parts, by number, that are not in the cache: nothing reads them."""

    def step(self, token: int) -> Tensor:
        """The logits (vocabulary) after one more token."""
        return self.model.run([token], self.cache)[-1]


def read_on(engine: EngineModel, done: Prefill, **counts: Any) -> Reading:
    """The reading after a prefill; `counts` replace those of the prefill."""
    told = {"computed": done.computed, "reused": done.reused, "repaired": done.repaired, "parts": done.parts, **counts}
    told.setdefault("made_tokens", done.reused - told["reused"])
    return Reading(done.logits, engine, done.cache, **told)


def stop_ids(model: Any, tokenizer: Any) -> set[int]:
    """Every id that ends an answer."""
    ends = model.generation_config.eos_token_id
    given = ends if isinstance(ends, list) else [ends]
    return {end for end in (*given, tokenizer.eos_token_id) if end is not None}


class CountedDraft(Draft):
    """Guesses from the prompt and the answer so far, and how many of the `drafted` tokens were `accepted`."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._guesses = SuffixDraft(ids)
        self.drafted = self.accepted = 0

    def extend(self, ids: Sequence[int]) -> None:
        self._guesses.extend(ids)

    def propose(self, most: int) -> list[int]:
        return self._guesses.propose(most)

    def learn(self, proposed: int, accepted: int) -> None:
        self.drafted += proposed
        self.accepted += accepted
        self._guesses.learn(proposed, accepted)


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
            raise EngineError("neither KV reuse nor sparse attention works with this model")
        return self.engine

    @property
    def shares(self) -> bool:
        """Whether the model can read several texts behind one context at once."""
        if self.engine is None:
            return False
        try:
            self.engine.require_chunk_reuse()
        except EngineError:
            return False
        return True

    @property
    def token_bytes(self) -> int:
        """Of the keys and values of one token; 0 where the engine refuses the model."""
        return self.engine.token_bytes if self.engine is not None else 0

    def read(self, ids: Sequence[int], room: int, sparse: SparsePrompt | None = None) -> Reading:
        """The whole prompt, exactly where it is not read by `sparse`; `room` is how many tokens may follow."""
        if sparse is not None:
            return self._read_by(sparse, ids, room)
        if self.engine is None:
            plain, cache = _Plain(self._model), _PlainCache()
            return Reading(plain.run(ids, cache)[-1], plain, cache, computed=len(ids))
        if self.pool is None:
            held = self.engine.new_cache(len(ids) + room)
            return read_on(self.engine, prefill(self.engine, ids, held, chunk_tokens=STEP))
        with self.lock:
            done = prefill_with_prefix(self.engine, ids, self.pool, room=room, chunk_tokens=STEP)
        return read_on(self.engine, done, policy="prefix")

    def _read_by(self, sparse: SparsePrompt, ids: Sequence[int], room: int) -> Reading:
        """Of what was read otherwise nothing is used, and nothing is kept behind what is the same for all."""
        engine, cache = self.required, sparse.cache(self.required, len(ids) + room)
        if self.pool is None:
            done = prefill(engine, ids, cache, chunk_tokens=STEP)
        else:
            with self.lock, sparse.salted(self.pool):
                with self.pool.lease(ids, most=min(sparse.fixed, len(ids) - 1)) as lease:
                    lease.copy_into(cache)
                    done = prefill(engine, ids, cache, chunk_tokens=STEP)
                self.pool.store(ids[: sparse.fixed], cache)
        sparse.prompt_read()
        return read_on(engine, done, policy="none" if self.pool is None else "prefix")

    def draft(self, ids: Sequence[int]) -> CountedDraft | None:
        """Guesses from the prompt `ids`; None where the engine refuses the model, whose states may not go back."""
        return CountedDraft(ids) if self.engine is not None else None

    def tokens(
        self, reading: Reading, most: int, *, temperature: float, seed: int, draft: Draft | None = None
    ) -> Generator[int]:
        """New ids, one by one, up to an end-of-text id, which is not given; temperature 0 is greedy."""
        return generate(
            reading.model, reading.cache, reading.logits, max_new_tokens=most, stops=self._stops, draft=draft,
            temperature=temperature, seed=seed,
        )  # fmt: skip

    def together(
        self, context: Reading, suffixes: Sequence[Sequence[int]], most: int, *, temperature: float, seed: int
    ) -> Iterator[tuple[int, int]]:
        """(number of the suffix, new id) behind each of `suffixes`, all of them read behind `context` at once; every
        text is what `tokens` gives behind context and suffix. Only where `shares`."""
        return generate_batch(
            self.required, context.cache, suffixes, max_new_tokens=most, stops=self._stops, temperature=temperature,
            seed=seed,
        )  # fmt: skip


class _PlainCache:
    """What transformers itself keeps of `length` tokens."""

    def __init__(self) -> None:
        self.states: Any = None
        self.length = 0

    def truncate(self, length: int) -> None:
        if length != self.length:
            raise EngineError("what this model keeps of a text does not go back")


@dataclass(frozen=True)
class _Plain(Runs[_PlainCache]):
    """A model by its own cache, whatever that holds."""

    model: Any

    def run(self, ids: Sequence[int], cache: _PlainCache, *, keep: int = 1) -> Tensor:
        given = torch.tensor([list(ids)], device=self.model.device)
        with torch.inference_mode():
            out = self.model(input_ids=given, past_key_values=cache.states, use_cache=True, logits_to_keep=keep)
        cache.states = out.past_key_values
        cache.length += len(ids)
        logits: Tensor = out.logits[0].float()
        return logits
