"""Every selection of sparse attention through `rag ask` on the sample documents, with SmolLM2."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rag.sample import documents_dir
from tests.e2e.conftest import ROOT, Run

pytestmark = [pytest.mark.models, pytest.mark.slow]

Rag = Callable[..., Run]
QUESTION = "Who approves travel above 5,000 EUR?"
CONFIG: dict[str, Any] = {
    "embedder": "hashing",
    "retriever": {"use": "hybrid", "parts": ["faiss-dense", "bm25"]},
    "selector": {"use": "top-k", "budget": 800},
}
_QUEST = {"use": "quest", "budget": 256, "prefill": True, "q_block": 64}
SPECS: Mapping[str, dict[str, Any]] = {
    "sink-recent": {"budget": 256, "q_block": 64},
    "chunk-block": {"density": 0.25, "anchor": 128, "floor": 1},
    "dhsa": {"budget_prefill": 320, "budget_decode": 320},
    "dma": {"keep_window_size": 256},
    "tokenselect": {"top_k": 128, "n_init": 16, "n_local": 64, "q_block": 64},
    "quest": _QUEST,
    "flexprefill": {"gamma": 0.5, "min_budget": 128, "block_size": 64},
    "hip": {"sink": 32, "window": 64, "chunk_sizes": [32, 8], "keeps": [256, 128], "q_block": 32},
    "hisa": {"top_k": 192, "top_m": 6, "block_size": 32, "q_block": 32},
    "longheads": {"attention_length": 256, "chunk_size": 64, "q_block": 64},
    "compact": {"inner": _QUEST, "q_block": 128},
    "mac": {"inner": _QUEST},
    "share": {"inner": _QUEST, "layers": 3},
}
"""Parameters that leave something out of a prompt of about 900 tokens."""


def with_attention(spec: Any, **given: Any) -> str:
    generator = {"use": "local", "max_new_tokens": 4, "dtype": "float32", "attention": spec, **given}
    return json.dumps({**CONFIG, "generator": generator})  # which is YAML too


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("sample")
    (home / "rag.yaml").write_text(json.dumps(CONFIG), encoding="utf-8")
    command = [sys.executable, "-m", "rag", "ingest", str(documents_dir()), "--index", str(home / "index")]
    made = subprocess.run(
        [*command, "--config", str(home / "rag.yaml"), "-q"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert made.returncode == 0, made.stderr
    return home / "index"


def ask(rag: Rag, home: Path, index: Path, spec: Any, **given: Any) -> Any:
    (home / "rag.yaml").write_text(with_attention(spec, **given), encoding="utf-8")
    made = rag("ask", QUESTION, "--index", str(index), "--json")
    assert made.code == 0, made.err
    return made.json


def notes(told: Any) -> Any:
    return next(one["notes"] for one in reversed(told["trace"]) if "attention" in one["notes"])


@pytest.mark.parametrize("name", SPECS)
def test_the_stats_name_selection_executor_and_density(rag: Rag, home: Path, index: Path, name: str) -> None:
    told = ask(rag, home, index, {"use": name, **SPECS[name]})
    stats, read = told["stats"], notes(told)["attention"]
    assert stats["prompt_tokens"] > 600
    assert 0 < stats["new_tokens"] <= 4
    assert stats["attention"] == f"{read['selection']}, {read['executor']}"
    assert read["selection"].startswith(name)
    assert 0 < stats["density"] < 1
    assert read["prefill_density"] < 1 or read["decode_density"] < 1
    assert {row["part"] for row in notes(told)["segments"]} > {"start", "1", "question"}


def test_everything_kept_gives_the_dense_answer_and_short_prompts_stay_dense(rag: Rag, home: Path, index: Path) -> None:
    dense = ask(rag, home, index, "dense")
    whole = ask(rag, home, index, {"use": "quest", "budget": 4096, "prefill": True, "dense_layers": 0})
    assert whole["answer"] == dense["answer"]
    assert (dense["stats"]["attention"], dense["stats"]["density"], whole["stats"]["density"]) == ("sdpa", 1.0, 1.0)
    short = ask(rag, home, index, "auto")
    assert (short["stats"]["attention"], short["answer"]) == ("sdpa", dense["answer"])


def test_the_selectors_scores_are_the_prior_and_explain_says_what_was_read(rag: Rag, home: Path, index: Path) -> None:
    spec = {
        "use": "chunk-block",
        "density": 0.05,
        "anchor": 0,
        "floor": 1,
        "question_dense": False,
        "context": "own",
        "split": 64,
    }
    told = ask(rag, home, index, spec, reuse="chunk")
    best = max(told["bubble"]["hits"], key=lambda hit: hit["score"])["chunk_id"]
    rows = [row for row in notes(told)["segments"] if "chunk_id" in row]
    assert [row["chunk_id"] for row in rows if row["read"]] == [best]
    shown = rag("explain", "--index", str(index))
    assert "attention chunk-block(0.05) by gather: " in shown.err
    assert "not at all" in shown.err
    assert "read by none and not loaded" in shown.err
