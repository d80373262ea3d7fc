"""Many sequences behind one context: the context is computed once, kept once, and read by all of them in one pass.

Hydragen, arXiv 2402.05099; exact. Prompts that only happen to start alike are grouped as in BatchLLM first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rag.engine.attend import SharedContext, read_as_asked
from rag.engine.cache import KvCache
from rag.engine.decode import Stop, StopGate, chooser, generate
from rag.engine.errors import EngineError
from rag.engine.grouping import group_prompts, lots
from rag.engine.model import EngineModel
from rag.engine.prefill import prefill
from rag.engine.prefix import PrefixPool, prefill_with_prefix

__all__ = ["SharedBatch", "generate_batch", "generate_many", "prefill_batch"]


@dataclass(eq=False)
class SharedBatch:
    """Sequences behind a context of `context` tokens. `cache` has one row for each; the rows are padded on the left,
    `pads` (rows) slots each. `logits` (rows, vocabulary), float32, are those after the last token of each."""

    model: EngineModel
    cache: KvCache
    context: int
    pads: Tensor
    logits: Tensor

    def step(self, tokens: Sequence[int]) -> None:
        """Appends one token to every row."""
        slots = torch.arange(self.cache.length + 1, device=self.pads.device)
        seen = (slots[None] >= self.pads[:, None])[:, None, None]
        places = (self.context + self.cache.length - self.pads)[:, None]
        self.logits = _run(self.model, torch.tensor(tokens, device=self.pads.device)[:, None], places, self.cache, seen)

    def keep(self, rows: Sequence[int]) -> None:
        """Goes on with these rows only."""
        chosen = torch.tensor(rows, device=self.pads.device)
        self.cache.batch_select_indices(chosen)
        self.pads, self.logits = self.pads[chosen], self.logits[chosen]


def prefill_batch(
    model: EngineModel, context: KvCache, suffixes: Sequence[Sequence[int]], *, room: int = 0
) -> SharedBatch:
    """Computes every suffix behind what `context` holds, all of them in one pass. `context` stays as it is and must
    not change while the batch is in use. `room` is for tokens to come.

    Needs a model of a family that chunk reuse works with: others may read their context through a window.
    """
    model.require_chunk_reuse()
    if not suffixes or not all(suffixes):
        raise EngineError("a batch needs at least one suffix, and none of them empty")
    if not context.length or context.attention:
        raise EngineError("a shared context holds at least one token, and is read in the model's own way")
    if context.dropped:
        raise EngineError(f"{context.dropped} tokens of this context are gone: it is the start of no prompt")
    width, device = max(len(suffix) for suffix in suffixes), model.device
    pads = torch.tensor([width - len(suffix) for suffix in suffixes], device=device)
    ids = torch.tensor([[0] * (width - len(suffix)) + list(suffix) for suffix in suffixes], device=device)
    cache = model.new_cache(width + room)
    pairs = [layer.buffers() for layer in context.kv_layers]
    length = context.length
    cache.attention = {"shared": SharedContext([(k[:, :, :length], v[:, :, :length]) for k, v in pairs])}
    slots = torch.arange(width, device=device)
    seen = (slots[None, :] <= slots[:, None])[None] & (slots[None, None, :] >= pads[:, None, None])
    seen |= torch.eye(width, dtype=torch.bool, device=device)  # a padding reads itself: a softmax of nothing is NaN
    places = (length + slots[None] - pads[:, None]).clamp_min(0)
    return SharedBatch(model, cache, length, pads, _run(model, ids, places, cache, seen[:, None]))


def generate_batch(
    model: EngineModel,
    context: KvCache,
    suffixes: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stops: Collection[Stop] = (),
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[tuple[int, int]]:
    """(number of the suffix, next token of its text) as they come; each text is what `generate` with this seed gives
    behind context and suffix alone. A text that ended takes no more time."""
    batch = prefill_batch(model, context, suffixes, room=max_new_tokens)
    rows = list(range(len(suffixes)))
    choose = [chooser(temperature, seed) for _ in rows]
    gates = [StopGate(stops) for _ in rows]
    for count in range(max_new_tokens):
        chosen = [choose[row](batch.logits[at]) for at, row in enumerate(rows)]
        for row, token in zip(rows, chosen, strict=True):
            yield from ((row, clear) for clear in gates[row].push(token))
        kept = [at for at, row in enumerate(rows) if not gates[row].closed]
        if not kept or count + 1 == max_new_tokens:
            break
        if len(kept) < len(rows):
            batch.keep(kept)
        rows = [rows[at] for at in kept]
        batch.step([chosen[at] for at in kept])
    for row, gate in enumerate(gates):
        yield from ((row, clear) for clear in gate.rest())


def generate_many(
    model: EngineModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stops: Collection[Stop] = (),
    temperature: float = 0.0,
    seed: int = 0,
    pool: PrefixPool | None = None,
    least: int = 16,
    rows: int = 16,
    tokens: int = 1 << 16,
) -> list[list[int]]:
    """The text behind every prompt, in the prompts' order, as `generate` gives it for each alone.

    Prompts that share at least `least` tokens run behind one computation of them, in lots of up to `rows` prompts and
    `tokens` tokens behind what they share. What groups share among themselves comes from `pool`, where one is given.
    """
    if rows < 1 or tokens < 1:
        raise EngineError(f"rows must be >= 1 and tokens >= 1, not {rows} and {tokens}")
    texts: list[list[int]] = [[] for _ in prompts]
    for group in group_prompts(prompts, least=least):
        first = prompts[group.members[0]]
        start = first[: group.prefix] if len(group.members) > 1 else first
        done = prefill(model, start) if pool is None else prefill_with_prefix(model, start, pool)
        if len(group.members) == 1:
            one = generate(
                model, done.cache, done.logits, max_new_tokens=max_new_tokens, stops=stops, temperature=temperature,
                seed=seed,
            )  # fmt: skip
            texts[group.members[0]] = list(one)
            continue
        for members in lots(group, prompts, rows=rows, tokens=tokens, room=max_new_tokens):
            suffixes = [prompts[number][group.prefix :] for number in members]
            for row, token in generate_batch(
                model, done.cache, suffixes, max_new_tokens=max_new_tokens, stops=stops, temperature=temperature,
                seed=seed,
            ):  # fmt: skip
                texts[members[row]].append(token)
    return texts


def _run(model: EngineModel, ids: Tensor, places: Tensor, cache: KvCache, seen: Tensor) -> Tensor:
    """Logits (rows, vocabulary) after the last column of `ids` (rows, tokens), which stand at `places`."""
    with torch.no_grad(), read_as_asked(model.model):
        out = model.model(
            input_ids=ids,
            past_key_values=cache,
            use_cache=True,
            position_ids=places,
            attention_mask=seen,
            logits_to_keep=1,
            **cache.attention,
        )
    logits: Tensor = out.logits[:, -1].float()
    return logits
