"""Repair policies and donor-mean blocks."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import rag.engine.repair  # noqa: E402
from rag.engine import EngineError  # noqa: E402
from rag.engine.blocks import KvBlock, make_block  # noqa: E402
from rag.engine.donor import DonorMean  # noqa: E402
from rag.engine.layout import Layout, lay_out  # noqa: E402
from rag.engine.repair import TokenRepair  # noqa: E402
from rag.engine.repair.all import All  # noqa: E402
from rag.engine.repair.epic import Epic  # noqa: E402
from rag.engine.repair.first_variance import FirstVariance  # noqa: E402
from rag.engine.repair.naive import Naive  # noqa: E402
from rag.engine.repair.variance import Variance  # noqa: E402
from tests.unit.test_engine_model import shared, some_ids, tiny  # noqa: E402


def layout() -> Layout:
    """Blocks at [3, 8), [8, 10) and [12, 22); the first without a variance."""
    rows = torch.arange(10.0)
    blocks = [
        KvBlock(tuple(range(size)), torch.zeros(3, 2, size, 16), torch.zeros(3, 2, size, 16), "", variance)
        for size, variance in ((5, None), (2, torch.tensor([100.0, 0.5])), (10, rows))
    ]
    return lay_out([1, 2, 3], [blocks[0], blocks[1], [7, 7], blocks[2], [8, 8]])


def chosen(policy: TokenRepair) -> list[int]:
    model = shared()
    return list(policy.tokens_to_repair(layout(), model, model.new_cache()))


def test_each_policy_names_its_tokens() -> None:
    assert layout().fresh == (10, 11, 22, 23)
    assert chosen(Naive()) == []
    assert chosen(All()) == [*range(3, 10), *range(12, 22)]
    assert chosen(Epic(k=4)) == [8, 9, 12, 13, 14, 15]
    assert chosen(Epic(k=1, first=True)) == [3, 8, 12]
    assert chosen(Epic(k=0)) == []
    assert chosen(Variance(share=0.25)) == [8, 20, 21]  # 3 of the 12 that have a variance
    assert chosen(Variance(share=0, first_tokens=1)) == [8, 12]
    assert chosen(Variance(share=1)) == [8, 9, *range(12, 22)]
    assert chosen(FirstVariance(k=1, share=0.25)) == [8, 12, 19, 20, 21]  # 3 more
    assert chosen(FirstVariance(k=0, share=0)) == []


def test_one_policy_a_file_and_every_one_keeps_to_the_interface() -> None:
    folder = Path(next(iter(rag.engine.repair.__path__)))
    names = [file.stem for file in sorted(folder.glob("*.py")) if not file.stem.startswith("_")]
    assert {"all", "ape", "auto", "blend", "cache_craft", "epic", "first_variance", "naive", "variance"} <= set(names)
    for name in names:
        module = importlib.import_module(f"rag.engine.repair.{name}")
        policy = getattr(module, name.title().replace("_", ""))()
        assert module.__all__[0] == type(policy).__name__
        assert callable(policy.assemble)
        assert callable(policy.finish)
        if hasattr(policy, "tokens_to_repair"):
            places = chosen(policy)
            assert places == sorted(set(places))


def test_settings_out_of_range_say_so() -> None:
    with pytest.raises(EngineError, match="k must be >= 0"):
        Epic(k=-1)
    with pytest.raises(EngineError, match="share must lie in"):
        Variance(share=1.5)
    with pytest.raises(EngineError, match="first_tokens"):
        Variance(first_tokens=-1)
    with pytest.raises(EngineError, match="first-variance"):
        FirstVariance(share=2)


def test_one_donor_is_the_chunk_behind_it() -> None:
    model, ids, prefix, donor = shared(), some_ids(12), some_ids(6, seed=1), some_ids(9, seed=2)
    mean, behind = DonorMean(model, prefix, [donor]).block(ids), make_block(model, ids, [*prefix, *donor])
    assert torch.allclose(mean.k, behind.k, atol=1e-4)
    assert torch.allclose(mean.v, behind.v, atol=1e-4)
    assert mean.variance is not None
    assert mean.variance.tolist() == [0.0] * 12


def test_the_mean_is_that_of_its_runs_and_moves_with_none_of_their_positions() -> None:
    model, ids, prefix = shared(), some_ids(12), some_ids(6, seed=1)
    donors = [some_ids(size, seed=size) for size in (9, 4, 17)]
    maker = DonorMean(model, prefix, donors)
    maker.block(some_ids(30, seed=77))  # leaves no trace
    mean = maker.block(ids)
    runs = [make_block(model, ids, [*prefix, *donor]) for donor in donors]
    assert torch.allclose(mean.k, torch.stack([run.k for run in runs]).mean(0), atol=1e-4)
    assert torch.allclose(mean.v, torch.stack([run.v for run in runs]).mean(0), atol=1e-4)
    spread = sum(
        (total := torch.stack(kind)[:, 1:].var(0, correction=0).sum(dim=(1, 3))) / total.mean(dim=1, keepdim=True)
        for kind in ([run.k for run in runs], [run.v for run in runs])
    )
    assert mean.variance is not None
    assert torch.allclose(mean.variance, spread.sum(0), rtol=1e-3)
    assert mean.variance.sum() == pytest.approx(2 * 2 * 12, rel=1e-4)  # one a token, kind and later layer, on average


def test_texts_may_stand_between_the_donors_and_the_chunk() -> None:
    model, ids, prefix = shared(), some_ids(12), some_ids(6, seed=1)
    donors, texts = ([some_ids(size, seed=size) for size in sizes] for sizes in ((9, 4), (7, 11)))
    maker = DonorMean(model, prefix, donors)
    mean = maker.block(ids, [texts[0], []])
    runs = [make_block(model, ids, [*prefix, *before]) for before in ([*donors[0], *texts[0]], donors[1])]
    assert torch.allclose(mean.k, torch.stack([run.k for run in runs]).mean(0), atol=1e-4)
    assert torch.allclose(mean.v, torch.stack([run.v for run in runs]).mean(0), atol=1e-4)
    alone = maker.block(ids)  # leaves no trace
    assert torch.allclose(alone.k, DonorMean(model, prefix, donors).block(ids).k, atol=1e-5)
    with pytest.raises(EngineError, match="1 texts to stand behind 2 donors: one for each, or none"):
        maker.block(ids, texts[:1])


def test_donors_are_needed() -> None:
    nothing: list[list[list[int]]] = [[], [[]]]
    for donors in nothing:
        with pytest.raises(EngineError, match="at least one donor"):
            DonorMean(shared(), [], donors)


def test_the_rounding_of_the_first_layer_is_no_variance() -> None:
    """Its keys and values depend on the token alone; whatever differs there is rounding, and must not be scaled up."""
    model = tiny(num_hidden_layers=1)
    donors = [some_ids(size, seed=size) for size in (9, 4)]
    mean = DonorMean(model, some_ids(6, seed=1), donors).block(some_ids(12))
    assert mean.variance is not None
    assert not mean.variance.any()
