"""The laws of the contract, and more, on the compressors that read with a language model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError
from rag.spans.protected import survival
from rag.text import assemble
from rag.tokens import WordCounter
from rag.types import Bubble, Chunk, Document, Hit
from tests.contracts.test_compressor import bubble_of, check, with_parts
from tests.corpora import MemoryCorpus, plugins_of, topic_corpus
from tests.fakes import FakeGenerator, FakeModel

COUNTER = WordCounter()
EMBEDDER = HashingEmbedder(buckets=128)
WORDWISE = ("token-prune", "long-token-prune", "selective-context")
NAMES = (*WORDWISE, "comi", "scope", "chain")

FACTS = (
    "The Tacoma Narrows deck failed in 1940 because wind did not stop pushing it for 45 minutes that morning. "
    "Nobody was hurt, and the county paid $6.4 million after a hearing on 7 November 1940 in Olympia. "
    'The engineer said "I will never trust a narrow deck" to the paper, as the report of the Board of Inquiry has it. '
    "The tool `deck --width 39ft` prints 11.9 m and sends mail to bridge.desk@example.org every 12 hours without fail. "
    "A calm and long sentence follows here that holds no facts at all and so may lose any of its words to the pruner. "
    "Rivets shear at 310.5 MPa, while the plates bend at 250 MPa or less, said Prof. Leon Moisseiff of New York."
)


def make(name: str, **options: Any) -> Any:
    made = plugins_of("compressors")[name](embedder=EMBEDDER, counter=COUNTER, generator=FakeGenerator())
    return dataclasses.replace(made, **options)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryCorpus]:
    yield (made := topic_corpus(tmp_path_factory.mktemp("laws"), EMBEDDER))
    made.close()


def fact_bubble(directory: Path, texts: Sequence[str] = (FACTS,)) -> tuple[Bubble, MemoryCorpus]:
    documents = [Document(text=text, source=f"{at}.md") for at, text in enumerate(texts)]
    chunks = [Chunk.cut(one, 0, len(one.text), counter=COUNTER, chunker="whole") for one in documents]
    hits = tuple(Hit(chunk=c, score=1.0 / at, rank=at, retriever="test") for at, c in enumerate(chunks, start=1))
    tokens = COUNTER.count(assemble(texts))
    question = "Why did the narrow deck fail?"
    bubble = Bubble(question=question, hits=hits, token_count=tokens, budget=10_000, decisions=())
    return bubble, MemoryCorpus(directory, documents, chunks, embedder=EMBEDDER)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [range(0), range(1), range(3, 9), range(25)])
@pytest.mark.parametrize("parts", [False, True])
def test_pieces_are_exact(name: str, corpus: MemoryCorpus, rows: range, parts: bool) -> None:
    bubble = bubble_of(corpus, rows)
    bubble = with_parts(bubble) if parts else bubble
    compressor = make(name)
    check(compressor.compress(bubble, corpus), bubble, corpus, compressor)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", [1, 7, 30, 100, 250])
def test_the_target_is_kept(name: str, corpus: MemoryCorpus, target: int) -> None:
    bubble, compressor = bubble_of(corpus, range(20)), make(name, target=target)
    context = compressor.compress(bubble, corpus)
    assert context.token_count <= target
    check(context, bubble, corpus, compressor)
    assert compressor.compress(bubble, corpus) == context


@pytest.mark.parametrize("name", NAMES)
def test_enough_room_changes_nothing_and_reads_nothing(name: str, corpus: MemoryCorpus) -> None:
    model = FakeModel(lambda *_: 1.0)
    bubble = bubble_of(corpus, range(20))
    made = plugins_of("compressors")[name](
        embedder=EMBEDDER, counter=COUNTER, generator=FakeGenerator(name="x", model=model)
    )
    context = dataclasses.replace(made, target=bubble.token_count).compress(bubble, corpus)
    assert [piece.kept for piece in context.pieces] == [(hit.chunk.span,) for hit in bubble.hits]
    assert (context.keep_ratio, model.scored, model.prompts) == (1.0, [], [])


@pytest.mark.parametrize("name", WORDWISE)
@pytest.mark.parametrize("rate", [0.8, 0.5, 0.25])
def test_the_rate_is_kept_within_three_percent(name: str, corpus: MemoryCorpus, rate: float) -> None:
    options = {"unit": "token"} if name == "selective-context" else {}
    bubble = bubble_of(corpus, range(25))
    context = make(name, rate=rate, **options).compress(bubble, corpus)
    goal = int(bubble.token_count * rate)
    assert 0.97 * goal <= context.token_count <= goal


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rate", [0.15, 0.4, 0.7])
def test_protected_spans_survive_with_their_sentence(name: str, rate: float, tmp_path: Path) -> None:
    bubble, corpus = fact_bubble(tmp_path, (FACTS, FACTS[::-1].swapcase(), FACTS[300:]))
    options = {"target": int(bubble.token_count * rate)}
    context = make(name, **options).compress(bubble, corpus)
    told = survival(bubble, context, corpus)
    assert all(inside == kept <= total for inside, kept, total in told.values()), told
    assert min(total for _, _, total in told.values()) > 0, "every kind stands in the source"
    assert context.pieces or rate < 0.4
    corpus.close()


@pytest.mark.parametrize("name", NAMES)
def test_every_part_has_a_line_in_the_ledger(name: str, corpus: MemoryCorpus) -> None:
    bubble = bubble_of(corpus, range(25))
    context = make(name, target=bubble.token_count // 2).compress(bubble, corpus)
    told = {line.chunk_id for line in context.decisions}
    assert told == {hit.chunk.id for hit in bubble.hits}
    kept = {line.chunk_id for line in context.decisions if line.span and line.action in ("keep", "part")}
    assert {piece.chunk_id for piece in context.pieces} <= kept
    assert all(line.reason for line in context.decisions)


@pytest.mark.parametrize("name", WORDWISE)
def test_a_model_that_does_not_tell_is_refused(name: str, corpus: MemoryCorpus) -> None:
    bubble = bubble_of(corpus, range(9))
    silent = FakeGenerator(model=FakeModel(nats=None))
    for generator in (None, silent):
        with pytest.raises(ConfigError, match=f"{name}.*generator to local"):
            make(name, generator=generator).compress(bubble, corpus)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{"target": 0}, {"rate": 0.0}, {"rate": 1.1}])
def test_sizes_out_of_range_are_refused(name: str, options: dict[str, Any]) -> None:
    if name == "chain" and "rate" in options:
        pytest.skip("a chain has the rates of its parts")
    with pytest.raises(ConfigError, match=name):
        make(name, **options)


def test_a_chain_runs_its_parts_on_what_is_left(corpus: MemoryCorpus) -> None:
    bubble = bubble_of(corpus, range(25))
    first, second = make("selective-context", rate=0.5), make("token-prune", rate=0.5)
    one = first.compress(bubble, corpus)
    context = make("chain", parts=(first, second)).compress(bubble, corpus)
    assert context.source_token_count == bubble.token_count
    assert 0.9 * one.token_count / 2 <= context.token_count <= one.token_count / 2
    allowed = {piece.chunk_id: piece.kept for piece in one.pieces}
    for piece in context.pieces:
        assert all(any(span.contains(kept) for span in allowed[piece.chunk_id]) for kept in piece.kept)
    names = [line.reason.partition(":")[0] for line in context.decisions]
    assert names == sorted(names), "selective-context, then token-prune"
    assert set(names) == {"selective-context", "token-prune"}


def test_a_chain_goes_to_its_target_in_equal_steps(corpus: MemoryCorpus) -> None:
    bubble = bubble_of(corpus, range(25))
    target = bubble.token_count // 4
    chain = make("chain", parts=(make("selective-context"), make("none"), make("token-prune")), target=target)
    context = chain.compress(bubble, corpus)
    assert 0.9 * target <= context.token_count <= target
    halfway = sum(line.tokens for line in context.decisions if line.action == "keep" and "selective" in line.reason)
    assert halfway == pytest.approx(bubble.token_count / 2, rel=0.1)


@pytest.mark.parametrize("parts", [(), "token-prune", ("token-prune",)])
def test_a_chain_of_no_compressors_is_refused(parts: Any) -> None:
    with pytest.raises(ConfigError, match="chain: parts"):
        make("chain", parts=parts)
