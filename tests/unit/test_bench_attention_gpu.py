"""`rag bench gpu-attention`: what it says without a device, and its steps at a tiny shape on the CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from eval.bench import gpu_attention as bench  # noqa: E402
from eval.bench._gpu_timing import Watch, figures, states  # noqa: E402
from eval.bench._report import Settings  # noqa: E402
from rag.engine.attention.executors.gather import _copied, _picked  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
with_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed: its part is not tested"
)


def test_without_a_device_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report = bench.run(Settings())
    assert capsys.readouterr().err.splitlines() == ["not measured: no CUDA device"]
    assert (report["measured"], report["why"], report["claims"]) == (False, bench.NO_DEVICE, [])
    assert json.loads(json.dumps(report)) == report


def test_every_step_runs_and_every_executor_is_right() -> None:
    saved: list[Any] = []
    report = bench.measure(bench.TINY, lengths=(512,), rounds=1, save=lambda one: saved.append(len(one["rows"])))
    assert json.loads(json.dumps(report)) == report
    assert {row["executor"] for row in report["errors"]} == {"flex", "gather"}
    assert all(row["right"] for row in report["errors"])
    assert report["left_out"] == []
    assert [row["failed"] for row in report["rows"]] == [{}, {}, {}]
    stages: dict[str, Any] = {row["stage"]: row for row in report["rows"]}
    assert set(stages) == {"prefill", "decode", "whole prefill"}
    assert saved == [1, 2, 2, 3]
    assert 0.1 < stages["prefill"]["density"] < 1
    assert stages["decode"]["density"] == pytest.approx(256 / 512, abs=0.05)
    assert {"over naive", "selection share", "floor share", "over best dense"} <= stages["prefill"].keys()
    assert {row["executor"] for row in report["rows"]} <= {"gather", "flex, with its mask", "flex"}
    assert not any(stages["decode"]["graphs"].values())
    assert "executors right to 1e-2" in {one["claim"] for one in report["claims"]}
    assert "whole prefill" in bench._table(report)


def test_a_dry_run_measures_nothing_and_claims_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    report = bench.run(Settings(rounds=1), dry=True)
    assert (report["measured"], report["why"], report["claims"]) == (False, bench.DRY, [])
    assert bench.DRY in capsys.readouterr().err


@with_triton
@pytest.mark.slow
def test_a_dry_run_goes_through_the_triton_kernels_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "eval.bench.gpu_attention", "--dry", "--rounds", "1", "-o", str(tmp_path / "dry.json")],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "dry.json").read_text())
    assert (report["measured"], report["claims"], report["left_out"]) == (False, [], [])
    triton = [row for row in report["errors"] if row["executor"] == "triton"]
    assert len(triton) == 6
    assert all(row["right"] for row in triton)
    assert all("triton ms" in row and not row["failed"] for row in report["rows"])
    assert [one["launch"] for one in report["launches"]] == ["128/64/8/3", "128/64/8/2"]


def test_no_step_begins_when_the_time_is_over() -> None:
    report = bench.measure(bench.TINY, lengths=(512,), rounds=1, budget=0.0)
    assert report["rows"] == []
    assert report["left_out"] == ["prefill, 512", "decode, 512", "launches", "whole prefill, 512"]


def test_what_cannot_run_is_left_out_with_the_reason_and_dense_has_to() -> None:
    def broken() -> None:
        raise RuntimeError("out of memory")

    watch = Watch(bench.TINY)
    assert set(watch.able({"dense": lambda: 1, "flex": broken})) == {"dense"}
    assert watch.failed == {"flex": "RuntimeError: out of memory"}
    with pytest.raises(RuntimeError, match="out of memory"):
        watch.able({"dense": broken})


def test_the_fastest_of_ours_is_named_and_compared_with_every_dense() -> None:
    flex, triton = [1.0, 2.0], [2.0, 4.0]
    dense = {"dense": [4.0, 8.0], "dense, cudnn": [2.0, 4.0]}
    times = {**dense, "flex": flex, "triton": triton, "selection": flex}
    told = figures(times, ("flex", "triton"), ("dense", "dense, cudnn", "dense, flex"), floor=0.75)
    assert (told["executor"], told["ratio"]) == ("flex", 4.0)
    assert (told["best dense"], told["over best dense"]) == ("dense, cudnn", 2.0)
    assert (told["selection share"], told["ratio with selection"], told["floor share"]) == (1.0, 2.0, 0.5)
    assert figures({"dense": [1.0]}, ("triton",))["ratio"] is None


def test_states_are_the_same_by_seed_and_others_by_another() -> None:
    first, same, other = (states(bench.TINY, 64, 8, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.key, same.key)
    assert not torch.equal(first.key, other.key)


def test_pages_are_picked_in_one_go_as_one_by_one() -> None:
    source = torch.randn(2, 3, 70, 5)
    pages = torch.stack([torch.randperm(4)[:3] for _ in range(6)]).reshape(2, 3, 3)
    one_by_one = _copied(source, pages, 16, slice(64, 70))
    picked = _picked(source[:, :, :64].reshape(2, 3, 4, 16, 5), pages).flatten(2, 3)
    assert torch.equal(torch.cat((picked, source[:, :, 64:]), dim=2), one_by_one)
