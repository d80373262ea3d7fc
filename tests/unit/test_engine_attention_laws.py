"""What every selection keeps to, on every executor."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest

torch = pytest.importorskip("torch")

import rag.engine.attention  # noqa: E402
from rag.engine.attention import Kept, Memory, Selection, Sparse, Step, Units, read_sparsely  # noqa: E402
from rag.engine.attention.chunk_block import ChunkBlock  # noqa: E402
from rag.engine.attention.chunkllm import Chunkllm  # noqa: E402
from rag.engine.attention.compact import Compact  # noqa: E402
from rag.engine.attention.dense import Dense  # noqa: E402
from rag.engine.attention.dhsa import Dhsa  # noqa: E402
from rag.engine.attention.dma import Dma  # noqa: E402
from rag.engine.attention.executors.dense_mask import pair_mask  # noqa: E402
from rag.engine.attention.flexprefill import FlexPrefill  # noqa: E402
from rag.engine.attention.hip import Hip  # noqa: E402
from rag.engine.attention.hisa import Hisa  # noqa: E402
from rag.engine.attention.longheads import LongHeads  # noqa: E402
from rag.engine.attention.mac import Mac  # noqa: E402
from rag.engine.attention.quest import Quest  # noqa: E402
from rag.engine.attention.share import Share  # noqa: E402
from rag.engine.attention.sink_recent import SinkRecent  # noqa: E402
from rag.engine.attention.sparda import Sparda  # noqa: E402
from rag.engine.attention.token_skip import TokenSkip  # noqa: E402
from rag.engine.attention.tokenselect import TokenSelect  # noqa: E402
from rag.engine.cache import KvCache  # noqa: E402
from rag.engine.decode import generate  # noqa: E402
from rag.engine.model import FAMILIES, EngineModel  # noqa: E402
from rag.engine.prefill import prefill  # noqa: E402
from tests.unit.test_engine_model import shared, some_ids, tiny  # noqa: E402

IDS = some_ids(65, seed=5)
PROMPT, MANY = 60, 10_000
SPANS = [(5, 17), (17, 30), (32, 45)]
SELECTIONS: dict[str, Any] = {
    "chunk_block": ChunkBlock(
        density=0.5, anchor=8, floor=1, split=4, longer_than=8, question_dense=False, refresh=4, heads=((0, 0), (1, 0))
    ),
    "chunkllm": Chunkllm(budget=24, chunk_size=4, sink=2, local=6, refresh=3, trained=False, q_block=8),
    "compact": Compact(inner=Quest(budget=16, page_size=4, dense_layers=0, prefill=True, q_block=4), q_block=8),
    "dense": Dense(),
    "dhsa": Dhsa(budget_prefill=24, budget_decode=24, block_size=4, local_tokens=6, sink=2, q_block=8),
    "dma": Dma(keep_window_size=24, local=6, strength=0.5, q_block=8),
    "flexprefill": FlexPrefill(gamma=0.6, tau=0.2, min_budget=8, block_size=4),
    "hip": Hip(sink=4, window=8, chunk_sizes=(4, 2), keeps=(16, 8), q_block=8, q_stride=2, refresh=3),
    "hisa": Hisa(top_k=16, top_m=5, block_size=4, q_block=8),
    "longheads": LongHeads(attention_length=20, chunk_size=4, q_block=4),
    "mac": Mac(inner=Quest(budget=24, page_size=4, dense_layers=1, prefill=True, q_block=8), threshold=1.4, amend=6),
    "quest": Quest(budget=24, page_size=4, dense_layers=1, prefill=True, q_block=8),
    "share": Share(inner=Quest(budget=24, page_size=4, dense_layers=0, prefill=True, q_block=8), layers=2, start=0),
    "sink_recent": SinkRecent(budget=24, sink=4, q_block=8),
    "sparda": Sparda(budget=24, page_size=4, local=6, trained=False, q_block=8),
    "token_skip": TokenSkip(keep=0.5, start=1, every=1, least=8, probes=6, sink=2, local=6, q_block=8),
    "tokenselect": TokenSelect(top_k=8, n_init=4, n_local=12, q_block=8, threshold=0.5),
}
ALL_KEPT: dict[str, Any] = {
    "chunk_block": ChunkBlock(density=1.0, anchor=MANY, split=4, longer_than=8),
    "chunkllm": Chunkllm(budget=MANY, chunk_size=4, trained=False, q_block=8),
    "compact": Compact(inner=Quest(budget=MANY, page_size=4, dense_layers=0, prefill=True, q_block=4), q_block=8),
    "dense": Dense(),
    "dhsa": Dhsa(budget_prefill=MANY, budget_decode=MANY, block_size=4, q_block=8),
    "dma": Dma(keep_window_size=MANY, local=6, q_block=8),
    "flexprefill": FlexPrefill(gamma=1.0, min_budget=4, block_size=4),
    "hip": Hip(sink=4, window=8, chunk_sizes=(4, 2), keeps=(MANY, MANY), q_block=8),
    "hisa": Hisa(top_k=MANY, top_m=MANY, block_size=4, q_block=8),
    "longheads": LongHeads(attention_length=MANY, chunk_size=4, q_block=4),
    "mac": Mac(inner=Quest(budget=MANY, page_size=4, dense_layers=0, prefill=True, q_block=8), threshold=1.4, amend=6),
    "quest": Quest(budget=MANY, page_size=4, dense_layers=0, prefill=True, q_block=8),
    "share": Share(inner=Quest(budget=MANY, page_size=4, dense_layers=0, prefill=True, q_block=8), layers=2, start=0),
    "sink_recent": SinkRecent(budget=MANY, q_block=8),
    "sparda": Sparda(budget=MANY, page_size=4, trained=False, q_block=8),
    "token_skip": TokenSkip(keep=1.0, start=0, every=1, q_block=8),
    "tokenselect": TokenSelect(top_k=MANY, q_block=8),
}
NEVER_AGAIN: dict[str, Any] = {"tokenselect": {"threshold": 2.0}, "mac": {"threshold": 0.0}}
"""With these a choice is not used again, which a whole batch decides together."""
every = pytest.mark.parametrize("name", SELECTIONS)


def flex_is_here() -> bool:
    try:
        importlib.import_module("torch.nn.attention.flex_attention")
    except ImportError:
        return False
    return True


skip_flex = pytest.mark.skipif(not flex_is_here(), reason="this torch has no FlexAttention")
run_by = pytest.mark.parametrize("executor", ["dense_mask", "gather", pytest.param("flex", marks=skip_flex)])
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def units() -> Units:
    return Units.of_spans(SPANS, ids=["a", "b", "c"], priors=[0.1, 0.9, 0.4])


def run(
    selection: Selection | None,
    executor: Any = "gather",
    *,
    model: EngineModel | None = None,
    ids: Sequence[int] = IDS,
    passes: Sequence[int] = (PROMPT,),
) -> tuple[Any, Sparse | None]:
    """Logits of all ids, in passes that end where `passes` say and token by token behind them; dense without one."""
    model = model or shared()
    cache = model.new_cache(len(ids))
    ends = [0, *(one for one in passes if one < len(ids)), *range(max(passes) + 1, len(ids)), len(ids)]
    sparse = Sparse(selection, executor, units()) if selection is not None else None
    steps = [(ids[a:b], b - a) for a, b in pairwise(ends)]
    if sparse is None:
        return torch.cat([model.run(part, cache, keep=n) for part, n in steps]), None
    with read_sparsely(model.model, sparse):
        return torch.cat([model.run(part, cache, keep=n) for part, n in steps]), sparse


@dataclass(frozen=True, kw_only=True)
class Recorded(Selection):
    """What another selection was asked and answered."""

    name: ClassVar[str] = "recorded"
    inner: Selection
    seen: list[tuple[Step, Kept | None]] = field(default_factory=list)

    def select(self, step: Step, memory: Memory) -> Kept | None:
        kept = self.inner.select(step, memory)
        self.seen.append((step, kept))
        return kept

    @property
    def masks(self) -> list[Any]:
        """(1, kv heads, queries, slots) of every pass that was not dense."""
        heads = 2
        return [pair_mask(step, kept).expand(1, heads, -1, -1) for step, kept in self.seen if kept is not None]


def test_every_file_has_one_and_is_here() -> None:
    folder = Path(next(iter(rag.engine.attention.__path__)))
    files = [file.stem for file in sorted(folder.glob("*.py")) if not file.stem.startswith("_")]
    names = [name for name in files if name not in ("sparse", "units")]
    assert names == sorted(SELECTIONS)
    for name in names:
        assert importlib.import_module(f"rag.engine.attention.{name}").__all__ == [type(SELECTIONS[name]).__name__]
        assert SELECTIONS[name].name == name.replace("_", "-")
        type(SELECTIONS[name])()  # has defaults


@every
@run_by
@pytest.mark.parametrize("passes", [(PROMPT,), (7, 31, PROMPT)], ids=["whole", "chunked"])
def test_all_kept_is_dense(name: str, executor: str, passes: tuple[int, ...]) -> None:
    expected, _ = run(None)
    given, sparse = run(ALL_KEPT[name], executor, passes=passes)
    assert sparse is not None
    assert sparse.stats.density == 1
    assert (given - expected).abs().max() <= 1e-5 * expected.abs().max()


@every
@pytest.mark.parametrize("family", FAMILIES)
def test_all_kept_is_dense_in_every_family(name: str, family: str) -> None:
    expected, _ = run(None, model=shared(family))
    given, _ = run(ALL_KEPT[name], model=shared(family))
    assert (given - expected).abs().max() <= 1e-5 * expected.abs().max()


SHAPES = [
    pytest.param("gather", (4, 2), (PROMPT,), id="gather"),
    pytest.param("gather", (4, 2), (7, 31, PROMPT), id="gather-chunked"),
    pytest.param("gather", (4, 4), (PROMPT,), id="gather-all-heads"),
    pytest.param("gather", (8, 2), (7, 31, PROMPT), id="gather-group-of-4"),
    pytest.param("gather", (4, 1), (PROMPT,), id="gather-one-kv-head"),
    pytest.param("flex", (4, 2), (7, 31, PROMPT), id="flex-chunked", marks=skip_flex),
    pytest.param("flex", (4, 1), (PROMPT,), id="flex-one-kv-head", marks=skip_flex),
]


@every
@pytest.mark.parametrize(("executor", "heads", "passes"), SHAPES)
def test_executors_agree(name: str, executor: str, heads: tuple[int, int], passes: tuple[int, ...]) -> None:
    model = tiny(num_attention_heads=heads[0], num_key_value_heads=heads[1])
    expected, reference = run(SELECTIONS[name], "dense_mask", model=model, passes=passes)
    given, sparse = run(SELECTIONS[name], executor, model=model, passes=passes)
    assert sparse is not None
    assert reference is not None
    assert (given - expected).abs().max() <= 2e-5 * expected.abs().max()
    same = {"executor": "", "prefill_executor": "", "decode_executor": ""}
    assert replace(sparse.stats, **same) == replace(reference.stats, **same)
    assert name == "dense" or sparse.stats.density < 0.95
    assert name == "dense" or not torch.allclose(given, run(None, model=model)[0], atol=1e-2)


@every
@pytest.mark.parametrize("changed", [1, 20, 37, 50, PROMPT - 1, PROMPT + 4])
def test_a_later_token_changes_no_earlier_row(name: str, changed: int) -> None:
    """Where the choice pools a block of rows, no row of an earlier block."""
    selection = SELECTIONS[name]
    other = [*IDS[:changed], *(3 + (one + 11) % 90 for one in IDS[changed:])]
    before, after = run(selection)[0], run(selection, ids=other)[0]
    safe = changed
    if selection.foresight == "block" and changed < PROMPT:
        cuts = [0, 5, 17, 30, 32, 45] if name == "chunk_block" else range(0, PROMPT, selection.q_block)
        safe = max(cut for cut in cuts if cut <= changed)
    if selection.foresight == "pass" and changed < PROMPT:
        safe = 0
    assert torch.equal(before[:safe], after[:safe])
    assert not torch.allclose(before[changed], after[changed], atol=1e-3)


@every
def test_what_is_read_is_causal_and_holds_the_row_itself(name: str) -> None:
    recorded = Recorded(inner=SELECTIONS[name])
    run(recorded, passes=(7, 31, PROMPT))
    for (step, _), mask in zip([one for one in recorded.seen if one[1] is not None], recorded.masks, strict=True):
        for row, place in enumerate(step.places.tolist()):
            assert bool(mask[:, :, row, place].all())
            assert not bool(mask[:, :, row, place + 1 :].any())


@every
@pytest.mark.parametrize("side", ["left", "right"])
@run_by
def test_padding_changes_nothing(name: str, side: str, executor: str) -> None:
    """A batch of prompts of several lengths, then tokens one by one, against each alone."""
    model = shared()
    texts = [IDS[:PROMPT], some_ids(47, seed=6), some_ids(3, seed=7)]
    selection = SELECTIONS[name]
    longest = PROMPT
    pads = [longest - len(text) for text in texts]
    rows = [([0] * p + t if side == "left" else t + [0] * p) for p, t in zip(pads, texts, strict=True)]
    real = [
        ([0] * p + [1] * len(t) if side == "left" else [1] * len(t) + [0] * p) for p, t in zip(pads, texts, strict=True)
    ]
    mask = torch.tensor(real)
    sparse = Sparse(selection, executor, [units()] * 3)  # type: ignore[arg-type]
    cache = KvCache(model.layers)
    with torch.no_grad(), read_sparsely(model.model, sparse):
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        out = [_batch(model, torch.tensor(rows), mask, places, cache)]
        for step in range(3 if side == "left" else 0):
            mask = torch.cat((mask, torch.ones(3, 1, dtype=torch.long)), dim=1)
            more = torch.tensor([[IDS[PROMPT + step]]] * 3)
            out.append(_batch(model, more, mask, mask.sum(-1, keepdim=True) - 1, cache))
    given = torch.cat(out, dim=1)
    assert bool(given.isfinite().all())
    for row, text in enumerate(texts):
        ids = text + IDS[PROMPT : PROMPT + len(out) - 1]
        alone, _ = run(selection, executor, ids=ids, passes=(len(text),))
        mine = given[row, pads[row] :] if side == "left" else given[row, : len(text)]
        assert (mine - alone).abs().max() <= 2e-5 * alone.abs().max()
    assert sparse.stats.unread_masks == 0


def _batch(model: EngineModel, ids: Any, mask: Any, places: Any, cache: KvCache) -> Any:
    return model.model(
        input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
    ).logits  # fmt: skip


@every
def test_a_batch_of_one_length_is_each_alone(name: str) -> None:
    model = shared()
    texts = [some_ids(PROMPT, seed=seed) for seed in (1, 2, 3)]
    selection = replace(SELECTIONS[name], **NEVER_AGAIN.get(name, {}))
    cache, sparse = KvCache(model.layers), Sparse(selection, "gather", units())
    with torch.no_grad(), read_sparsely(model.model, sparse):
        whole = model.model(input_ids=torch.tensor(texts), past_key_values=cache).logits
        steps = [
            model.model(input_ids=torch.full((3, 1), token), past_key_values=cache).logits for token in IDS[PROMPT:]
        ]
    given = torch.cat((whole, *steps), dim=1)
    for row, text in enumerate(texts):
        alone, _ = run(selection, ids=text + IDS[PROMPT:])
        assert (given[row] - alone).abs().max() <= 2e-5 * alone.abs().max()


@every
@run_by
def test_the_same_prompt_is_read_the_same(name: str, executor: str) -> None:
    first, sparse = run(SELECTIONS[name], executor)
    second, again = run(SELECTIONS[name], executor)
    assert torch.equal(first, second)
    assert sparse is not None
    assert again is not None
    assert sparse.stats == again.stats


@pytest.mark.parametrize("name", [one for one in SELECTIONS if hasattr(SELECTIONS[one], "budget")])
def test_no_row_reads_more_than_the_budget_and_the_last_of_a_block_all_of_it(name: str) -> None:
    """Up to what is less than a page."""
    selection = SELECTIONS[name]
    recorded = Recorded(inner=selection)
    run(recorded)
    answered = [(step, kept) for step, kept in recorded.seen if kept is not None]
    assert answered
    for (step, kept), mask in zip(answered, recorded.masks, strict=True):
        counts = mask.sum(-1)
        assert int(counts.max()) <= selection.budget
        for stop in kept.rows[1:]:
            wanted = min(selection.budget, int(step.places[stop - 1]) + 1)
            assert int(counts[:, :, stop - 1].min()) > wanted - getattr(selection, "page_size", 1)


@every
@run_by
def test_density_and_bytes_are_counted(name: str, executor: str) -> None:
    recorded = Recorded(inner=SELECTIONS[name])
    _, sparse = run(recorded, executor, passes=(31, PROMPT))
    assert sparse is not None
    kept = causal = read = held = 0
    for step, answer in recorded.seen:
        full = torch.arange(step.slots) <= step.places[:, None]
        mask = full.expand(1, 2, -1, -1) if answer is None else pair_mask(step, answer).expand(1, 2, -1, -1)
        kept, causal = kept + int(mask.sum()), causal + 2 * int(full.sum())
        read, held = read + int(mask.any(2).sum()), held + 2 * step.slots
    stats = sparse.stats
    token = 2 * 16 * 4
    assert (stats.kept_pairs, stats.causal_pairs) == (kept, causal)
    assert (stats.read_bytes, stats.held_bytes) == (read * token, held * token)
    assert stats.density == kept / causal


@every
@run_by
@pytest.mark.parametrize("length", [1, 2, 5, 6])
def test_short_prompts_and_rows_alone_are_finite(name: str, executor: str, length: int) -> None:
    given, _ = run(SELECTIONS[name], executor, ids=IDS[:length], passes=(1,))
    assert bool(given.isfinite().all())
    assert torch.allclose(given[0], run(None, ids=IDS[:1])[0][0], atol=1e-4)


@every
def test_gradients_are_those_of_the_reference(name: str) -> None:
    """So that what selects can be trained: through a prompt and one token behind it. FlexAttention cannot on a CPU."""
    grads = []
    for by in ("gather", "dense_mask"):
        model = tiny()
        sparse = Sparse(SELECTIONS[name], by, units())
        with read_sparsely(model.model, sparse):
            before = model.model(input_ids=torch.tensor([IDS[:PROMPT]]), use_cache=True)
            after = model.model(input_ids=torch.tensor([IDS[-1:]]), past_key_values=before.past_key_values)
        (before.logits.square().mean() + after.logits.square().mean()).backward()
        grads.append(model.model.model.layers[0].self_attn.k_proj.weight.grad)
    assert torch.allclose(grads[0], grads[1], atol=1e-4 * float(grads[1].abs().max()))
    assert float(grads[0].abs().max()) > 0


@every
def test_a_truncated_cache_is_read_as_if_it_had_never_been_longer(name: str) -> None:
    model, selection = shared(), SELECTIONS[name]
    expected, _ = run(selection, ids=IDS[:63])
    sparse, cache = Sparse(selection, "gather", units()), model.new_cache()
    with read_sparsely(model.model, sparse):
        model.run(some_ids(PROMPT, seed=12), cache)
        for token in some_ids(9, seed=9):
            model.run([token], cache)
        cache.truncate(PROMPT - 20)
        model.run(some_ids(5, seed=10), cache)
        cache.truncate(0)
        given = torch.cat(
            [model.run(IDS[:PROMPT], cache, keep=PROMPT), *(model.run([t], cache) for t in IDS[PROMPT:63])]
        )
    assert torch.allclose(given, expected, atol=1e-4)


@every
def test_the_house_and_transformers_generate_with_it(name: str) -> None:
    model = shared()
    sparse = Sparse(SELECTIONS[name], units=units())
    with read_sparsely(model.model, sparse):
        done = prefill(model, IDS[:PROMPT], chunk_tokens=PROMPT)
        ours = list(generate(model, done.cache, done.logits, max_new_tokens=8))
        sparse.forget()
        theirs = model.model.generate(
            torch.tensor([IDS[:PROMPT]]), max_new_tokens=8, do_sample=False, past_key_values=model.new_cache(),
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    assert theirs[0, PROMPT:].tolist() == ours
    assert name == "dense" or 0 < sparse.stats.density < 0.95
    assert model.config._attn_implementation == "sdpa"


@every
def test_bfloat16_agrees_with_the_reference_up_to_rounding(name: str) -> None:
    model = tiny()
    model.model.to(torch.bfloat16)
    expected, _ = run(SELECTIONS[name], "dense_mask", model=model, ids=IDS[:20], passes=(20,))
    given, _ = run(SELECTIONS[name], "gather", model=model, ids=IDS[:20], passes=(20,))
    assert bool(given.isfinite().all())
    assert (given - expected).abs().max() <= 0.1 * expected.abs().max()
