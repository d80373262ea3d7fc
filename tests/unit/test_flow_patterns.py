"""The patterns of Modular RAG (arXiv 2407.21059) as shipped flows, run on sample documents with a made-up model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from rag.answer import Answer, Generation, GenerationStats
from rag.builder import PipelineBuilder
from rag.embedders.hashing import HashingEmbedder
from rag.flow import (
    Abstain,
    Asked,
    Budget,
    Compress,
    Expand,
    Flow,
    Generate,
    Grade,
    Retrieve,
    Route,
    Select,
    Topic,
    Tree,
)
from rag.flow.judges import doubts
from rag.flow.merges import ensemble, fused
from rag.flow.relevance import probability
from rag.flow.state import Run, State
from rag.generators._sentences import documents_of
from rag.generators.extractive import ExtractiveGenerator
from rag.index import Index
from rag.pipeline import Pipeline
from rag.prompt import NOT_FOUND, build_prompt
from rag.protocols import Corpus, TextModel, TokenLoss
from rag.sample import documents_dir
from rag.types import CompressedContext
from tests.fakes import FakeGenerator, FakeModel

DOCUMENTS = ("employee-handbook.md", "approval-limits-amendment-1.md", "glossary.md", "manual-fs-flow-sensors.md")
QUESTION = "Who approves travel above 5,000 EUR?"
DOUBLE = "On how many days may employees work from home and who approves travel above 5,000 EUR?"
UNKNOWN = "What is the capital of Mongolia?"


@dataclass(frozen=True, kw_only=True)
class Writer(FakeGenerator):
    """Quotes as the generator extractive does, behind a real prompt, and has a made-up language model."""

    def generate(self, context: CompressedContext, corpus: Corpus, on_text: Any = None) -> Generation:
        made = ExtractiveGenerator(embedder=HashingEmbedder()).generate(context, corpus)
        prompt = build_prompt(context, documents_of(context, corpus))
        return replace(made, prompt=prompt, stats=GenerationStats(prompt_tokens=100, new_tokens=10))


def pipeline(model: FakeModel | None = None) -> Pipeline:
    builder = PipelineBuilder().embedder("hashing").retriever("bm25").selector("top-k", budget=300)
    line = builder.compressor("none").generator("extractive").build()
    if model is not None:
        line.generator = Writer(model=model)
    return line


def surprised_by(*words: str) -> Callable[[str, str], float]:
    """Losses of 3 nats for tokens that begin one of the words, of 0.05 for all others."""
    return lambda token, before: 3.0 if token.strip() and any(w.startswith(token.strip()) for w in words) else 0.05


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    files = [documents_dir() / name for name in DOCUMENTS]
    with pipeline().index(files, tmp_path_factory.mktemp("sample")) as opened:
        yield opened


def run(name: str, question: str, index: Index, model: FakeModel | None = None) -> Answer:
    return Flow.load(name).run(pipeline(model), question, index)


def notes(answer: Answer, stage: str) -> list[dict[str, Any]]:
    """The notes of every line of the trace whose node is `stage`, in order."""
    return [dict(one.notes) for one in answer.trace if one.stage.rsplit("/", 1)[-1] == stage]


def queries(answer: Answer) -> list[str]:
    return [one["query"] for one in notes(answer, "retrieve")]


# ---------------------------------------------------------------- linear


def test_naive(index: Index) -> None:
    answer = run("naive", QUESTION, index)
    assert "Tobias Renn" in answer.text
    assert answer.text == pipeline().ask(QUESTION, index).text
    assert [one.stage for one in answer.trace] == ["retrieve", "select", "compress", "generate"]


def test_rewrite_retrieve_read_with_and_without_a_model(index: Index) -> None:
    written = run("rewrite-retrieve-read", QUESTION, index, FakeModel(None, "Chief Financial Officer travel\nmore"))
    assert queries(written) == ["Chief Financial Officer travel"]
    ruled = run("rewrite-retrieve-read", QUESTION, index)
    assert queries(ruled) == ["approves travel above 5 000 eur"]
    assert ruled.trace[0].notes["then"] == "fallback"
    assert "Tobias Renn" in written.text
    assert "Tobias Renn" in ruled.text


# ---------------------------------------------------------------- conditional


def test_conditional_takes_another_way_for_each_kind_of_question(index: Index) -> None:
    greeting = run("conditional", "Hello, good morning, thanks!", index)
    assert (greeting.text, queries(greeting)) == (NOT_FOUND, [])
    one = run("conditional", QUESTION, index)
    assert queries(one) == [QUESTION]
    two = run("conditional", DOUBLE, index)
    assert queries(two)[0] == DOUBLE
    assert len(queries(two)) == 3
    assert "Tobias Renn" in one.text


@pytest.mark.parametrize(("said", "searches"), [("YES, do", 1), ("no.", 0), ("certainly", 1)])
def test_retrieve_or_not_as_the_model_says(index: Index, said: str, searches: int) -> None:
    judge = Asked(prompt="Must one look this up? {question}", choices=("yes", "no"), default="yes")
    nodes = (Retrieve(), Select(), Compress(), Generate())
    flow = Flow(name="ask", nodes=(Route(by=judge, cases={"no": (Abstain(),)}, otherwise=nodes),))
    model = FakeModel(None, said)
    assert len(queries(flow.run(pipeline(model), QUESTION, index))) == searches
    assert model.prompts == [f"Must one look this up? {QUESTION}"]


# ---------------------------------------------------------------- branching


def test_multi_query_fuses_the_hits_of_all_variants(index: Index) -> None:
    answer = run("multi-query", DOUBLE, index)
    asked = queries(answer)
    assert asked[0] == DOUBLE
    assert "who approves travel above 5,000 EUR?" in asked
    assert len(asked) == len(set(asked)) >= 3
    [merged] = notes(answer, "branch")
    assert merged["branches"] == len(asked)
    assert all(hit.retriever == "rrf" for hit in answer.bubble.hits)


def test_the_parts_of_a_question_are_not_asked_to_agree(index: Index) -> None:
    """Hits that two later lists name at rank 2 beat hits at rank 1 of one of them by a sum, and not by the best."""
    at = Run(pipeline(), index, Budget())
    a, b, c, d = pipeline().search("the travel limit", index, k=4)
    lists = [[replace(hit, rank=rank) for rank, hit in enumerate(hits, start=1)] for hits in ([d], [a, c], [b, c])]
    by_sum = [hit.chunk.id for hit in fused(lists, [1.0] * 3, at)]
    by_best = [hit.chunk.id for hit in fused(lists, [1.0] * 3, at, best=True)]
    assert by_sum[0] == c.chunk.id
    assert c.chunk.id not in by_best
    assert by_best[0] in (a.chunk.id, b.chunk.id, d.chunk.id)


@pytest.mark.parametrize("semantic", [0.0, 0.5, 1.0])
def test_a_topic_is_found_by_words_and_by_meaning(index: Index, semantic: float) -> None:
    routes = {"travel": ("travel", "trip", "hotel"), "sensors": ("flow", "sensor", "calibration")}
    judge = Topic(routes=routes, semantic=semantic)
    at = Run(pipeline(), index, Budget())
    for name, question in (("travel", "Who approves travel and a hotel?"), ("sensors", "Which flow sensor?")):
        verdict = judge.judge(State(question=question, query=question), at)
        assert verdict.label == name
        assert round(verdict.score, 4) == max(verdict.notes.values())
    if not semantic:
        assert judge.judge(State(question="Zeppelin?", query=""), at).label == "other"


def test_replug_votes_where_the_model_tells_nothing(index: Index) -> None:
    for model in (None, FakeModel(None)):
        answer = run("replug", QUESTION, index, model)
        [merged] = notes(answer, "branch")
        assert merged["how"] == "vote"
        assert "Tobias Renn" in answer.text
        assert len(answer.bubble.hits) == 1


def test_replug_takes_the_answer_that_the_mixture_finds_likely(index: Index) -> None:
    likely = run("replug", QUESTION, index, FakeModel(surprised_by()))
    [plain] = notes(likely, "branch")
    assert plain["how"] == "mixture of token probabilities"
    unlikely = run("replug", QUESTION, index, FakeModel(surprised_by("Tobias", "Renn", "Financial", "Chief")))
    assert "Tobias Renn" not in unlikely.text
    assert unlikely.citations


def test_the_mixture_is_the_sum_of_weighted_token_probabilities(index: Index) -> None:
    """Two branches with equal weights: token probabilities .8 and .2 behind one prompt, .4 and .6 behind the other."""

    @dataclass(frozen=True)
    class Told(TextModel):
        asked: list[str] = field(default_factory=list)

        def complete(self, prompt: str, *, max_tokens: int, stop: Sequence[str] = ()) -> str:
            return ""

        def losses(self, text: str, *, after: str = "") -> list[TokenLoss]:
            self.asked.append(after)
            first = after == self.asked[0]
            return [(0, 1, -math.log(0.8 if first else 0.4)), (1, 2, -math.log(0.2 if first else 0.6))]

    line = pipeline()
    line.generator = Writer(model=Told())  # type: ignore[arg-type]
    at = Run(line, index, Budget())
    hits = line.search(QUESTION, index, k=2)
    ends = []
    for hit in (hits[0], replace(hits[1], score=hits[0].score)):
        bubble = line.selector.select(QUESTION, [hit], index.corpus)
        context = line.compressor.compress(bubble, index.corpus)
        made = line.generator.generate(context, index.corpus)
        ends.append(State(question=QUESTION, query=QUESTION, hits=(hit,), context=context, generation=made))
    assert all(end.generation and end.generation.citations for end in ends)
    _, told = ensemble(ends[0], ends, at)
    expected = (math.log(0.5 * 0.8 + 0.5 * 0.4) + math.log(0.5 * 0.2 + 0.5 * 0.6)) / 2
    assert told["values"] == [round(expected, 4)] * 2
    assert told["winner"] == 1
    assert at.tokens > 0


# ---------------------------------------------------------------- loops


def test_iter_retgen_asks_with_its_answer_and_ends_when_it_settles(index: Index) -> None:
    answer = run("iter-retgen", QUESTION, index)
    first, second = queries(answer)
    assert first == QUESTION
    assert second.startswith(QUESTION)
    assert "Tobias Renn" in second
    assert "[1]" not in second
    assert answer.trace[-1].notes == {"rounds": 2, "ended": "accepted: yes"}


def test_the_recursive_tree_reaches_a_second_hop(tmp_path: Path) -> None:
    """The second document shares no word with the question but the name that the first one brings up."""
    (tmp_path / "ship.md").write_text("The lighthouse ship of the northern bay was built by Ingrid Solvang.")
    (tmp_path / "person.md").write_text("In the year of the flood, Ingrid Solvang moved to Bergen.")
    for at in range(12):
        (tmp_path / f"other{at}.md").write_text(f"The shipyard number {at} repairs boats for the southern harbour.")
    with pipeline().index(tmp_path, tmp_path / "index") as opened:
        question = "Where did the builder of the lighthouse ship go?"
        plain, tree = run("naive", question, opened), run("recursive", question, opened)
    assert not any("Bergen" in text for text in plain.bubble.texts)
    assert any("Bergen" in text for text in tree.bubble.texts)
    assert any(query.startswith("Ingrid Solvang ") for query in queries(tree))
    [told] = notes(tree, "tree")
    assert len(told["queries"]) == len(set(told["queries"])) <= 6


def test_the_tree_ends_where_every_hit_names_somebody_new(tmp_path: Path) -> None:
    for at in range(40):
        text = f"The keeper of tower {at} is Anna Number{at}x, who knows Berta Number{at + 1}x of the tower."
        (tmp_path / f"{at}.md").write_text(text)
    with pipeline().index(tmp_path, tmp_path / "index") as opened:
        nodes = (Tree(do=(Retrieve(k=10),), max_depth=30, max_queries=9, children=3), Select(), Compress(), Generate())
        answer = Flow(name="deep", nodes=nodes).run(pipeline(), "Who is keeper of the tower?", opened)
        bounded = Flow(name="deep", nodes=nodes, budget=Budget(rounds=4)).run(pipeline(), "Who is keeper?", opened)
    [told] = notes(answer, "tree")
    assert len(told["queries"]) == 9
    assert told["left"] > 0
    [told] = notes(bounded, "tree")
    assert (len(told["queries"]), told["budget"]) == (4, "rounds: 4 of 4")


# ---------------------------------------------------------------- corrective


def test_crag_refines_what_is_to_the_point(index: Index) -> None:
    answer = run("crag", QUESTION, index)
    assert "Tobias Renn" in answer.text
    assert queries(answer) == [QUESTION]
    assert {one["label"] for one in notes(answer, "route.by")} == {"correct"}
    assert any(len(spans) > 1 or spans != (hit.chunk.span,) for hit, spans in
               zip(answer.bubble.hits, answer.bubble.spans, strict=True))  # fmt: skip


def test_crag_rewrites_twice_and_abstains(index: Index) -> None:
    answer = run("crag", UNKNOWN, index)
    assert answer.text == NOT_FOUND
    assert not answer.citations
    assert not answer.context.pieces
    assert queries(answer)[:2] == [UNKNOWN, "capital mongolia"]
    assert len(queries(answer)) == 3
    assert answer.trace[-2].stage == "route[incorrect]/abstain"


def test_crag_searches_again_beside_the_first_hits_when_it_is_not_sure(index: Index) -> None:
    flow = Flow.load("crag")
    told = flow.to_dict()
    for node in (told["nodes"][1], told["nodes"][1]["do"][0]):
        key = "until" if "until" in node else "by"
        node[key] = {"use": "grade", "high": 1.0, "low": 0.01}
    answer = Flow.from_dict(told).run(pipeline(), QUESTION, index)
    assert len(queries(answer)) == 3
    assert queries(answer)[2].startswith(queries(answer)[1] + " ")  # words of the hits were added
    assert "Tobias Renn" in answer.text


def test_probabilities_rise_with_support() -> None:
    values = [probability(at / 10) for at in range(-2, 13)]
    assert values == sorted(values)
    assert 0.0 < values[0] < values[-1] < 1.0
    assert Grade().low < probability(0.5) < 1.0


# ---------------------------------------------------------------- adaptive


def test_flare_searches_again_without_the_words_that_it_doubts(index: Index) -> None:
    sure = run("flare", QUESTION, index, FakeModel(surprised_by()))
    assert len(queries(sure)) == 1
    unsure = run("flare", QUESTION, index, FakeModel(surprised_by("Financial")))
    assert len(queries(unsure)) == 3  # the draft, and two rounds that stay in doubt
    assert "Financial" not in queries(unsure)[1]
    assert "Officer" in queries(unsure)[1]
    assert notes(unsure, "loop")[-1] == {"rounds": 2, "ended": "max_rounds"}
    assert "Tobias Renn" in unsure.text


def test_doubt_in_stop_words_numbers_and_punctuation_does_not_count(index: Index) -> None:
    line = pipeline(FakeModel(lambda token, before: 0.0 if token.strip().isalpha() else 9.0))
    at = Run(line, index, Budget())
    made = Generation(text="The limit is 5,000 EUR: no more [1].")
    assert doubts(made, 0.5, at)[0] == []
    line.generator = Writer(model=FakeModel(lambda token, before: 9.0))
    assert doubts(made, 0.5, at)[0] == ["limit", "EUR", "more"]
    assert doubts(made, 0.0, at)[0] == []


def test_flare_without_probabilities_asks_again_when_nothing_is_supported(index: Index) -> None:
    assert len(queries(run("flare", QUESTION, index))) == 1
    assert len(queries(run("flare", UNKNOWN, index))) == 3


def test_expand_takes_any_retriever_that_tells_variants(index: Index) -> None:
    flow = Flow(name="x", nodes=(Expand(by={"use": "multi-query", "rules": ["keywords"]}), Abstain()))
    assert flow.run(pipeline(), QUESTION, index).trace[0].notes["queries"] == [
        QUESTION,
        "approves travel above 5,000 EUR",
    ]
    with pytest.raises(Exception, match="tells no variants"):
        Flow(name="x", nodes=(Expand(by="bm25"), Abstain())).run(pipeline(), QUESTION, index)
