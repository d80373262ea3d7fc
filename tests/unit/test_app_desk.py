"""The desk: any number of reruns embed nothing again and load no model again; and how text gets on the page."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit", reason="streamlit is not installed (pip install 'chunkwise[ui]')")

import streamlit as st

from app.desk import Desk, open_desk
from app.parts import Mark, marked_text, plain, safe
from rag import Pipeline, PipelineConfig, RagError
from rag.embedders import _files
from rag.embedders.hashing import HashingEmbedder
from tests.e2e.conftest import CONFIG, FILES

QUESTION = "Who approves travel above 5,000 EUR?"


@pytest.fixture(autouse=True)
def fresh() -> None:
    st.cache_resource.clear()
    st.cache_data.clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    for name in ("handbook.md", "prices.csv"):
        (tmp_path / "docs" / name).write_text(FILES[name], encoding="utf-8")
    (tmp_path / "rag.yaml").write_text(CONFIG)
    config = PipelineConfig.from_yaml(tmp_path / "rag.yaml")
    Pipeline(config).index(tmp_path / "docs", into=tmp_path / "idx").close()
    return tmp_path / "idx"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many texts and questions were embedded, and how often a pipeline built the plugin of a slot."""
    counts: Counter[str] = Counter()
    build = Pipeline._build
    embed, question = HashingEmbedder.embed, HashingEmbedder.embed_question

    def embedding(self: HashingEmbedder, texts: Any) -> Any:
        counts["texts"] += len(texts)
        return embed(self, texts)

    def asking(self: HashingEmbedder, text: str) -> Any:
        counts["questions"] += 1
        return question(self, text)

    def built(self: Pipeline, slot: str, services: Any) -> Any:
        counts[slot] += 1
        return build(self, slot, services)

    monkeypatch.setattr(HashingEmbedder, "embed", embedding)
    monkeypatch.setattr(HashingEmbedder, "embed_question", asking)
    monkeypatch.setattr(Pipeline, "_build", built)
    return counts


def test_reruns_embed_nothing_and_load_nothing(folder: Path, counted: Counter[str]) -> None:
    desk = open_desk(folder)
    run = desk.ask(QUESTION)
    assert run["citations"]
    assert counted["embedder"] == counted["generator"] == 1
    assert counted["questions"] + counted["texts"] >= 1
    counted.clear()

    for budget in (5, 40, 400, 40):
        again = open_desk(folder)
        assert again.index is desk.index
        assert again.pipeline is desk.pipeline
        assert again.reselect(run, budget)["bubble"]["budget"] == budget
    assert desk.answered(QUESTION, desk.pipeline)["answer"] == run["answer"]
    assert not counted


def test_another_pipeline_shares_the_models(folder: Path, counted: Counter[str]) -> None:
    desk = open_desk(folder)
    desk.ask(QUESTION)
    counted.clear()
    other = desk.pipeline_with(selector={"use": "top-k", "budget": 100})
    run = desk.answered(QUESTION, other)
    assert run["config"]["selector"] == {"use": "top-k", "budget": 100}
    assert other.embedder is desk.pipeline.embedder
    assert other.generator is desk.pipeline.generator
    assert not counted.keys() & {"embedder", "generator", "texts", "questions"}
    desk.answered(QUESTION, desk.pipeline_with(selector={"use": "top-k", "budget": 100}))
    assert len(desk.runs()) == 2  # the second answer came from the cache


def test_a_new_generation_opens_the_index_and_keeps_the_models(folder: Path) -> None:
    desk = open_desk(folder)
    desk.ask(QUESTION)
    (folder.parent / "docs" / "more.md").write_text("The zebra needs 42 stamps.", encoding="utf-8")
    Pipeline(desk.pipeline.config).index(folder.parent / "docs", into=folder).close()
    later = open_desk(folder)
    assert later.generation > desk.generation
    assert later.index is not desk.index
    assert later.pipeline.embedder is desk.pipeline.embedder
    assert "42 stamps" in later.ask("How many stamps does the zebra need?")["answer"]


def test_the_newest_run_is_picked_and_a_given_one_stays(folder: Path) -> None:
    assert open_desk(folder).run is None
    first = open_desk(folder).ask(QUESTION)
    second = open_desk(folder).ask("When do unused days expire?")
    desk = open_desk(folder)
    assert desk.run is not None
    assert desk.run["run_id"] == second["run_id"]
    picked = open_desk(folder, first).run
    assert picked is not None
    assert picked["run_id"] == first["run_id"]


def test_reselecting_is_what_asking_with_that_budget_gives(folder: Path) -> None:
    desk = open_desk(folder)
    run = desk.ask(QUESTION)
    spec = desk.pipeline.config.to_dict()["selector"]
    smaller = {**({"use": spec} if isinstance(spec, str) else spec), "budget": 25}
    asked = desk.ask(QUESTION, desk.pipeline_with(selector=smaller))
    made = desk.reselect(run, 25)
    assert made["bubble"]["decisions"] == asked["bubble"]["decisions"]
    assert made["context"]["digest"] == asked["context"]["digest"]
    assert made["bubble"]["decisions"] != run["bubble"]["decisions"]
    assert made["question"] == run["question"]


def test_a_run_whose_chunks_are_gone_is_refused(folder: Path) -> None:
    desk = open_desk(folder)
    run = desk.ask(QUESTION)
    gone = {**run, "run_id": "", "candidates": [{**run["candidates"][0], "chunk_id": "0" * 16 + ":0-5"}]}
    with pytest.raises(RagError, match="not in the index any more"):
        desk.reselect(gone, 100)
    with pytest.raises(RagError, match="without its candidates"):
        desk.reselect({key: value for key, value in run.items() if key != "candidates"} | {"run_id": "x"}, 100)


def test_a_selector_without_budget_says_so(folder: Path) -> None:
    desk: Desk = open_desk(folder)
    run = desk.ask(QUESTION)
    inner = {"use": "verified", "selector": {"use": "top-k", "budget": 300}}
    nested = {**run, "run_id": "n", "config": {**run["config"], "selector": inner}}
    assert desk.reselect(nested, 30)["bubble"]["budget"] == 30
    assert replace(desk, run=None).run is None


HOSTILE = '<script>x()</script> <img src=http://e.example/i.png> ![i](http://e.example) **b** "q" a\u202etxt.exe'


def test_text_is_escaped_and_what_reorders_it_is_seen() -> None:
    made = safe(HOSTILE)
    assert "<" not in made
    assert '"' not in made
    assert "\u202e" not in made
    assert "\\u202e" in made
    line = plain(HOSTILE)
    assert "\\!\\[i\\]\\(http" in line
    assert "\\*\\*b" in line
    assert "\u202e" not in line


def test_marks_cover_exactly_their_text_nested_or_not() -> None:
    import re

    text = "alpha <b>beta</b> gamma delta"
    made = marked_text(text, [Mark(6, 17, "keep", 'a "title"'), Mark(9, 13, "guard"), Mark(24, 40, "drop")], start=2)
    found = re.findall(r'<mark class="([^"]*)"[^>]*>(.*?)</mark>', made)
    assert found == [("cw-keep", "&lt;b&gt;"), ("cw-keep cw-guard", "beta"), ("cw-keep", "&lt;/b&gt;"),
                     ("cw-drop", "delta")]  # fmt: skip
    assert 'title="a &quot;title&quot;"' in made
    stripped = re.sub(r"<[^>]*>", "", made)
    assert stripped.replace("&lt;", "<").replace("&gt;", ">") == text[2:]


def test_an_unknown_kind_of_mark_is_no_class() -> None:
    assert 'class=""' in marked_text("abc", [Mark(0, 1, 'x" onmouseover="y')])


@pytest.mark.models
def test_the_bundled_model_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: Counter[str] = Counter()
    read = _files.read_files

    def reading(where: Path) -> Any:
        loads["files"] += 1
        return read(where)

    monkeypatch.setattr("rag.embedders.minilm.read_files", reading)
    config = PipelineConfig.from_dict({"version": 1, "embedder": "minilm"})
    Pipeline(config).index(folder.parent / "docs", into=folder.parent / "other").close()
    loads.clear()
    desk = open_desk(folder.parent / "other")
    run = desk.ask(QUESTION)
    desk.answered(QUESTION, desk.pipeline_with(selector="top-k"))
    desk.reselect(run, 50)
    open_desk(folder.parent / "other").ask("When do unused days expire?")
    assert loads["files"] == 1
