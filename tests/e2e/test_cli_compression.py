"""`rag explain` after a compressor: the diff, the size against the target, protected spans."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rag.cli._compression import diff_text, draw_compression
from rag.compressed import compressed
from rag.index import Index
from tests.e2e.conftest import CONFIG, Run

Rag = Callable[..., Run]
QUESTION = "Who approves travel above 5,000 EUR?"
PRUNED = CONFIG + "selector: {use: top-k, budget: 120}\ncompressor: {use: sentence-prune, rate: 0.5}\n"


@pytest.fixture
def told(rag: Rag, home: Path) -> dict[str, Any]:
    (home / "rag.yaml").write_text(PRUNED)
    assert rag("ingest", "docs", "--index", "idx", "-q").code == 0
    assert rag("ask", QUESTION, "--index", "idx", "--json").code == 0
    run: dict[str, Any] = rag("explain", "--index", "idx", "--json").json
    return run


def kept_text(chunk: dict[str, Any]) -> str:
    return "".join(part["text"] for part in chunk["parts"] if part["kept"])


def test_the_parts_are_what_was_chosen_and_the_kept_ones_what_was_read(told: dict[str, Any]) -> None:
    made = told["compressed"]
    assert [one["chunk_id"] for one in made["chunks"]] == told["bubble"]["chunk_ids"]
    pieces = {one["chunk_id"]: one["text"] for one in told["context"]["pieces"]}
    for chunk, spans in zip(made["chunks"], told["bubble"]["kept"], strict=True):
        assert kept_text(chunk) == pieces.get(chunk["chunk_id"], "")
        assert sum(len(part["text"]) for part in chunk["parts"]) == sum(end - start for start, end in spans)
    assert any(not part["kept"] for chunk in made["chunks"] for part in chunk["parts"])
    assert len(pieces) < len(made["chunks"]) or any(len(chunk["parts"]) > 1 for chunk in made["chunks"])


def test_size_target_and_survival(told: dict[str, Any]) -> None:
    made = told["compressed"]
    assert made["tokens"] == told["context"]["token_count"]
    target = made["target"]
    assert (target["tokens"], target["set_by"]) == (int(0.5 * made["source_tokens"]), "rate 0.5")
    assert target["used"] == made["tokens"] / target["tokens"] <= 1
    for one in made["survival"].values():
        assert one["kept"] == one["with_kept_sentences"] <= one["all"]
    numbers = made["survival"]["number"]
    assert 0 < numbers["kept"] < numbers["all"]


def test_it_is_drawn_after_the_ledger_and_struck_out_without_colours(rag: Rag, told: dict[str, Any]) -> None:
    shown = rag("explain", "--index", "idx")
    made = told["compressed"]
    at = shown.err.index(f"sentence-prune: {made['tokens']} of {made['source_tokens']} tokens")
    assert shown.err.index("ledger: ") < shown.err.index("compressor sentence-prune: ") < at
    assert "none is cut: number" in shown.err[at:]
    drawn = " ".join(shown.err[at:].split())
    dropped = [part["text"].strip() for one in made["chunks"] for part in one["parts"] if not part["kept"]]
    firsts = [" ".join(text.splitlines()[0].split()) for text in dropped if text]
    assert firsts
    assert [first for first in firsts if f"~~{first}~~" not in drawn] == []
    assert "5,000 EUR is approved by the chief" in drawn
    traced = rag("ask", QUESTION, "--trace", "--index", "idx")
    assert traced.err[traced.err.index("ledger: ") :] == shown.err[shown.err.index("ledger: ") :]


def test_styles_stand_for_the_tildes(told: dict[str, Any]) -> None:
    parts = [
        {"kept": True, "text": "One stays. "},
        {"kept": False, "text": "Two goes.\nThree\x1b goes. "},
        {"kept": False, "text": "  \n"},
    ]
    chunk = {"parts": parts, "rewritten": None}
    plain = diff_text(chunk, styled=False)
    assert plain.plain == "One stays. ~~Two goes.~~\n~~Three\\x1b goes.~~   \n"
    styled = diff_text(chunk, styled=True)
    assert "~~" not in styled.plain
    assert [(styled.plain[one.start : one.end], one.style) for one in styled.spans] == [
        ("Two goes.\nThree\\x1b goes.", "dim strike")
    ]
    long = {"parts": [{"kept": False, "text": "ab " * 200}], "rewritten": "told anew"}
    assert len(diff_text(long, styled=True).plain) == 600 + len("\nrewritten: told anew")
    assert len(diff_text(long, styled=True, every=False).plain) < 300


def test_a_cut_span_and_a_missed_target_are_told(
    home: Path, told: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy.deepcopy(told)
    piece = next(one for one in run["context"]["pieces"] if "5,000" in one["text"])
    at, (low, high) = next(
        (at, pair) for at, pair in enumerate(piece["kept"]) if "5,000" in kept_of(told, piece["chunk_id"], *pair)
    )
    inside = low + kept_of(told, piece["chunk_id"], low, high).index("5,000") + 2
    piece["kept"][at : at + 1] = [[low, inside], [inside + 1, high]]
    run["context"]["token_count"] = 2 * run["context"]["source_token_count"]
    assert low < inside < high
    with Index.open(home / "idx") as index:
        draw_compression(compressed(run, index.corpus))
        err = " ".join(capsys.readouterr().err.split())
        assert "CUT: lost from a sentence that is kept" in err
        assert "(1 CUT)" in err
        assert "missed, 4" in err
        run["bubble"]["chunk_ids"][0] = "0123456789abcdef:0-9"
        made = compressed(run, index.corpus)
        del run["bubble"]["kept"]
        assert compressed(run, index.corpus)["survival"] == made["survival"], "whole chunks were chosen"
    assert made["gone"] == ["0123456789abcdef:0-9"]
    assert len(made["chunks"]) == len(run["bubble"]["chunk_ids"]) - 1


def kept_of(told: dict[str, Any], chunk_id: str, low: int, high: int) -> str:
    chunk = next(one for one in told["compressed"]["chunks"] if one["chunk_id"] == chunk_id)
    text: str = next((part["text"] for part in chunk["parts"] if part["span"] == [low, high]), "")
    return text


def test_nothing_is_drawn_where_nothing_was_left_out(rag: Rag, home: Path) -> None:
    (home / "rag.yaml").write_text(CONFIG)
    assert rag("ingest", "docs", "--index", "idx", "-q").code == 0
    assert rag("ask", QUESTION, "--index", "idx", "--json").code == 0
    made = rag("explain", "--index", "idx", "--json").json["compressed"]
    assert made["target"] is None
    assert all(part["kept"] for chunk in made["chunks"] for part in chunk["parts"])
    assert "protected spans" not in rag("explain", "--index", "idx").err
