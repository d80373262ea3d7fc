"""What `local` tells of reused keys and values: counts by segment, deviation from full prefill, timeline of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from rag.answer import Answer  # noqa: E402
from rag.cli._timeline import timeline_lines  # noqa: E402
from rag.generators._audit import measured  # noqa: E402
from rag.generators.local import LocalGenerator  # noqa: E402
from tests.contracts.test_generator import QUESTION, WHOLE, ask, context  # noqa: E402
from tests.unit.test_generators_local import tiny_llama  # noqa: E402
from tests.unit.test_generators_reuse import FILES, WHEN, WHO, pipeline, written  # noqa: E402

REPAIRS = ["naive", "first-variance", "all", "blend", {"use": "epic", "k": 3}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def index(folder: Path, tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / name).write_text(text, encoding="utf-8")
    pipeline(folder).index(tmp_path / "files", tmp_path / "index").close()
    return tmp_path / "index"


def notes(answer: Answer) -> dict[str, Any]:
    return dict(answer.trace[-1].notes)


@pytest.mark.parametrize("repair", REPAIRS, ids=str)
def test_segments_add_up(folder: Path, index: Path, repair: Any) -> None:
    for known in (False, True):
        answer = pipeline(folder, repair=repair).ask(WHO, index)
        rows, stats = notes(answer)["segments"], answer.stats
        assert [row["part"] for row in rows] == ["start", "1", "2", "3", "question"]
        assert [row.get("chunk_id") for row in rows[1:-1]] == [piece.chunk_id for piece in answer.context.pieces]
        assert sum(row["tokens"] for row in rows) == stats.prompt_tokens
        assert all(row["reused"] + row["computed"] == row["tokens"] for row in rows)
        assert (rows[0]["reused"], rows[-1]["reused"]) == (rows[0]["tokens"], 0)
        told = [row["repaired"] for row in rows]
        if repair == "blend":
            assert told == [0, None, None, None, 0]
            continue
        assert sum(told) == stats.repaired_tokens
        assert all(row["computed"] > row["repaired"] for row in rows[1:])  # the head of every piece is new
        copied = sum(row["reused"] for row in rows)
        assert max(0, copied - notes(answer)["tokens_made"]) == stats.reused_tokens
        assert (notes(answer)["tokens_made"] == 0) == known
        if known:
            assert sum(row["computed"] for row in rows) == stats.computed_tokens
        token_bytes = 2 * 2 * 1 * 16 * 4  # keys and values, layers, heads, their width, bytes
        assert sum(row["bytes"] for row in rows) == (copied + sum(told)) * token_bytes


def test_segments_of_an_exact_prefix(folder: Path, index: Path) -> None:
    line = pipeline(folder, reuse="prefix")
    for _ in range(2):
        answer = line.ask(WHO, index)
    rows, left = notes(answer)["segments"], answer.stats.reused_tokens
    assert left > 0
    for row in rows:
        assert row["reused"] == min(row["tokens"], left)
        left -= row["reused"]
    assert left == 0
    assert "segments" not in notes(pipeline(folder, reuse="none").ask(WHO, index))


@pytest.mark.parametrize(
    ("given", "exact"),
    [
        ({"reuse": "none"}, True),
        ({"reuse": "prefix"}, True),
        ({"repair": "all"}, True),
        ({"repair": "first-variance"}, False),
        ({"repair": "naive", "blocks": "solo"}, False),
    ],
    ids=str,
)  # fmt: skip
def test_exact_ways_stray_nowhere_and_the_audit_changes_no_answer(
    folder: Path, index: Path, given: dict[str, Any], exact: bool
) -> None:
    plain, ours = pipeline(folder, **given), pipeline(folder, audit=True, **given)
    for question in (WHO, WHEN):
        expected, answer = plain.ask(question, index), ours.ask(question, index)
        assert written(answer) == written(expected)
        assert (expected.stats.measured_deviation, expected.stats.measured_agreement) == (None, None)
        kl, agreement = answer.stats.measured_deviation, answer.stats.measured_agreement
        assert kl is not None
        assert agreement is not None
        assert (kl < 1e-8 and agreement == 1) if exact else kl > 1e-3


def test_the_measure_is_the_divergence_token_by_token(folder: Path) -> None:
    ours = LocalGenerator(model=str(folder), dtype="float32", max_new_tokens=6)
    decoder = ours._decoder
    ids, new = list(b"The quick brown fox jumps over the lazy dog"), [5, 90, 17, 33]
    reading = decoder.read(ids, 8)
    for layer in reading.cache.kv_layers:
        layer.buffers()[1][:, :, 3:9] *= 1.5  # values that no full prefill has
    skewed = decoder.read([*ids, 1], 8).logits
    reading = _with_logits(reading, skewed)
    rows = [reading.logits, *(reading.step(token) for token in new[:-1])]
    with torch.inference_mode():
        full = ours._loaded[0](input_ids=torch.tensor([ids + new])).logits[0, len(ids) - 1 : -1].double()
    logs = [(one.log_softmax(-1), row.double().log_softmax(-1)) for one, row in zip(full, rows, strict=True)]
    expected = sum(float((p.exp() * (p - q)).sum()) for p, q in logs) / len(new)
    found = measured(decoder.required, reading, ids, new)
    assert expected > 1e-3
    assert found.kl == pytest.approx(expected, rel=1e-3)
    assert found.agreement == sum(int(p.argmax() == q.argmax()) for p, q in logs) / len(new)
    assert reading.cache.length == len(ids) + len(new) - 1


def _with_logits(reading: Any, logits: Any) -> Any:
    import dataclasses

    return dataclasses.replace(reading, logits=logits)


def test_the_prediction_is_that_of_the_table(folder: Path, index: Path) -> None:
    rows = [
        {"policy": "naive", "tokens": 1, "cost": 0.1, "kl": 0.5},
        {"policy": {"use": "epic", "k": 8}, "tokens": 1, "cost": 0.3, "kl": 0.01},
    ]
    for bound, expected in ((0.02, 0.01), (0.6, 0.5), (0.001, 0.0)):
        stats = pipeline(folder, repair={"use": "auto", "bound": bound, "table": rows}).ask(WHO, index).stats
        assert stats.predicted_deviation == expected
    assert pipeline(folder, repair="naive").ask(WHO, index).stats.predicted_deviation is None


def test_a_stable_order_makes_prefixes_that_the_next_question_finds(folder: Path) -> None:
    ours = LocalGenerator(model=str(folder), dtype="float32", max_new_tokens=4, piece_order="stable")
    plain = LocalGenerator(model=str(folder), dtype="float32", max_new_tokens=4)
    orders = [WHOLE, WHOLE[::-1]]
    found = {}
    for name, one in (("stable", ours), ("relevance", plain)):
        made = [ask(one, context(QUESTION, *pieces)) for pieces in orders]
        found[name] = made[1].stats.reused_tokens
        assert (made[0].prompt == made[1].prompt) == (name == "stable")
    assert found["stable"] > found["relevance"]


# ------------------------------------------------------------------ the command line


def call(*given: str) -> Any:
    from typer.testing import CliRunner

    from rag.cli.main import app

    return CliRunner().invoke(app, [*given])


def test_ask_measures_and_explain_draws(folder: Path, index: Path, tmp_path: Path) -> None:
    import yaml

    config = tmp_path / "rag.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load(pipeline(folder).describe())), encoding="utf-8")
    asked = ("ask", WHO, "--index", str(index), "--config", str(config))
    told = json.loads(call(*asked, "--audit-kv", "--json").stdout)
    assert told["stats"]["measured_deviation"] > 0
    run = json.loads(call("explain", told["run_id"], "--index", str(index), "--json").stdout)
    assert run["stats"] == told["stats"]
    shown = call("explain", "last", "--index", str(index)).stderr
    assert "keys and values, reuse chunk: donor-mean, first-variance: " in shown
    assert "deviation from full prefill: measured " in shown
    for name in FILES:
        assert f"/{name}" in shown or f" {name}" in shown
    assert "segments=" not in shown  # drawn, and not spelled out among the notes of a stage
    assert call("explain", "last", "--index", str(index), "--replay").exit_code == 0
    drawn = call(*asked, "--audit-kv")
    assert "deviation from full prefill: measured " in drawn.stderr
    assert "deviation" not in call(*asked).stderr
    plain = json.loads(call(*asked, "--json").stdout)
    assert plain["stats"]["measured_deviation"] is None

    config.write_text(config.read_text().replace("use: local", "use: extractive").split("generator:")[0], "utf-8")
    with config.open("a", encoding="utf-8") as file:
        file.write("generator: {use: extractive, min_support: 0.3}\n")
    refused = call(*asked, "--audit-kv")
    assert refused.exit_code != 0
    assert "--audit-kv" in str(refused.exception)


def test_the_timeline_of_a_stored_run() -> None:
    rows = [
        {"part": "start", "tokens": 40, "reused": 40, "repaired": 0, "computed": 0, "bytes": 4_000_000},
        {
            "part": "1", "chunk_id": "d1:0-9", "tokens": 160, "reused": 80, "repaired": 40, "computed": 80,
            "bytes": 12_000_000,
        },
        {"part": "question", "tokens": 1, "reused": 0, "repaired": 0, "computed": 1, "bytes": 0},
    ]  # fmt: skip
    stats = {
        "policy": "chunk: solo, epic", "prompt_tokens": 201, "reused_tokens": 120, "repaired_tokens": 40,
        "computed_tokens": 81, "bytes_loaded": 3_500_000, "ttft_seconds": 0.2314, "drafted_tokens": 9,
        "accepted_tokens": 4, "predicted_deviation": 0.05, "measured_deviation": 0.0123, "measured_agreement": 0.975,
    }  # fmt: skip
    run = {
        "stats": stats,
        "trace": [{"notes": {"reuse": "chunk: solo, epic", "segments": rows}}],
        "sources": {"d1": "a/very/long/path/to/a/file/that/ends/in/handbook.md"},
    }
    lines = [text for text, _ in timeline_lines(run)]
    assert lines[1].endswith("120 of 201 tokens reused, 40 repaired, 81 computed, 3.50 MB from disk, "
                             "first token after 231 ms")  # fmt: skip
    bars = [line[2:] for line in lines[2:5]]
    assert [bar.count("=") for bar in bars] == [8, 16, 0]
    assert [bar.count("~") for bar in bars] == [0, 8, 0]
    assert [bar.count("#") for bar in bars] == [0, 8, 1]
    assert "[1] ...file/that/ends/in/handbook.md" in bars[1]
    assert "160 tokens: 80 reused, 40 repaired, 40 computed; 12.00 MB" in bars[1]
    assert "drafts: 4 of 9 guessed tokens held" in lines
    assert lines[-1].startswith("deviation from full prefill: predicted 0.05 nats a token, measured 0.0123 nats")
    assert lines[-1].endswith("97.5 % of the answer")
    old = {name: value for name, value in stats.items() if "deviation" not in name and "tokens" in name}
    assert list(timeline_lines({"stats": old, "trace": []})) == [("drafts: 4 of 9 guessed tokens held", "")]
    assert list(timeline_lines({"stats": {"policy": "none"}, "trace": [{"notes": {}}]})) == []
    assert list(timeline_lines({"trace": []})) == []
