"""Reports: what `rag eval run` wrote, as a leaderboard, and down to what became of each question."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import streamlit as st

from app.desk import Desk
from app.parts import Mark, bar, command, copyable, empty, marked_text, plain, safe, table
from rag.errors import InputError
from rag.text import printable

FORMAT = 1
MOST_BYTES = 300_000_000
LOOKED_AT = ("results.json", "*/results.json", "*/*/results.json")
ALL, FAILED = "all questions", "all that failed"
_HEADLINES = 8


def show(desk: Desk) -> None:
    """A file, its leaderboard, and one of its questions."""
    found = sorted((path for pattern in LOOKED_AT for path in Path.cwd().glob(pattern)), key=_age, reverse=True)
    names = [str(path.relative_to(Path.cwd())) for path in found]
    picked = st.selectbox("Report", names, key="report") if names else None
    label = "Or the path of a results.json" if names else "Path of a results.json"
    typed = st.text_input(label, key="report-path").strip()
    path = Path(typed or picked or "")
    make = command("rag", "eval", "run", "--dataset", "FOLDER", "--out", "report")
    if not (typed or picked):
        empty("No report yet", f"`{make}` writes one; run it here, or give the path of its results.json above.")
        copyable(make)
        return
    results = load(path)
    sets = list(results["sets"])
    name = (
        st.segmented_control("Data set", sets, default=sets[0], key="set", required=True) if len(sets) > 1 else sets[0]
    )
    runs = [run for run in results["runs"] if run["set"] == name]
    _about(results["sets"][name])
    _leaderboard(runs)
    _comparisons([one for one in results["comparisons"] if one["set"] == name])
    label = st.selectbox("Look closer at", [run["config"] for run in runs], key="config")
    run = next(one for one in runs if one["config"] == label)
    _stages(run)
    _questions(run)
    copyable(make, _yaml(results["configs"].get(label, {}).get("config")))


def load(path: Path) -> dict[str, Any]:
    """A report; InputError when it is none."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; `rag eval run --out FOLDER` writes FOLDER/results.json")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise InputError(f"{path} has {size / 1e6:,.0f} MB; at most {MOST_BYTES / 1e6:,.0f} MB are read")
    results: dict[str, Any] = _read(str(path), path.stat().st_mtime_ns)
    return results


@st.cache_resource(max_entries=3, show_spinner="Reading the report")
def _read(path: str, changed: int) -> dict[str, Any]:
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no report of rag eval run: {error}") from error
    there = isinstance(results, dict) and {"format", "sets", "configs", "runs", "comparisons"} <= results.keys()
    if not there or results["format"] != FORMAT or not results["runs"]:
        raise InputError(f"{path} is no report of rag eval run in format {FORMAT}")
    return dict(results)


def leaderboard(runs: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]], int]:
    """(head, rows, number of the best row): a row a config, best first by the first measure, a column a measure."""
    measures = list(dict.fromkeys(name for run in runs for name in run["measures"]))[:_HEADLINES]
    first = measures[0] if measures else ""
    sign = -1 if any(_measure(run, first).get("better") == "lower" for run in runs) else 1
    ranked = sorted(runs, key=lambda run: -sign * float(_measure(run, first).get("mean", 0)))
    proxies = {name for run in runs for name, one in run["measures"].items() if one["proxy"]}
    head = ["config", *(f"{name} (proxy)" if name in proxies else name for name in measures), "failed"]
    rows = []
    for run in ranked:
        lost = sum(count for kind, count in run["failures"].items() if kind != "none")
        rows.append([run["config"], *(_interval(run["measures"].get(name)) for name in measures), lost])
    return head, rows, 0


def _measure(run: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = run["measures"].get(name, {})
    return found


def _interval(one: Mapping[str, Any] | None) -> str:
    return "-" if one is None else f"{one['mean']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"


def _about(info: Mapping[str, Any]) -> None:
    half = "" if info.get("half", "all") == "all" else f", {info['half']} half"
    st.caption(f"{info['questions']} questions over {info['documents']} documents{half}; means with 95 % intervals")


def _leaderboard(runs: list[dict[str, Any]]) -> None:
    head, rows, best = leaderboard(runs)
    table(head, rows, best=[best], test_id="leaderboard")
    further = [name for name in runs[0]["measures"] if name not in {one.removesuffix(" (proxy)") for one in head}]
    if further:
        with st.expander(f"{len(further)} more measures"):
            names = [run["config"] for run in runs]
            rows = [[name, *(_interval(run["measures"].get(name)) for run in runs)] for name in further]
            table(["measure", *names], rows, test_id="measures")
    curves = [(run["config"], run["curve"]) for run in runs if run["curve"]]
    if curves:
        steps = [point["tokens"] for point in curves[0][1]]
        rows = [[name, *(f"{point['recall']:.3f}" for point in curve)] for name, curve in curves]
        st.markdown("**Evidence within a budget of tokens**")
        table(["config", *(f"{tokens}" for tokens in steps)], rows, test_id="curve")


def _comparisons(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    with st.expander(f"Differences between configs: {len(rows)} comparisons", icon=":material/difference:"):
        lines = [
            (one["measure"], one["b"], one["a"], f"{one['difference']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]",
             f"{one['p_holm']:.3f}")
            for one in sorted(rows, key=lambda one: one["p_holm"])
        ]  # fmt: skip
        table(["measure", "config", "minus", "difference", "p (Holm)"], lines, test_id="comparisons")


def _stages(run: Mapping[str, Any]) -> None:
    """Where evidence and questions are lost."""
    if run["waterfall"]:
        st.markdown("**Evidence that is still there after each stage**")
        rows = [(one["stage"], f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]") for one in run["waterfall"]]
        table(["stage", "share"], rows, test_id="waterfall")
    lost = [(kind, count) for kind, count in run["failures"].items() if kind != "none" and count]
    st.markdown("**Where questions fail**")
    if lost:
        bar(lost, sum(run["failures"].values()), rest="no failure", test_id="failures")
    else:
        st.caption("None did.")


def _questions(run: Mapping[str, Any]) -> None:
    kinds = [kind for kind, count in run["failures"].items() if kind != "none" and count]
    wanted = st.selectbox("Show", [ALL, *([FAILED] if kinds else []), *kinds], key="failure")
    listed = [
        one for one in run["questions"]
        if wanted == ALL or (wanted == FAILED and one["failure"]) or one["failure"] == wanted
    ]  # fmt: skip
    if not listed:
        st.info("No question of this kind is kept in the report.")
        return
    by_id = {one["query_id"]: one for one in listed}
    picked = st.selectbox(
        f"Question ({len(listed)})", list(by_id), key="asked-question",
        format_func=lambda one: printable(f"{one}: {' '.join(by_id[one]['question'].split())}"),
    )  # fmt: skip
    draw_question(by_id[picked])


def draw_question(one: Mapping[str, Any]) -> None:
    """A question: what was asked, found, kept and answered."""
    with st.container(border=True):
        st.html(f'<div class="cw cw-head" data-testid="report-question">{safe(one["question"])}</div>')
        told = one["answer"] or "Not found in the documents."
        st.html(f'<div class="cw cw-text" data-testid="report-answer">{safe(told)}</div>')
        expected = " | ".join(one["answers"]) or "no answer: the documents do not hold one"
        st.html(f'<div class="cw cw-dim">expected: {safe(expected)}</div>')
        if one["error"]:
            st.error(plain(one["error"]))
        elif one["failure"]:
            st.warning(f"lost in stage: {plain(one['failure'])}", icon=":material/report:")
        else:
            st.success("answered as expected", icon=":material/check:")
    scores = [(name, value) for name, value in one["scores"].items()]
    with st.expander("Scores"):
        table(["measure", "value"], [(name, float(value)) for name, value in scores], test_id="scores")
    with st.expander(f"Evidence: {len(one['evidence'])}", expanded=bool(one["failure"])):
        for proof in one["evidence"]:
            place = f"{proof['source']} {proof['start']}-{proof['end']}"
            body = marked_text(proof["text"], [Mark(0, len(proof["text"]))])
            st.html(f'<div class="cw cw-card"><div class="cw-head">{safe(place)}</div>{body}</div>')
    with st.expander(f"Hits: {len(one['hits'])}"):
        rows = [(hit["rank"], "evidence" if hit["gold"] else "", f"{hit['source']} {hit['start']}-{hit['end']}",
                 float(hit["score"])) for hit in one["hits"]]  # fmt: skip
        table(["rank", "", "place", "score"], rows, test_id="hits")
    with st.expander(f"Context: {len(one['context'])} pieces; what was kept is tinted"):
        for piece in one["context"]:
            st.html(_piece(piece))


def _piece(piece: Mapping[str, Any]) -> str:
    start = piece["start"]
    marks = [Mark(low - start, high - start, "keep", "kept") for low, high in piece["kept"]]
    place = f"{piece['source']} {start}-{piece['end']}"
    return f'<div class="cw cw-card"><div class="cw-head">{safe(place)}</div>{marked_text(piece["text"], marks)}</div>'


def _yaml(config: Any) -> str | None:
    if not config:
        return None
    import yaml

    return str(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def _age(path: Path) -> float:
    return path.stat().st_mtime
