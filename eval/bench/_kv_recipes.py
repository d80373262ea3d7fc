"""Ways to reuse chunks that `rag bench kv` compares: how a chunk's block is made, and what is repaired.

A method from a paper is given the blocks that its paper makes. Blocks of ingestion are made once a chunk and kept in a
folder, as an index keeps them; what depends on the prompt is made for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.bench._kv_prompts import KvCase, Loaded, Near
from rag.errors import UsageError

if TYPE_CHECKING:
    from rag.engine.blocks import KvBlock
    from rag.engine.donor import DonorMean
    from rag.engine.store import KvStore

__all__ = ["LOCAL", "OURS", "PREFIX_HIT", "PUBLISHED", "REPAIRS", "Blocks", "Recipe", "blocks_of", "recipes"]

PREFIX_HIT = "prefix-hit"
OURS = (
    "donor-mean", "donor-mean+v5", "donor-mean+v15", "mix", "mix+f16", "mix+f16+v5", "mix+v15",
    "mix+p10", "mix+i10", "mix+i15", *(f"mix+a{of}" for of in (8, 12, 15, 17, 20, 25, 30)),
    *(f"mix+b{of}" for of in (10, 15, 17, 20, 25, 30, 35)), *(f"mix+c{of}" for of in (15, 20, 25, 30)),
    "near", *(f"near+a{of}" for of in (8, 10, 12, 15, 17, 20)),
)  # fmt: skip
PUBLISHED = ("naive", "epic-16", "blend-15", "cache-craft", "ape", "prophet-20", "info-flow-20")
PASSAGE_BEFORE = 200
"""Tokens of each of the two passages behind which Cache-Craft's blocks are observed."""

REPAIRS: Mapping[str, Any] = {
    "mix": "naive",
    "mix+f16": {"use": "first-variance", "k": 16, "share": 0.0},
    "mix+f16+v5": {"use": "first-variance", "k": 16, "share": 0.05},
    "mix+v15": {"use": "variance", "share": 0.15},
    "mix+p10": {"use": "prophet", "share": 0.1},
    **{f"mix+i{of}": {"use": "info-flow", "share": of / 100} for of in (10, 15)},
    **{f"mix+a{of}": {"use": "asked", "share": of / 100} for of in (8, 12, 15, 17, 20, 25, 30)},
    **{f"mix+b{of}": {"use": "asked", "share": of / 100, "depth": 0.67} for of in (10, 15, 17, 20, 25, 30, 35)},
    **{f"mix+c{of}": {"use": "asked", "share": of / 100, "depth": 0.67, "late": 0.5} for of in (15, 20, 25, 30)},
    "near": "naive",
    **{f"near+a{of}": {"use": "asked", "share": of / 100} for of in (8, 10, 12, 15, 17, 20)},
}
"""What the generator `local` calls them: it takes the first chunk from its true prefix."""

LOCAL: Mapping[str, str] = {"mix": "donor-mean", "near": "neighbour-mean"}
"""Kinds of blocks -> what `local` calls them, with the first chunk from its true prefix."""

Recipe = tuple[str, Any]
"""Kind of the blocks, repair policy."""


def recipes() -> dict[str, Recipe]:
    """Every policy with the blocks it is meant for. "mix" and "near" take the first chunk as it is behind the true
    prefix; the other blocks of "near" have neighbours in the corpus behind their donors."""
    from rag.engine.repair.ape import Ape
    from rag.engine.repair.asked import Asked
    from rag.engine.repair.blend import Blend
    from rag.engine.repair.cache_craft import CacheCraft
    from rag.engine.repair.epic import Epic
    from rag.engine.repair.first_variance import FirstVariance
    from rag.engine.repair.info_flow import InfoFlow
    from rag.engine.repair.naive import Naive
    from rag.engine.repair.prophet import Prophet
    from rag.engine.repair.variance import Variance

    return {
        "naive": ("solo", Naive()),
        "epic-16": ("solo", Epic(k=16)),
        "blend-15": ("solo", Blend(share=0.15)),
        "cache-craft": ("observed", CacheCraft()),
        "ape": ("prefixed", Ape()),
        "prophet-20": ("solo", Prophet(share=0.2)),
        "info-flow-20": ("solo", InfoFlow(share=0.2)),
        "donor-mean": ("mean", Naive()),
        "donor-mean+v5": ("mean", Variance(share=0.05)),
        "donor-mean+v15": ("mean", Variance(share=0.15)),
        "mix": ("mix", Naive()),
        "mix+f16": ("mix", FirstVariance(k=16, share=0.0)),
        "mix+f16+v5": ("mix", FirstVariance(k=16, share=0.05)),
        "mix+v15": ("mix", Variance(share=0.15)),
        "mix+p10": ("mix", Prophet(share=0.1)),
        "mix+i10": ("mix", InfoFlow(share=0.1)),
        "mix+i15": ("mix", InfoFlow(share=0.15)),
        **{f"mix+a{of}": ("mix", Asked(share=of / 100)) for of in (8, 12, 15, 17, 20, 25, 30)},
        **{f"mix+b{of}": ("mix", Asked(share=of / 100, depth=0.67)) for of in (10, 15, 17, 20, 25, 30, 35)},
        **{f"mix+c{of}": ("mix", Asked(share=of / 100, depth=0.67, late=0.5)) for of in (15, 20, 25, 30)},
        "near": ("near", Naive()),
        **{f"near+a{of}": ("near", Asked(share=of / 100)) for of in (8, 10, 12, 15, 17, 20)},
    }


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Makes the blocks of a context. `store` keeps the donor means; `name` says of which donors they are. `near` gives
    what stands between them and a chunk, for the blocks of that kind."""

    loaded: Loaded
    means: DonorMean
    unrelated: Sequence[Sequence[int]]
    near: Near | None = None
    store: KvStore | None = None
    name: str = "donor-mean"

    def of(self, case: KvCase, kinds: set[str]) -> dict[str, list[KvBlock]]:
        from rag.engine.blocks import make_block
        from rag.engine.observed import make_observed_block

        model = self.loaded.model
        found: dict[str, list[KvBlock]] = {}
        if "solo" in kinds:
            found["solo"] = [make_block(model, chunk) for chunk in case.chunks]
        if "prefixed" in kinds:
            found["prefixed"] = [make_block(model, chunk, case.prefix) for chunk in case.chunks]
        exact = replace(make_block(model, case.chunks[0], case.prefix), variance=None) if kinds & LOCAL.keys() else None
        if kinds & {"mean", "mix"}:
            found["mean"] = [self._mean(chunk) for chunk in case.chunks]
            if exact is not None:
                found["mix"] = [exact, *found["mean"][1:]]
        if exact is not None and "near" in kinds:
            found["near"] = [exact, *(self._behind_neighbours(chunk) for chunk in case.chunks[1:])]
        if "observed" in kinds:
            found["observed"] = [
                make_observed_block(model, chunk, case.prefix, self.unrelated) for chunk in case.chunks
            ]
        return found

    def _mean(self, chunk: Sequence[int]) -> KvBlock:
        return self._kept(chunk, self.name, lambda: self.means.block(chunk))

    def _behind_neighbours(self, chunk: Sequence[int]) -> KvBlock:
        from rag.engine.observed import chunk_name

        if self.near is None:
            raise UsageError("kv: blocks behind neighbours need the vectors of a corpus")
        texts = self.near(chunk)
        name = f"neighbour-mean {chunk_name([token for text in texts for token in text])} {self.name}"
        return self._kept(chunk, name, lambda: self.means.block(chunk, texts))

    def _kept(self, chunk: Sequence[int], name: str, make: Callable[[], KvBlock]) -> KvBlock:
        if self.store is None:
            return make()
        from rag.engine.blobs import kv_type

        dtype = kv_type(self.loaded.model.dtype)
        held = self.store.get(chunk, self.loaded.model.fingerprint, name, dtype=dtype)
        if held is None:
            held = make()
            self.store.put(held, name, ["bench"], dtype=dtype)
        return held


def blocks_of(
    loaded: Loaded,
    prefix: Sequence[int],
    donors: Sequence[Sequence[int]],
    folder: Path | None,
    near: Near | None = None,
) -> Blocks:
    """`folder` keeps the donor means from run to run; None keeps nothing."""
    from rag.engine.donor import DonorMean
    from rag.engine.observed import chunk_name
    from rag.engine.store import KvStore

    return Blocks(
        loaded=loaded,
        means=DonorMean(loaded.model, prefix, donors),
        near=near,
        unrelated=[donor[:PASSAGE_BEFORE] for donor in donors[:2]],
        store=None if folder is None else KvStore(folder, max_bytes=1 << 40),
        name=f"donor-mean {chunk_name([*prefix, *(token for donor in donors for token in donor)])}",
    )


Chosen = Mapping[str, Recipe]
Tell = Callable[[str], None]
