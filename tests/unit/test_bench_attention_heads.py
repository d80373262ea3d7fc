"""The part heads of `rag bench attention`: figures of every head, and of heads that were chosen on other cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from eval.bench import attention as bench  # noqa: E402
from eval.bench._attention_heads import FOLDS, HEADS, _best, heads_part  # noqa: E402
from eval.bench._attention_prompts import cases_of  # noqa: E402
from eval.bench._kv_prompts import Loaded  # noqa: E402
from eval.bench._report import Settings  # noqa: E402
from tests.unit.test_bench_attention import TOKENS, data, loaded, near  # noqa: E402, F401  # fixtures


def test_heads_are_judged_by_the_evidence_that_they_put_first(loaded: Loaded, data: Path) -> None:  # noqa: F811
    cases = list(cases_of(loaded, data, "asked", tokens=TOKENS, count=FOLDS, seed=0, near=near))
    told = heads_part(loaded, iter(cases))
    assert (told["cases"], told["density"]) == (FOLDS, 0.25)
    every = loaded.model.layers * loaded.model.kv_heads
    assert len(told["heads"]) == min(every, 12)
    assert [one["recall"] for one in told["heads"]] == sorted((one["recall"] for one in told["heads"]), reverse=True)
    assert set(told["recall"]) == {"prior", "heads", "both"}
    # a prior that knows the evidence finds it all, one that puts it last finds none
    for value in (1.0, -1.0):
        known = [
            replace(case, priors=[value if at in case.evidence else 0.0 for at in range(len(case.chunks))])
            for case in cases
        ]
        sizes = [[len(chunk) for chunk in case.chunks] for case in cases]
        share = [min(1.0, 0.25 * sum(own) / own[case.evidence[0]]) for case, own in zip(cases, sizes, strict=True)]
        expected = sum(share) / len(share) if value > 0 else 0.0
        assert heads_part(loaded, iter(known))["recall"]["prior"] == pytest.approx(expected)
    assert heads_part(loaded, iter(cases[:3]))["recall"] == {}


def test_heads_for_a_case_are_chosen_on_others() -> None:
    recalls = {(0, 0): [1.0, 0.0, 0.0], (0, 1): [0.0, 1.0, 1.0], (1, 0): [0.0, 1.0, 1.0]}
    assert _best(recalls, [0]) == [(0, 0), (0, 1), (1, 0)]
    assert _best(recalls, [1, 2]) == [(0, 1), (1, 0), (0, 0)]
    assert len(recalls) + 1 > HEADS


def test_the_report_has_a_row_for_every_length(loaded: Loaded, data: Path) -> None:  # noqa: F811
    settings = Settings(data=data, quiet=True)
    given = bench.QualitySettings(near=near, asked=FOLDS)
    report = bench.run(settings, parts=["heads"], lengths=[TOKENS], loaded=loaded, quality=given)
    (part,) = report["heads"]
    assert (part["length"], part["cases"]) == (TOKENS, FOLDS)
