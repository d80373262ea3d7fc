"""Tables of claims: what a file shows is what the reports say, and what was lost is shown as lost."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from eval.bench._claims import RESULTS, read_reports
from eval.bench._tables import CheckOption, WriteOption, rendered, stale, tables
from rag.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent.parent
_CLAIMS: list[dict[str, Any]] = [
    {"claim": "faster than a | b", "value": 1.5, "goal": 1.0, "better": "higher", "holds": True},
    {"claim": "bytes", "value": 900.5, "goal": 900, "better": "lower", "holds": False},
    {"claim": "no peer", "value": None, "goal": 2.0, "better": "higher", "holds": False},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "results"
    place.mkdir()
    write(place, "store", {"bench": "store", "machine": {"cpu": "X", "cores": 2}, "seed": 7, "claims": _CLAIMS})
    write(place, "kv_exact", {"bench": "kv", "claims": _CLAIMS[:1]})
    return place


def write(folder: Path, name: str, report: Any) -> None:
    (folder / f"{name}.json").write_text(json.dumps(report), encoding="utf-8")


def block(name: str, body: str = "") -> str:
    return f"before\n\n<!-- bench:{name} -->\n{body}<!-- /bench -->\n\nafter\n"


def test_the_tables_of_the_documents_are_those_of_the_reports() -> None:
    documents = [ROOT / "README.md", ROOT / "DESIGN.md", *sorted((ROOT / "docs").rglob("*.md"))]
    assert stale([path for path in documents if path.is_file()], read_reports()) == []


def test_every_report_of_the_folder_has_claims_that_its_figures_bear_out() -> None:
    reports = read_reports()
    assert reports.keys() == {path.stem for path in RESULTS.glob("*.json")}
    for name, report in reports.items():
        shown = rendered(block(name), reports)
        assert shown.count("| **lost** |") == len(report.lost)
        assert shown.count("| yes |") == len(report.claims) - len(report.lost)
        assert rendered(block(f"{name} lost"), reports).count("| **lost** |") == len(report.lost)


def test_a_block_is_written_with_every_claim(folder: Path) -> None:
    shown = rendered(block("store"), read_reports(folder))
    assert shown == (
        "before\n\n<!-- bench:store -->\n`store.json`: 1 of 3 claims hold. X, 2 cores, seed 7.\n\n"
        "| claim | measured | goal | holds |\n|---|---:|---:|---:|\n"
        "| faster than a \\| b | 1.5 | at least 1 | yes |\n"
        "| bytes | 900.5 | at most 900 | **lost** |\n"
        "| no peer | - | at least 2 | **lost** |\n"
        "<!-- /bench -->\n\nafter\n"
    )
    assert rendered(shown, read_reports(folder)) == shown


def test_short_forms_count_every_claim(folder: Path) -> None:
    reports = read_reports(folder)
    short = rendered(block("store lost"), reports)
    assert "1 of 3 claims hold" in short
    assert len(re.findall(r"\*\*lost\*\*", short)) == 2
    assert "faster" not in short
    assert "1 of 1 claims hold" in rendered(block("kv_exact lost"), reports)
    every = rendered(block("all"), reports)
    assert "| kv_exact | 1 | 1 | 0 |\n| store | 3 | 1 | 2 |" in every


def test_a_changed_report_makes_a_file_stale(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(block("store") + block("kv_exact"), encoding="utf-8")
    with pytest.raises(typer.Exit):
        tables([readme], [], folder)
    tables([], [readme], folder)
    tables([readme], [], folder)
    write(folder, "store", {"claims": [{**_CLAIMS[0], "value": 1.25}]})
    capsys.readouterr()
    with pytest.raises(typer.Exit) as found:
        tables([readme], [], folder)
    assert found.value.exit_code == 1
    said = capsys.readouterr().err
    assert ": store; run rag bench tables --write" in said
    assert "kv_exact" not in said
    tables([readme], [readme], folder)  # written first, then checked


@pytest.mark.parametrize(
    "change", [{"holds": False}, {"value": 0.5}, {"goal": 2}, {"better": "lower"}, {"value": None}, {"better": "more"}]
)
def test_a_claim_that_its_figures_do_not_bear_out_is_refused(folder: Path, change: dict[str, Any]) -> None:
    write(folder, "bad", {"claims": [{**_CLAIMS[0], **change}]})
    with pytest.raises(UsageError, match=r"bad\.json: claim 0"):
        read_reports(folder)


@pytest.mark.parametrize("report", [[], {}, {"claims": {}}, {"claims": [{"claim": "x"}]}, {"claims": [3]}])
def test_a_file_that_is_no_report_is_named(folder: Path, report: Any) -> None:
    write(folder, "bad", report)
    with pytest.raises(UsageError, match=r"bad\.json"):
        read_reports(folder)
    (folder / "bad.json").write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match=r"bad\.json: not JSON"):
        read_reports(folder)


@pytest.mark.parametrize(
    "text",
    [
        "<!-- bench:store -->\nno end\n", "x\n<!-- /bench -->\n", "in a line <!-- bench:store -->\n<!-- /bench -->\n",
        "<!-- bench:store -->\n<!-- bench:kv_exact -->\n<!-- /bench -->\n",
        "<!-- bench:store -->\n<!-- bench:store -->\n<!-- /bench -->\n<!-- /bench -->\n",
        "<!-- bench:a b -->\n<!-- /bench -->\n",
    ],
)  # fmt: skip
def test_half_a_pair_of_markers_is_an_error(folder: Path, text: str) -> None:
    with pytest.raises(UsageError, match="markers make"):
        rendered(text, read_reports(folder))


def test_an_unknown_report_or_file_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no report 'speed'.*kv_exact, store, all"):
        rendered(block("speed"), read_reports(folder))
    with pytest.raises(UsageError, match="no file"):
        tables([tmp_path / "none.md"], [], folder)
    with pytest.raises(UsageError, match="--check FILE or --write FILE"):
        tables([], [], folder)


def test_the_options_make_a_command(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    app = typer.Typer()

    @app.command()
    def command(check: CheckOption = None, write: WriteOption = None) -> None:
        tables(check, write)

    readme = tmp_path / "README.md"
    readme.write_text(block("all"), encoding="utf-8")
    assert CliRunner().invoke(app, ["--check", str(readme)]).exit_code == 1
    assert CliRunner().invoke(app, ["--write", str(readme), "--check", str(readme)]).exit_code == 0
    assert "| report | claims | hold | lost |" in readme.read_text(encoding="utf-8")
