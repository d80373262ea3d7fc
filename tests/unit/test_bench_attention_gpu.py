"""`rag bench gpu-attention`: what it says without a device, and its steps at a tiny shape on the CPU."""

from __future__ import annotations

import json
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from eval.bench import gpu_attention as bench  # noqa: E402
from eval.bench._report import Settings  # noqa: E402
from rag.engine.attention.executors.gather import _copied, _picked  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
TINY = bench.Shape(
    heads=4, kv_heads=2, width=16, layers=2, hidden=64, inner=64, dtype="float32", device="cpu"
)  # fmt: skip


def test_without_a_device_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report = bench.run(Settings())
    assert capsys.readouterr().err.splitlines() == ["not measured: no CUDA device"]
    assert (report["measured"], report["why"], report["claims"]) == (False, bench.NO_DEVICE, [])
    assert json.loads(json.dumps(report)) == report


def test_every_step_runs_and_every_executor_is_right() -> None:
    report = bench.measure(TINY, lengths=(512,), rounds=1)
    assert json.loads(json.dumps(report)) == report
    assert {row["executor"] for row in report["errors"]} == {"flex", "gather"}
    assert all(row["right"] for row in report["errors"])
    stages: dict[str, Any] = {row["stage"]: row for row in report["rows"]}
    assert set(stages) == {"prefill", "decode", "whole prefill"}
    assert 0.1 < stages["prefill"]["density"] < 1
    assert stages["decode"]["density"] == pytest.approx(256 / 512, abs=0.05)
    assert {"over naive", "selection share", "floor share"} <= stages["prefill"].keys()
    assert not stages["decode"]["graphs"]
    assert "executors right to 1e-2" in {one["claim"] for one in report["claims"]}
    assert "whole prefill" in bench._table(report)


def test_pages_are_picked_in_one_go_as_one_by_one() -> None:
    source = torch.randn(2, 3, 70, 5)
    pages = torch.stack([torch.randperm(4)[:3] for _ in range(6)]).reshape(2, 3, 3)
    one_by_one = _copied(source, pages, 16, slice(64, 70))
    picked = _picked(source[:, :, :64].reshape(2, 3, 4, 16, 5), pages).flatten(2, 3)
    assert torch.equal(torch.cat((picked, source[:, :, 64:]), dim=2), one_by_one)
