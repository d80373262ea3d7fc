"""The report: the same bytes each time, nothing that acts, nothing fetched, and it says what the results say."""

from __future__ import annotations

import copy
import html as entities
import os
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="the report needs jinja2: pip install 'chunkwise[eval]'")
pytest.importorskip("matplotlib", reason="the report needs matplotlib: pip install 'chunkwise[eval]'")

from eval.report import html, markdown, write_html
from eval.report._questions import entries, segments, visible
from eval.report._views import compared, losses, natural, pairs, table_of
from rag.errors import UsageError
from tests.eval_results import FAILURES, HOSTILE, results

ROOT = Path(__file__).resolve().parent.parent.parent
_VOID = {"meta", "input", "br"}
_SCRIPTS = "\U0001f9d1\u200d\U0001f52c \u05e9\u05dc\u05d5\u05dd e\u0301"
"""A joined emoji, Hebrew, a combining accent."""
_WRITE = """
import sys
from pathlib import Path
from eval.report import markdown, write_html
from tests.eval_results import HOSTILE, results
write_html(results(HOSTILE), Path(sys.argv[1]))
Path(sys.argv[2]).write_text(markdown(results(HOSTILE)), encoding="utf-8")
"""


class Page(HTMLParser):
    """Elements, attributes and text as a browser would find them; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def page() -> str:
    return html(results())


@pytest.fixture(scope="module")
def hostile() -> str:
    return html(results(HOSTILE))


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for seed in ("1", "2"):
        files = [tmp_path / f"{seed}.html", tmp_path / f"{seed}.md"]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", _WRITE, *map(str, files)], check=True, env=environment, cwd=tmp_path)
        made.append([file.read_bytes() for file in files])
    assert made[0] == made[1]


def test_the_order_of_runs_and_keys_does_not_matter(page: str) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            items = list(value.items())
            random.Random(3).shuffle(items)
            return {key: shuffled(one) for key, one in items}
        return [shuffled(one) for one in value] if isinstance(value, list) else value

    other = shuffled(results())
    for key in ("runs", "comparisons"):
        other[key].reverse()
    assert html(other) == page
    assert markdown(other) == markdown(results())


def test_the_style_of_the_user_does_not_matter(page: str) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "path", "xtick.major.pad": 20, "svg.hashsalt": "other"}):
        assert html(results()) == page


def test_nothing_of_the_page_fetches_runs_or_points_outside(hostile: str) -> None:
    tags = Page(hostile).tags
    assert not {tag for tag, _ in tags} & {
        "script",
        "img",
        "link",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "image",
    }
    for tag, attributes in tags:
        assert not [name for name in attributes if name.startswith("on") or name in {"src", "srcset", "action"}], tag
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), attributes
    style = "".join(re.findall(r"<style>(.*?)</style>", hostile, flags=re.DOTALL))
    assert style
    assert "url(" not in style
    assert "@import" not in style
    assert not re.findall(r"url\((?!#)", hostile)
    (policy,) = [found["content"] for _, found in tags if found.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def test_hostile_text_is_text(hostile: str, page: str) -> None:
    shown = visible(HOSTILE)
    found = Page(hostile)
    assert "".join(found.text).count(shown) > 50
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in Page(page).tags]  # it made no element
    assert not re.search("[\u061c\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\x00\x1b]", hostile)
    assert "\u27e6U+202E\u27e7gpj" in hostile
    assert "{{7*7}}" in hostile


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202eb", "a\u27e6U+202E\u27e7b"),
        ("a\x00\x1b", "a\u27e6U+0000\u27e7\u27e6U+001B\u27e7"),
        ("\ud800", "\u27e6U+D800\u27e7"),
        ("a\u200bb", "a\u27e6U+200B\u27e7b"),
        ("a\r\nb\rc\td", "a\nb\nc\td"),
        ("a\u00a0b\u3000c", "a\u00a0b\u3000c"),
        (_SCRIPTS, _SCRIPTS),
    ],
)  # fmt: skip
def test_hidden_characters_are_shown_and_scripts_are_left_alone(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_ids_are_unique_and_every_reference_has_one(page: str) -> None:
    ids = [found["id"] for _, found in Page(page).tags if found.get("id")]
    assert len(ids) == len(set(ids))
    named = set(re.findall(r"url\(#([^)]+)\)", page)) | set(re.findall(r'href="#([^"]+)"', page))
    assert named <= set(ids)


def test_no_colour_of_a_figure_is_fixed_to_light_or_dark(page: str) -> None:
    figures = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert figures
    assert set(re.findall(r"#[0-9a-f]{6}\b", figures)) == set()


def test_marks_follow_direction_and_holm() -> None:
    given = results()
    name = "handbook"
    first, second = (cell for cell in table_of(given, name, "nDCG@10") if cell)
    assert (first.best, first.beats, second.best, second.beats) == (True, ("B",), False, ())
    first, second = (cell for cell in table_of(given, name, "context tokens") if cell)
    assert (first.best, first.beats, second.best, second.beats) == (False, (), True, ("A",))  # lower is better
    assert [cell.best for cell in table_of(given, name, "IoU") if cell] == [False, False]  # equal
    (pair,) = pairs(given, name)
    assert (pair.a_better, pair.b_better, pair.open) == (("nDCG@10",), ("context tokens",), 1)
    for row in given["comparisons"]:
        row["p_holm"] = 0.05
    assert not any(row["holds"] for row in compared(given, name))
    assert pairs(given, name)[0].open == 3


def test_the_verdict_is_that_of_the_second_against_the_first(page: str) -> None:
    said = "small-budget against default: better on context tokens; worse on nDCG@10; 1 undecided."
    assert said in "".join(Page(page).text)
    assert said in markdown(results()).replace("`", "")


def test_a_question_without_answers_is_unanswerable_only_where_the_set_has_answers() -> None:
    given = results()
    given["runs"][0]["questions"][0].update(answers=[], evidence=[])
    assert "the right answer is to abstain" in html(given)
    given["sets"]["handbook"]["has_answers"] = False
    page = html(given)
    assert "abstain" not in page
    assert "no answers in this set" in page


def test_a_measure_that_a_run_lacks_is_no_zero() -> None:
    given = results()
    del given["runs"][0]["measures"]["IoU"]
    assert table_of(given, "handbook", "IoU")[0] is None
    assert "\u2013</td>" in html(given)


def test_measures_with_numbers_are_in_the_order_of_the_numbers() -> None:
    names = ["recall@1600 tokens", "recall@200 tokens", "IoU", "answer EM", "recall"]
    assert sorted(names, key=natural) == ["answer EM", "IoU", "recall", "recall@200 tokens", "recall@1600 tokens"]


def test_losses_add_up_and_the_largest_is_marked() -> None:
    steps = losses(results()["runs"][0]["waterfall"])
    assert 1 - sum(step.lost for step in steps) == pytest.approx(steps[-1].value)
    assert [step.stage for step in steps if step.most] == ["generate"]
    assert not any(step.most for step in losses([{"stage": "chunk", "value": 1.0}]))
    assert [step.lost for step in losses([{"stage": "a", "value": 0.5}, {"stage": "b", "value": 0.6}])] == [0.5, 0.0]


def test_proxies_are_named_as_proxies_everywhere(page: str) -> None:
    given = results()
    given["runs"][0]["questions"][0]["scores"]["K-precision"] = 0.5
    given["comparisons"].append({**given["comparisons"][0], "measure": "K-precision"})
    text = "".join(Page(html(given)).text)
    for at in [found.start() for found in re.finditer("K-precision", text)]:
        assert re.match(r"K-precision \(?proxy", text[at:]), text[at : at + 40]
    for line in markdown(given).splitlines():
        assert line.count("K-precision") == line.count("K-precision (proxy)")


def test_failing_questions_come_first_and_none_is_dropped_silently() -> None:
    rows, left_out = entries(results(), 200)
    assert (len(rows), left_out) == (4 * len(FAILURES), 0)
    passed = [row["failure"] == "none" for row in rows]
    assert passed == sorted(passed)
    rows, left_out = entries(results(), 7)
    assert (len(rows), left_out) == (28, 20)
    assert all(row["failure"] != "none" for row in rows)
    assert "20 more are in results.json" in html(results(), questions=7)
    assert '<details class="q ' not in html(results(), questions=0)


def test_pieces_of_a_context_give_its_text_and_the_right_marks() -> None:
    row = {"source": "a", "start": 100, "end": 120, "kept": [[100, 110], [115, 120]], "text": "abcdefghijklmnopqrst"}
    pieces = segments(row, {"a": [(105, 112)], "b": [(100, 120)]}, {"a": [(90, 103)]})
    assert "".join(text for _, text in pieces) == row["text"]
    assert pieces == [
        ("kept cited", "abc"), ("kept", "de"), ("kept gold", "fghij"), ("cut gold", "kl"), ("cut", "mno"),
        ("kept", "pqrst"),
    ]  # fmt: skip
    assert segments({**row, "text": "shorter"}, {"a": [(105, 112)]}, {}) == [("kept", "shorter")]


def test_the_share_of_evidence_counts_what_was_kept_once() -> None:
    given = results()
    question = given["runs"][0]["questions"][0]
    context = question["context"][0]
    context["kept"] = [[1045, 1060], [1050, 1078]]  # 33 of 67, some of it twice
    rows, _ = entries(given, 200)
    (row,) = [one for one in rows if (one["set"], one["config"], one["id"]) == ("handbook", "default", "q00")]
    assert [one["found"] for one in row["evidence"]] == [100 * 33 // 67]


def test_every_figure_of_the_summary_is_in_both_forms(page: str) -> None:
    text, plain = "".join(Page(page).text), markdown(results())
    for run in results()["runs"]:
        for row in run["measures"].values():
            shown = f"{row['mean']:,.3f}" if row["mean"] < 10 else f"{row['mean']:,.1f}"
            shown = f"{row['mean']:,.0f}" if row["mean"] >= 1000 else shown
            assert shown in text
            assert shown in plain
    for found in ("8020c23615998081", "a01d1953666e3ab5", f"{1600:016x}", "numpy 2.4.6"):
        assert found in text
        assert found in plain


def test_hostile_names_cannot_leave_their_place_in_markdown() -> None:
    plain, other = markdown(results()), markdown(results(HOSTILE + "\n| x |\n# y"))
    assert len(other.splitlines()) == len(plain.splitlines())
    for ours, theirs in zip(plain.splitlines(), other.splitlines(), strict=True):
        assert re.sub(r"`[^`]*`", "", ours) == re.sub(r"`[^`]*`", "", theirs)  # outside of code all is the same
    assert "\u202e" not in other


def test_one_run_without_comparisons_curves_or_facts_is_a_report() -> None:
    given = results()
    given.update(runs=given["runs"][:1], comparisons=[], configs={"default": {}}, sets={})
    given["runs"][0].update(curve=[], waterfall=[], questions=[])
    text = "".join(Page(html(given)).text)
    assert "nothing to compare" in text
    assert "No curves" in text
    assert "handbook" in markdown(given)


def test_many_configurations_have_letters_and_colours_that_exist() -> None:
    given = results()
    run = given["runs"][0]
    given["runs"] = [{**copy.deepcopy(run), "config": f"c{at:02}", "questions": []} for at in range(30)]
    given["configs"] = {f"c{at:02}": {"config": {}, "hash": "0"} for at in range(30)}
    given["comparisons"] = []
    page = html(given)
    assert set(re.findall(r"var\(--(s\d+)\)", page)) == {f"s{at}" for at in range(8)}
    assert "C30" in page


def test_results_of_another_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="format 2"):
        write_html({**results(), "format": 2}, tmp_path / "r.html")
    with pytest.raises(UsageError, match="questions = -1"):
        html(results(), questions=-1)
    assert not list(tmp_path.iterdir())


def test_the_written_file_is_the_page(tmp_path: Path, page: str) -> None:
    write_html(results(), tmp_path / "r.html")
    assert (tmp_path / "r.html").read_bytes() == page.encode()
    assert entities.unescape(page).count("Who approves travel") == 4 * len(FAILURES)
