"""Flows themselves: serialisation, the static check, budgets, failure policy, determinism."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rag.builder import PipelineBuilder
from rag.errors import ConfigError, RagError, UsageError
from rag.flow import (
    Abstain,
    Answered,
    Branch,
    Budget,
    Compress,
    Confident,
    Expand,
    Flow,
    Generate,
    Grade,
    Loop,
    Narrow,
    Node,
    Refine,
    Retrieve,
    Rewrite,
    Route,
    Select,
    Settled,
    Topic,
    Tree,
    shipped_flows,
)
from rag.flow.filters import extract_filter
from rag.flow.spec import JUDGES, NODES
from rag.index import Index
from rag.pipeline import Pipeline
from rag.protocols import Searcher
from rag.text import assemble
from tests.corpora import MemoryCorpus, topic_corpus, topic_documents

LINE: tuple[Node, ...] = (Retrieve(), Select(), Compress(), Generate())
QUESTION = "Who must approve a trip above 5,000 EUR?"


def pipeline() -> Pipeline:
    builder = PipelineBuilder().embedder("hashing").retriever("bm25").selector("top-k", budget=60)
    return builder.chunker("recursive", max_tokens=40).compressor("none").generator("extractive").build()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    folder = tmp_path_factory.mktemp("topics")
    for document in topic_documents():
        (folder / document.source).write_text(document.text, encoding="utf-8")
    with pipeline().index(folder, folder / "index") as opened:
        yield opened


def stages(answer: Any) -> list[str]:
    return [one.stage for one in answer.trace]


def shape(answer: Any) -> Any:
    """All of an answer but its seconds and its id."""
    told = answer.to_dict()
    del told["run_id"], told["stats"]
    for one in told["trace"]:
        del one["seconds"]
    return told


def never(rounds: int = 3, **options: Any) -> Loop:
    """A loop whose judge accepts nothing: no draft of the extractive generator repeats what was never said."""
    do = (Rewrite(), Retrieve(), Select(), Compress(), Abstain())
    return Loop(do=do, until=Answered(), accept=("yes",), max_rounds=rounds, **options)


# ---------------------------------------------------------------- serialisation


EVERYTHING = Flow(
    name="everything",
    summary="one of each",
    budget=Budget(rounds=5, tokens=1000, seconds=2.5),
    nodes=(
        Narrow(on_error="skip"),
        Expand(by={"use": "multi-query", "max_variants": 2}, parts=True),
        Branch(over="queries", do=(Retrieve(k=5),), limit=3),
        Tree(do=(Retrieve(),), max_depth=1, max_queries=3),
        Route(
            by=Topic(routes={"travel": ("trip", "hotel"), "bees": ("hive",)}, least=0.2),
            cases={"travel": (Retrieve(retriever={"use": "prf", "retriever": "bm25"}, join="union"),)},
            otherwise=(Rewrite(by="model", on_error="fallback", fallback=(Rewrite(),)),),
        ),
        Loop(
            do=(Refine(strips=3), Compress(), Generate()), until=Settled(), accept=("yes",), max_rounds=2, keep="best"
        ),
        Branch(over="hits", do=LINE[1:], merge="ensemble", limit=2),
    ),
)


def test_a_flow_comes_back_from_its_yaml() -> None:
    assert Flow.from_dict(yaml.safe_load(EVERYTHING.to_yaml())) == EVERYTHING
    plain = Flow(name="plain", nodes=LINE)
    assert plain.to_dict() == {"flow": "plain", "nodes": ["retrieve", "select", "compress", "generate"]}


@pytest.mark.parametrize("name", list(shipped_flows()))
def test_shipped_flows_load_and_come_back(name: str) -> None:
    flow = Flow.load(name)
    assert flow.name == name
    assert flow.summary
    assert Flow.from_dict(yaml.safe_load(flow.to_yaml())) == flow


def test_every_node_and_judge_is_known_by_its_name() -> None:
    for known in (NODES, JUDGES):
        for name, kind in known.items():
            assert kind.use == name
            assert dataclasses.is_dataclass(kind)
            assert kind.__doc__
            assert not kind.__doc__.startswith(kind.__name__ + "(")


# ---------------------------------------------------------------- the check before a run


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        (["retreive"], "did you mean 'retrieve'"),
        ([{"use": "retrieve", "kk": 3}], "has no 'kk'"),
        ([{"use": "retrieve", "k": "many"}], r"nodes\[0\]\.k"),
        ([{"use": "retrieve", "k": True}], r"nodes\[0\]\.k"),
        ([{"use": "retrieve", "retriever": "bm52"}], "bm25"),
        (["select", "generate"], "select reads hits"),
        (["retrieve", "select"], "no way through it is sure to end in an answer"),
        ([{"use": "loop", "do": ["abstain"], "until": "answered", "accept": ["yes"]}], "max_rounds .a loop without it"),
        (
            [{"use": "loop", "do": ["abstain"], "until": "answered", "accept": ["yes"], "max_rounds": 21}],
            "between 1 and",
        ),
        ([{"use": "loop", "do": ["abstain"], "until": "answered", "accept": ["ok"], "max_rounds": 2}], "yes, no"),
        (
            [{"use": "loop", "do": ["abstain"], "until": "grade", "accept": ["correct"], "max_rounds": 2}],
            "grade reads hits",
        ),
        ([{"use": "route", "by": "answred"}], "did you mean 'answered'"),
        ([{"use": "route"}], "route needs by"),
        (["retrieve", {"use": "route", "by": "grade", "cases": {"good": ["abstain"]}}], "never says 'good'"),
        (["retrieve", {"use": "route", "by": "grade", "cases": {"correct": ["abstain"]}}], "no way through"),
        ([{"use": "branch", "over": "queries", "do": ["retrieve"]}], "branch reads queries"),
        (["retrieve", {"use": "branch", "over": "hits", "do": ["select"], "merge": "ensemble"}], "reads generation"),
        ([{"use": "tree", "do": ["narrow"]}], "tree reads hits"),
        ([{"use": "abstain", "on_error": "fallback"}], "belong together"),
        ([{"use": "generate", "on_error": "skip"}, "abstain"], "generate reads context"),
        ([{"k": 3}], "a mapping with 'use'"),
        ("retrieve", "a list of nodes"),
    ],
)
def test_what_cannot_run_is_said_before_the_run(nodes: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Flow.from_dict({"flow": "wrong", "nodes": nodes})


def test_a_skipped_node_fills_no_port() -> None:
    with pytest.raises(ConfigError, match="select reads hits"):
        Flow(name="wrong", nodes=(Retrieve(on_error="skip"), *LINE[1:]))


def test_loops_in_loops_are_counted_before_the_run() -> None:
    inner = never(20)
    outer = Loop(do=(inner,), until=Answered(), accept=("yes",), max_rounds=20)
    with pytest.raises(ConfigError, match=r"budget\.steps allows 500"):
        Flow(name="deep", nodes=(outer,))
    assert Flow(name="deep", nodes=(outer,), budget=Budget(steps=5000))


@pytest.mark.parametrize("values", [{"flow": "x"}, {"nodes": ["abstain"]}, {"flow": "x", "nodes": [], "node": []}])
def test_what_is_no_flow(values: Any) -> None:
    with pytest.raises(ConfigError):
        Flow.from_dict(values)


def test_budgets_have_ranges(tmp_path: Path) -> None:
    for wrong in ({"rounds": 0}, {"tokens": -1}, {"laps": 3}, {"rounds": True}, {"seconds": "long"}):
        with pytest.raises(ConfigError, match="budget"):
            Flow.from_dict({"flow": "x", "nodes": ["abstain"], "budget": wrong})
    with pytest.raises(ConfigError, match="no shipped flow"):
        Flow.load("nowhere")
    (tmp_path / "broken.yaml").write_text("flow: [", encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid YAML"):
        Flow.load(tmp_path / "broken.yaml")


# ---------------------------------------------------------------- runs


def test_a_line_answers_as_ask_does(index: Index) -> None:
    ours, plain = Flow(name="line", nodes=LINE).run(pipeline(), QUESTION, index), pipeline().ask(QUESTION, index)
    assert ours.citations
    assert (ours.text, ours.citations, ours.bubble, ours.context) == (
        plain.text, plain.citations, plain.bubble, plain.context,
    )  # fmt: skip
    assert [one.plugin for one in ours.trace] == [one.plugin for one in plain.trace]


def test_a_run_is_kept_with_its_flow(index: Index) -> None:
    flow = Flow(name="line", nodes=LINE)
    kept = index.store.run(flow.run(pipeline(), QUESTION, index).run_id)
    assert kept["flow"] == flow.to_dict()
    assert [one["stage"] for one in kept["trace"]] == ["retrieve", "select", "compress", "generate"]


@pytest.mark.parametrize("name", list(shipped_flows()))
def test_the_same_run_twice(index: Index, name: str) -> None:
    flow = Flow.load(name)
    assert shape(flow.run(pipeline(), QUESTION, index)) == shape(flow.run(pipeline(), QUESTION, index))


def test_an_empty_question_is_refused(index: Index) -> None:
    with pytest.raises(UsageError, match="empty"):
        Flow(name="line", nodes=LINE).run(pipeline(), "  ", index)


@pytest.mark.parametrize("name", list(shipped_flows()))
def test_nothing_to_find_ends_in_an_abstention(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("Sourdough rises with wild yeast.", encoding="utf-8")
    with pipeline().index(tmp_path, tmp_path / "index") as opened:
        answer = Flow.load(name).run(pipeline(), "xyzzy plugh?", opened)
    assert answer.text == "Not found in the documents."
    assert not answer.citations


def test_a_judge_that_never_accepts_ends_within_max_rounds(index: Index) -> None:
    answer = Flow(name="never", nodes=(never(4),)).run(pipeline(), QUESTION, index)
    assert answer.trace[-1].notes == {"rounds": 4, "ended": "max_rounds"}
    assert stages(answer).count("loop#4/retrieve") == 1
    assert not any(stage.startswith("loop#5") for stage in stages(answer))


def test_rounds_are_a_budget_of_all_loops_together(index: Index) -> None:
    flow = Flow(name="never", nodes=(never(4), never(4)), budget=Budget(rounds=6))
    answer = flow.run(pipeline(), QUESTION, index)
    ends = [one.notes for one in answer.trace if one.stage == "loop"]
    assert ends == [{"rounds": 4, "ended": "max_rounds"}, {"rounds": 2, "ended": "budget rounds: 6 of 6"}]


def test_the_clock_ends_a_loop_and_the_nodes_after_it_run(index: Index) -> None:
    ticks = itertools.count()
    flow = Flow(name="slow", nodes=(never(20), *LINE), budget=Budget(seconds=30.0))
    answer = flow.run(pipeline(), QUESTION, index, clock=lambda: float(next(ticks)))
    [loop] = [one for one in answer.trace if one.stage == "loop"]
    assert loop.notes["ended"] == "budget seconds: 30 are over"
    assert 1 <= loop.notes["rounds"] < 20
    assert answer.citations


def test_tokens_end_a_loop_and_a_branch(index: Index) -> None:
    loop = Loop(do=LINE, until=Confident(least=1.0), accept=("no",), max_rounds=20)
    answer = Flow(name="dear", nodes=(loop,), budget=Budget(tokens=1)).run(pipeline(), QUESTION, index)
    assert answer.trace[-1].notes["ended"] == "budget tokens: " + answer.trace[-1].notes["ended"].split(": ")[1]
    assert answer.trace[-1].notes["rounds"] == 1
    nodes = (Retrieve(), Branch(over="hits", do=LINE[1:], merge="ensemble", limit=5))
    answer = Flow(name="dear", nodes=nodes, budget=Budget(tokens=1)).run(pipeline(), QUESTION, index)
    assert answer.trace[-1].notes["branches"] == 1
    assert answer.citations


def test_best_of_a_loop_is_kept(index: Index) -> None:
    """The second round asks for words that the hits lack, finds nothing and is judged worse than the first."""
    ask = "Which queen of the bees lays eggs in Zanzibar?"
    do = (Retrieve(), Rewrite(by="uncovered"))
    for keep, empty in (("best", False), ("last", True)):
        loop = Loop(do=do, until=Grade(high=1.0), accept=("correct",), max_rounds=2, keep=keep)  # type: ignore[arg-type]
        answer = Flow(name=keep, nodes=(loop, *LINE[1:])).run(pipeline(), ask, index)
        assert (not answer.bubble.hits) == empty, keep


class _Broken:
    """A retriever that fails, as one does whose service is away."""

    k = 5
    uses_vectors = False

    def open(self, corpus: Any) -> Searcher:
        raise RagError("the search service is away")


def broken() -> Pipeline:
    line = pipeline()
    line.retriever = _Broken()  # type: ignore[assignment]
    return line


def test_failures_abort_fall_back_or_are_skipped(index: Index) -> None:
    with pytest.raises(RagError, match="away"):
        Flow(name="abort", nodes=LINE).run(broken(), QUESTION, index)
    other = Retrieve(retriever="bm25")
    flow = Flow(name="fallback", nodes=(Retrieve(on_error="fallback", fallback=(other,)), *LINE[1:]))
    answer = flow.run(broken(), QUESTION, index)
    assert answer.citations
    assert answer.trace[0].stage == "retrieve/fallback/retrieve" or answer.trace[0].notes["failed"]
    assert {"failed": "the search service is away", "then": "fallback"} in [dict(one.notes) for one in answer.trace]
    flow = Flow(name="skip", nodes=(other, Retrieve(on_error="skip", join="union"), *LINE[1:]))
    answer = flow.run(broken(), QUESTION, index)
    assert answer.trace[1].notes == {"failed": "the search service is away", "then": "skip"}
    assert answer.citations


def test_a_bug_is_not_a_failure_to_skip(index: Index) -> None:
    line = pipeline()
    line.retriever = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        Flow(name="bug", nodes=(Retrieve(on_error="skip"), Abstain())).run(line, QUESTION, index)


@pytest.mark.parametrize("budget", [1, 5, 20, 60, 400])
def test_refine_keeps_its_budget_and_parts_of_chunks(index: Index, budget: int) -> None:
    nodes = (Retrieve(), Refine(budget=budget, least=0.0), Compress(), Generate())
    answer = Flow(name="refine", nodes=nodes).run(pipeline(), QUESTION, index)
    bubble = answer.bubble
    assert bubble.token_count == pipeline().generator.counter.count(assemble(bubble.texts)) <= budget
    for hit, spans in zip(bubble.hits, bubble.spans, strict=True):
        assert all(hit.chunk.span.contains(span) for span in spans)
    taken = [(one.chunk_id, one.span) for one in bubble.decisions if one.action == "take"]
    assert sorted(taken, key=str) == sorted(
        [(hit.chunk.id, span) for hit, spans in zip(bubble.hits, bubble.spans, strict=True) for span in spans], key=str
    )


# ---------------------------------------------------------------- metadata filters


def corpus_with_years(folder: Path) -> MemoryCorpus:
    documents = [
        dataclasses.replace(document, source=name, meta={"year": year})
        for document, name, year in zip(
            topic_documents(),
            ("bee-keeping-handbook.md", "bridge-report.md", "bread-report.md", "travel-policy.pdf", "volcano.md"),
            (2019, 2020, 2023, 2023, 2024),
            strict=True,
        )
    ]
    return topic_corpus(folder, None, documents)


@pytest.mark.parametrize(
    ("question", "where"),
    [
        ("What did the bakers write in 2023?", {"meta.year": {"eq": 2023}}),
        ("What changed since 2023?", {"meta.year": {"ge": 2023}}),
        ("What changed after 2023?", {"meta.year": {"gt": 2023}}),
        ("What was known before 2020?", {"meta.year": {"lt": 2020}}),
        ("What happened in 1940?", None),
        ("Are 2023 bees enough?", None),
        ("What does travel-policy.pdf say?", {"source": {"eq": "travel-policy.pdf"}}),
        ("What does unknown.pdf say?", None),
        ("According to the bee keeping handbook, who lays eggs?", {"source": {"contains": "bee-keeping-handbook"}}),
        ("According to the report, what failed?", None),
        ("How do bees live?", None),
        ("", None),
        (
            "According to the bridge report, what failed in 2020?",
            {"and": [{"meta.year": {"eq": 2020}}, {"source": {"contains": "bridge-report"}}]},
        ),
        ("According to the bridge report, what failed in 2023?", None),
    ],
)
def test_a_filter_is_taken_from_what_the_corpus_has(question: str, where: Any, tmp_path: Path) -> None:
    corpus = corpus_with_years(tmp_path)
    found, notes = extract_filter(question, corpus)
    assert found == where
    assert (found is None) or (notes["chunks"] == len(corpus.rows(found)) > 0)


def test_no_filter_without_chunks(tmp_path: Path) -> None:
    assert extract_filter("What changed in 2023?", MemoryCorpus(tmp_path)) == (None, {})


def test_narrow_never_lifts_the_callers_filter(index: Index) -> None:
    flow = Flow(name="narrow", nodes=(Narrow(), *LINE))
    question = "According to bees.md, how long is a hotel night?"
    for where in ({"source": {"contains": "travel"}}, {"source": {"contains": "bees"}}):
        answer = flow.run(pipeline(), question, index, where=where)
        sources = {index.corpus.source(hit.chunk.doc_id) for hit in answer.bubble.hits}
        assert all(where["source"]["contains"] in source for source in sources)
        assert answer.trace[0].stage == "narrow"
        assert answer.trace[0].notes


# ---------------------------------------------------------------- the command


def test_ask_along_a_flow_shows_its_nodes(index: Index, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from rag.cli.main import app

    def ask(*given: str) -> Any:
        return CliRunner().invoke(app, ["ask", QUESTION, "--index", str(index.directory), *given])

    told = json.loads(ask("--flow", "iter-retgen", "--json").stdout)
    assert [one["stage"] for one in told["trace"]][-1] == "loop"
    assert told["citations"]
    (tmp_path / "mine.yaml").write_text("flow: mine\nnodes: [abstain]\n", encoding="utf-8")
    shown = ask("--flow", str(tmp_path / "mine.yaml"), "--trace")
    assert shown.stdout.startswith("Not found in the documents.")
    assert "abstain" in shown.output
    wrong = ask("--flow", "nowhere")
    assert wrong.exit_code != 0
    assert "no shipped flow" in wrong.output + str(wrong.exception)
