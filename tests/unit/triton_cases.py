"""The kernels of the executor `triton` against the boolean-mask reference, run by Triton's interpreter on a CPU.

`TRITON_INTERPRET=1 python -m tests.unit.triton_cases [COUNT]` prints a JSON list of cases, each with its error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from rag.engine.attention import Kept, Sparse, Step, Units, read_sparsely
from rag.engine.attention.executors import EXECUTORS
from rag.engine.attention.executors.triton import Launch, decode, prefill
from rag.engine.attention.quest import Quest
from tests.unit.test_engine_attention import drawn_kept, step_of
from tests.unit.test_engine_model import some_ids, tiny

LAUNCH = Launch(rows=32, slots=16)
KINDS: dict[str, Any] = {"all": None, "last": range(20, 50), "one": [49], "some": [3, 4, 5, 9, 30, 31, 49]}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Case = tuple[str, Step, Kept]


def drawn(count: int) -> Iterator[Case]:
    """Any choice, over groups of 1 to 4 query heads, batches, row blocks and places."""
    for seed in range(count):
        kind = [*KINDS][seed % 4]
        kv_heads = (1, 2, 4, 3)[seed // 4 % 4]
        step = step_of(
            50, KINDS[kind], batch=1 + seed % 2, heads=9 if kv_heads == 3 else 4, kv_heads=kv_heads, seed=seed
        )  # fmt: skip
        dtype = torch.float32 if seed % 3 else DTYPES[1 + seed // 3 % 2]
        step = replace(step, query=step.query.to(dtype), key=step.key.to(dtype), value=step.value.to(dtype))
        yield f"{seed} {kind}", step, drawn_kept(step, seed, paged=seed // 2 % 2 == 1)


def edges() -> Iterator[Case]:
    """Rows that read nothing but themselves, everything, nothing before; a bias, which makes keys wider; views."""
    step = step_of(33)
    covered = Units.of_spans([(0, 33)])
    alone = Kept(covered, tuple(range(34)), tuple(range(33)), torch.zeros(1, 1, 33, 1, dtype=torch.bool))
    yield "rows alone", step, alone
    yield "one alone", step_of(33, [32]), Kept(covered, (0, 1), (32,), alone.keep[:, :, :1])
    nothing = Units.pages(0, 1)
    yield "all is local", step, Kept(nothing, (0, 33), (0,), torch.zeros(1, 1, 1, 0, dtype=torch.bool))
    pages = Kept(Units.pages(40, 4), (0, 1), (40,), index=torch.zeros(1, 1, 1, 0, dtype=torch.long))
    yield "no page", step_of(43, [42]), pages
    yield "all is open", step, Kept(nothing, (0, 10, 33), (0, 10), torch.zeros(1, 1, 2, 0, dtype=torch.bool))
    for places in (None, [49]):
        given = step_of(50, places, batch=2)
        torch.manual_seed(1)
        yield f"bias {places}", given.biased(torch.randn(2, 2, 50)), drawn_kept(given, 3)
    long = step_of(700, [699], heads=6, kv_heads=2)
    yield "long", long, drawn_kept(long, 0, paged=True)
    turned = step_of(50, batch=2)
    query, key, value = (
        one.transpose(1, 2).contiguous().transpose(1, 2) for one in (turned.query, turned.key, turned.value)
    )
    yield "views", replace(turned, query=query, key=key, value=value), drawn_kept(turned, 5)


def padded() -> dict[str, Any]:
    """Left padding through a whole model: a prompt and one token more, by both executors."""
    model = tiny()
    ids = torch.tensor([[0] * 7 + some_ids(23, seed=1), some_ids(30, seed=2)])
    mask = torch.ones(2, 31, dtype=torch.long)
    mask[0, :7] = 0
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    found = []
    executors: list[Any] = ["dense_mask", "triton"]
    for executor in executors:
        sparse = Sparse(Quest(budget=12, page_size=4, dense_layers=0, prefill=True, q_block=4), executor)
        with torch.no_grad(), read_sparsely(model.model, sparse):
            first = model.model(ids, attention_mask=mask[:, :30], position_ids=places[:, :30], use_cache=True)
            more = torch.tensor([[5], [6]])
            cache = first.past_key_values
            after = model.model(more, attention_mask=mask, position_ids=places[:, 30:], past_key_values=cache)
        found.append(torch.cat((first.logits[0, 7:], first.logits[1], after.logits[:, 0])))
    error = float((found[0] - found[1]).abs().max() / found[0].abs().max())
    return {"case": "left padding", "dtype": "float32", "error": error, "ran": sparse.stats.ran}


def checked(name: str, step: Step, kept: Kept) -> dict[str, Any]:
    wide = replace(step, query=step.query.float(), key=step.key.float(), value=step.value.float())
    right = EXECUTORS["dense_mask"](wide, kept)
    given = decode(step, kept, LAUNCH) if step.queries == 1 else prefill(step, kept, LAUNCH)
    dtype = str(step.query.dtype).removeprefix("torch.")
    same = given.shape == right.shape and given.dtype == step.query.dtype
    away = float((given.float() - right).abs().max()) if same else float("inf")
    return {"case": name, "dtype": dtype, "error": away}


def main(count: int) -> None:
    with torch.inference_mode():
        found = [checked(*one) for one in (*edges(), *drawn(count))]
    print(json.dumps([*found, padded()]))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
