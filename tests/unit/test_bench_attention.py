"""`rag bench attention` with a tiny random model and made-up data: every part, its rows, its choice, its claims."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from eval.bench import attention as bench  # noqa: E402
from eval.bench._attention_ops import op_rows, states_of  # noqa: E402
from eval.bench._attention_plans import AROUND, NAMES, plans, selection_at, spec_of  # noqa: E402
from eval.bench._attention_priors import by_retriever  # noqa: E402
from eval.bench._attention_prompts import KINDS, Case, cases_of, prose  # noqa: E402
from eval.bench._attention_quality import DENSE, quality, ranked, row_reads, summary  # noqa: E402
from eval.bench._attention_report import calibration, chosen  # noqa: E402
from eval.bench._kv_prompts import Loaded  # noqa: E402
from eval.bench._report import Settings  # noqa: E402
from eval.chunks.data import half_of  # noqa: E402
from rag.engine.attention import Memory  # noqa: E402
from rag.engine.attention.executors.dense_mask import pair_mask  # noqa: E402
from rag.errors import UsageError  # noqa: E402
from rag.generators._attention_calibration import choose  # noqa: E402
from tests.unit.test_engine_model import shared  # noqa: E402

TOKENS = 240


def encode(text: str) -> list[int]:
    """A token a word."""
    return [3 + sum(map(ord, word)) % 90 for word in text.split()]


def near(question: str, texts: Sequence[str]) -> list[float]:
    """How many words of the question a text has."""
    words = set(question.split())
    return [float(len(words & set(text.split()))) for text in texts]


@pytest.fixture
def loaded() -> Loaded:
    return Loaded(model=shared(), encode=encode, before="begin here", after="end here")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Books with a needle, pairs, and one set of questions with candidates."""
    keys = [f"q{at}" for at in range(24)]
    prose = [" ".join(f"w{at}x{line}y{word}" for word in range(12)) for at in range(1) for line in range(80)]
    sets: dict[str, dict[str, list[dict[str, Any]]]] = {"needle_books": {}, "kv_retrieval": {}, "hotpotqa_200": {}}
    for name, one in sets.items():
        one.update(corpus=[], queries=[], evidence=[])
        for number, key in enumerate(keys):
            if name == "needle_books":
                said = f"The code of place{number} is C{number}-X ."
                lines, answer = [*prose[:40], said, *prose[40:]], f"C{number}-X"
                text, question = "\n".join(lines), f"What is the code of place{number} ?"
            elif name == "kv_retrieval":
                pairs = [f' "k{at}": "v{at}-{number}"' for at in range(75)]
                text, said, answer = "{" + ",\n".join(pairs) + "}", f'"k30": "v30-{number}"', f"v30-{number}"
                question = 'What is the value of the key "k30"?'
            else:
                said, answer = f"Person{number} lives in Town{number}", f"Town{number}"
                text, question = f"{said} " + " ".join(f"f{number}" for _ in range(60)), f"Where lives Person{number}"
            row = {"query_id": key, "text": question, "answers": [answer], "depth": 0.5}
            one["corpus"].append({"doc_id": key, "title": key, "text": text})
            one["queries"].append(row | ({"candidates": [key, "q1"]} if name == "hotpotqa_200" else {}))
            start = text.index(said)
            one["evidence"].append(
                {"query_id": key, "doc_id": key, "start": start, "end": start + len(said), "text": said}
            )
        folder = tmp_path / name
        folder.mkdir()
        for kind, rows in one.items():
            (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def words(text: str) -> set[int]:
    return set(encode(text))


def drawn(loaded: Loaded, data: Path, kind: str, count: int = 2) -> list[Case]:
    return list(cases_of(loaded, data, kind, tokens=TOKENS, count=count, seed=0, near=near))


def test_prompts_hold_their_evidence_and_about_the_tokens_asked_for(loaded: Loaded, data: Path) -> None:
    for kind in ("needle", "kv", "asked"):
        cases = drawn(loaded, data, kind)
        assert len(cases) == 2
        for case in cases:
            assert half_of(case.name) == "dev"
            assert TOKENS * 0.5 < len(case.ids) < TOKENS + 90
            held = {token for at in case.evidence for token in case.chunks[at]}
            assert case.gold[0] in held or kind == "kv"
            start, stop = case.spans[case.evidence[0]]
            assert case.ids[start:stop] == case.chunks[case.evidence[0]]
            assert len(case.priors) == (0 if kind == "kv" else len(case.chunks))
            if kind == "asked":
                assert case.priors == sorted(case.priors, reverse=True)
    assert [case.ids for case in drawn(loaded, data, "asked")] == [case.ids for case in drawn(loaded, data, "asked")]


def test_evidence_is_where_it_stands_and_not_wherever_its_words_are(loaded: Loaded, data: Path) -> None:
    corpus = data / "hotpotqa_200" / "corpus.jsonl"
    rows = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    said = [row["text"] for row in rows]
    for number, row in enumerate(rows):
        row["text"] += f"\n{' '.join(said[number].split()[:4])} " + "g " * 220  # said again, in a piece of its own
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for case in drawn(loaded, data, "asked"):
        assert len(case.evidence) == 1
        assert words(f"f{case.name[1:]}") <= set(case.chunks[case.evidence[0]])


def test_priors_are_a_retrievers_scores_of_the_texts_alone(tmp_path: Path) -> None:
    texts = ["Rain\nRain falls in spring.", "Tea\nTea is dry leaves.", "Rain\nRain falls in spring.", "Sea\nSalt."]
    score = by_retriever(tmp_path, "bm25", "hashing")
    told = score("When does rain fall?", texts)
    assert told[0] == told[2] > max(told[1], told[3])
    hybrid = by_retriever(tmp_path, "hybrid", "hashing")
    first = hybrid("What is tea?", texts)
    assert max(first) == first[1]
    assert list(tmp_path.rglob("*.keys.npy"))
    assert by_retriever(tmp_path, "hybrid", "hashing")("What is tea?", texts) == first


def test_prose_is_cut_to_its_length(loaded: Loaded, data: Path) -> None:
    texts = prose(loaded, data, tokens=700, count=3)
    assert [len(ids) for ids in texts] == [700] * 3
    (case,) = cases_of(loaded, data, "text", tokens=700, count=1, seed=0, near=near)
    assert (case.ids + case.gold, len(case.gold)) == (texts[0], 256)


@pytest.mark.parametrize("name", NAMES)
def test_plans_keep_about_their_share_and_say_how_a_config_names_them(loaded: Loaded, data: Path, name: str) -> None:
    (plan,) = plans(2048, [0.25], [name])
    (ids,) = prose(loaded, data, tokens=900, count=1)
    states = states_of(loaded, ids)
    (row,) = [row for row in op_rows(states, kept=300, rounds=1, names=[name]) if row["stage"] == "prefill"]
    assert 0.2 < row["density"] < (1.01 if name == "flexprefill" else 0.95)
    assert {"gather_ms", "selection_ms", "gather_ratio", "ratio"} <= row.keys()
    spec = spec_of(plan.selection)
    assert spec.pop("use") == plan.selection.name
    if name not in AROUND:
        assert type(plan.selection)(**spec) == plan.selection
        assert json.loads(json.dumps(spec)).keys() == spec.keys()


def test_too_little_is_left_out_and_an_unknown_name_refused() -> None:
    assert selection_at("tokenselect", 8, 0.1) is None
    assert "tokenselect" not in {one.name for one in plans(80, [0.1])}
    with pytest.raises(UsageError, match="no selection fast; there are sink-recent"):
        plans(100, [0.1], ["fast"])


def test_what_a_row_reads_is_what_the_reference_reads(loaded: Loaded, data: Path) -> None:
    (ids,) = prose(loaded, data, tokens=300, count=1)
    step = states_of(loaded, ids)
    for plan in plans(300, [0.3], ["sink-recent", "quest", "dma"]):
        kept = plan.selection.select(step, Memory())
        if kept is not None:
            whole = pair_mask(step, kept)
            for row in (0, 100, 299):
                assert torch.equal(row_reads(step, kept, row).expand_as(whole[:, :, row]), whole[:, :, row])


def test_all_kept_strays_nowhere_and_a_run_goes_on(loaded: Loaded, data: Path, tmp_path: Path) -> None:
    file, cases = tmp_path / "rows.jsonl", drawn(loaded, data, "asked")
    make = lambda tokens: plans(tokens, [1.2], ["sink-recent", "quest"])  # noqa: E731
    first = quality(loaded, iter(cases[:1]), make, rows_file=file)
    assert {row["plan"] for row in first} == {DENSE, "sink-recent@1.2", "quest@1.2"}
    for row in first:
        if row["plan"] != DENSE:
            assert (row["kept"], row["mass"]) == (pytest.approx(1), pytest.approx(1))
            assert row["kl"] < 1e-6 > abs(row["gold"])
            assert set(row["evidence"]) == {1.0}
    lines = file.read_text(encoding="utf-8").splitlines()
    wide = lambda tokens: plans(tokens, [0.25, 1.2], ["sink-recent", "quest"])  # noqa: E731
    told = quality(loaded, iter(cases), wide, rows_file=file)
    assert file.read_text(encoding="utf-8").splitlines()[: len(lines)] == lines
    assert len(told) == 2 * 5 == len({(row["case"], row["plan"]) for row in told})
    sparse = [row for row in told if row["plan"] == "sink-recent@0.25"]
    assert all(row["mass"] < 1 and row["kept"] < 0.7 for row in sparse)
    again = quality(loaded, iter(cases), wide, rows_file=file)
    assert again == told


def test_every_part_reports_claims_and_a_calibration(loaded: Loaded, data: Path, tmp_path: Path) -> None:
    settings, file = Settings(data=data, rounds=1, quiet=True), tmp_path / "table.json"
    how = bench.QualitySettings(names=["quest", "chunk-block"], densities=[0.25], near=near)
    report = bench.run(
        settings, lengths=(700,), questions=1, quality=how, loaded=loaded, calibrate=file, rows=tmp_path / "rows"
    )
    assert json.loads(json.dumps(report)) == report
    assert {(row["stage"], row["selection"]) for row in report["ops"]} >= {
        ("prefill", "quest"),
        ("decode", "chunk-block"),
    }
    assert {(row["stage"], row["contender"]) for row in report["end"]} == {
        (stage, one) for stage in ("prefill", "decode") for one in ("stock", "in-place dense", "quest", "chunk-block")
    }
    (part,) = report["quality"]
    assert {row["kind"] for row in part["rows"]} == set(KINDS)
    assert part["plans"][0]["plan"] == DENSE
    by_name = {one["plan"]: one for one in part["plans"]}
    assert by_name["chunk-block@0.25"]["evidence_worst"] is not None
    claims = [one["claim"] for one in report["claims"]]
    assert any("evidence recall of the worst layer" in one for one in claims)
    assert (tmp_path / "rows" / "quality-700.jsonl").exists()
    assert choose(report["model"]["fingerprint"], 700, str(file)) == report["calibration"]["rows"][0]["spec"]


def test_options_that_do_not_fit_are_refused(data: Path, loaded: Loaded, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no part speed; there are ops"):
        bench.run(Settings(data=data), parts=("speed",), loaded=loaded)
    with pytest.raises(UsageError, match="--calibrate needs the part quality"):
        bench.run(Settings(data=data), parts=("ops",), calibrate=tmp_path / "x", loaded=loaded)
    with pytest.raises(UsageError, match="has no needle_books, kv_retrieval"):
        bench.run(Settings(data=tmp_path / "none"), loaded=loaded)
    with pytest.raises(UsageError, match="no kind prose"):
        bench.run(Settings(data=data), quality=bench.QualitySettings(kinds=["prose"]), loaded=loaded)


def told(plan: str, **figures: Any) -> dict[str, Any]:
    density = 1.0 if plan == DENSE else float(plan.partition("@")[2])
    one: dict[str, Any] = {"plan": plan, "density": density, "cases": 4, "kept": density, "mass": 0.9, "kl": 0.01}
    one |= {"gold_needle": 0.0, "gold_kv": None, "gold_asked": -0.01, "found_needle": 1.0}
    return one | {"seconds": 0.5, "step_seconds": 0.5} | figures


def test_the_choice_is_the_cheapest_within_the_bounds() -> None:
    dense = told(DENSE, seconds=10.0, step_seconds=0.1)
    part = {"length": 8000, "plans": [dense, told("quest@0.25"), told("sink-recent@0.1", seconds=0.4, kl=0.2)]}
    row = chosen(part)
    assert (row["spec"]["use"], row["spec"]["budget"], row["cost"]) == ("quest", 2000, 0.5)
    for bad in ({"kl": 0.06}, {"gold_asked": -0.03}, {"found_needle": 0.9}, {"seconds": 1.5}, {"cases": 3}):
        assert chosen({"length": 8000, "plans": [dense, told("quest@0.25", **bad)]})["spec"] is None
    assert chosen({"length": 8000, "plans": [dense, told("share@0.25")]})["spec"] is None
    report: dict[str, Any] = {
        "quality": [part, {"length": 2000, "plans": [dense]}], "sets": ["needle_books"],
        "model": {"fingerprint": "f", "family": "llama", "layers": 2, "dtype": "float32"},
    }  # fmt: skip
    assert [row["tokens"] for row in calibration(report)["rows"]] == [2000, 8000]


def test_plans_are_ranked_by_mass_needle_and_answer_together() -> None:
    window = told("sink-recent@0.25", mass=0.95, gold_needle=-2.0, gold_asked=-0.5)
    finder = told("quest@0.25", mass=0.9, gold_needle=-0.1, gold_asked=-0.02)
    order = ranked([told(DENSE), window, finder])
    assert [one["plan"] for one in order] == [DENSE, "quest@0.25", "sink-recent@0.25"]
    assert [one["rank"] for one in order[1:]] == [pytest.approx(4 / 3), pytest.approx(5 / 3)]


def test_figures_are_means_over_cases() -> None:
    base = {"kind": "asked", "tokens": 10, "found": True, "kept": 0.5, "seconds": 0.5, "step_seconds": None}
    rows = [
        base | {"case": at, "plan": "quest@0.5", "density": 0.5, "gold": gold, "evidence": evidence}
        for at, gold, evidence in (("a", -0.1, [1.0, 0.5]), ("b", -0.3, [1.0, 0.7]))
    ]
    (one,) = summary(rows)
    assert (one["gold_asked"], one["evidence"], one["evidence_worst"]) == (
        pytest.approx(-0.2), pytest.approx(0.8), pytest.approx(0.6)
    )  # fmt: skip
    assert one["gold_asked_interval"] == pytest.approx([-0.3, -0.1])
    assert (one["n_asked"], one["gold_needle"], one["step_seconds"]) == (2, None, None)
    assert replace(Settings(), rounds=1).rounds == 1
