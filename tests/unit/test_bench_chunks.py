"""`rag bench chunks` on tiny texts: ours alone runs for real, peers are stand-ins; facts, claims and the report."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from eval.bench import chunks as bench
from eval.bench._chunks_run import DRIVER, facts
from eval.bench._report import Settings
from rag.errors import RagError
from rag.tokens import WordCounter

PEER = '''"""A peer that cuts {size} characters at a time."""
PACKAGES = ("tokenizers",)
MODULES = ({module!r},)

def load(tokens, options):
    def split(text):
        tokens.count(text)
        return [(text[at:at + {size}], at, at + len(text[at:at + {size}])) for at in range(0, len(text), {size})]
    return split
'''


@pytest.fixture
def asked(tmp_path: Path) -> list[Any]:
    """Ours, a peer that works, and one that is not installed."""
    from eval.bench._children import Contender

    peers = {}
    for name, module, size in (("works", "tokenizers", 9), ("absent", "no_such_package", 9)):
        peers[name] = tmp_path / f"{name}.py"
        peers[name].write_text(PEER.format(module=module, size=size))
    return [
        next(one for one in bench.contenders() if one.role == "ours"),
        Contender(name="chonkie", role="peer", module=peers["works"]),
        Contender(name="llama-index", role="peer", module=peers["absent"]),
    ]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    for name in bench.SETS:
        (tmp_path / name).mkdir()
        rows = [{"doc_id": str(n), "text": f"Text {n} of {name} is short. It ends here.\n\nAgain."} for n in range(3)]
        (tmp_path / name / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Settings(data=tmp_path, rounds=2, documents=2, quiet=True)


@pytest.mark.models
def test_the_report_on_tiny_texts(asked: list[Any], settings: Settings) -> None:
    report = bench.run(settings, asked)
    assert json.loads(json.dumps(report)) == report
    assert {"bench", "machine", "versions", "seed", "corpus", "max_tokens", "results", "claims"} == set(report)
    assert report["corpus"]["documents"] == 2 * len(bench.SETS)
    ours, works, absent = report["results"]
    assert (ours["over_limit"], ours["inexact_offsets"], ours["lossless_texts"]) == (0, 0, 6)
    assert 0 < ours["tokenised_over_text"] <= 1.0
    assert works["tokenised_over_text"] == 1.0
    assert len(works["ours_over_this"]["rounds"]) == len(ours["rounds"]) == 2
    assert (absent["name"], absent["status"]) == ("llama-index", "absent")
    assert set(report["versions"]) == {bench.OURS, "chonkie"}
    claims = {one["claim"]: one for one in report["claims"]}
    assert claims["CPU time of our recursive chunker over llama-index"]["value"] is None
    assert [one["holds"] for one in report["claims"][1:]] == [False, True, True]


def canned(monkeypatch: pytest.MonkeyPatch, cpu: dict[str, list[Any]]) -> None:
    """Answers in place of child processes: CPU seconds per round, or an outcome that is not ok."""
    kept = {"status": "ok", "over_limit": 0, "inexact_offsets": 0, "chunks": 1, "mean_tokens": 1.0}
    seen = {**kept, "lossless_texts": 1, "tokenised_over_text": None}

    def measure(contenders, job, *, rounds, threads, tell):
        figures = {"wall_seconds": 1.0, "peak_rss_mb": 1.0, "versions": {}}
        return {
            one.name: [
                s if isinstance(s, dict) else {"status": "ok", "cpu_seconds": s, **figures} for s in cpu[one.name]
            ]
            for one in contenders
        }

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(bench, "_look", lambda *_: seen)
    monkeypatch.setattr(bench, "_present", lambda asked, settings: ([one for one in asked if one.name in cpu], {}))
    monkeypatch.setattr("rag.embedders._files.find_folder", lambda model: Path())
    monkeypatch.setattr("rag.tokens.load_tokenizer", lambda path: None)


def test_claims_are_medians_of_paired_ratios_to_the_cheapest_way_of_each_peer(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    cpu = {
        bench.OURS: [1.0, 2.0, 1.0],
        "chonkie": [4.0, 4.0, 4.0],
        "chonkie, callable": [2.0, 2.0, 4.0],
        "chonkie, tokie": [0.1, 0.1, 0.1],
        "llama-index": [10.0, 10.0, 10.0],
    }
    canned(monkeypatch, cpu)
    report = bench.run(settings)
    rows = {row["name"]: row for row in report["results"]}
    assert rows["chonkie, callable"]["ours_over_this"] == {
        "rounds": [0.5, 1.0, 0.25],
        "median": 0.5,
        "range": [0.25, 1.0],
    }
    claims = [(one["claim"], one["value"], one["goal"], one["holds"]) for one in report["claims"][:2]]
    assert claims == [
        ("CPU time of our recursive chunker over chonkie, callable", 0.5, 1.0, True),
        ("CPU time of our recursive chunker over llama-index", 0.1, 0.15, True),
    ]


def test_a_peer_that_crashes_is_a_row_but_our_own_crash_is_an_error(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    failed = [{"status": "failed", "reason": "boom"}]
    canned(monkeypatch, {bench.OURS: [1.0], "chonkie": failed})
    assert bench.run(settings)["results"][1]["reason"] == "boom"
    canned(monkeypatch, {bench.OURS: failed})
    with pytest.raises(RagError, match="boom"):
        bench.run(settings)


def test_facts_find_what_is_wrong() -> None:
    texts = ["one two three four", "five six"]
    found = [[("one two ", 0, 8), ("three four", 9, 19)], [("five", None, None)]]
    assert facts(texts, found, WordCounter(), 1) == {
        "chunks": 3,
        "mean_tokens": 5 / 3,
        "over_limit": 2,
        "largest_tokens": 2,
        "inexact_offsets": 2,
        "lossless_texts": 1,
    }


def test_without_public_data_the_sample_documents_are_cut(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, tmp_path: Path
) -> None:
    canned(monkeypatch, {bench.OURS: [1.0]})
    monkeypatch.setattr(bench, "_HERE", tmp_path / "eval" / "bench" / "chunks.py")
    report = bench.run(Settings(quiet=True))
    assert report["corpus"]["sets"] == ["sample documents"]
    assert report["corpus"]["characters"] > 0


def test_what_runs_beside_the_peers_imports_nothing_of_ours() -> None:
    paths = {one.module for one in bench.contenders() if one.module.parent.name == "peers"} | {DRIVER}
    assert len(paths) == 6
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in names} & {"rag", "eval", "chunkers"}
