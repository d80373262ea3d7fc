"""Checking a language model's answer: marks, words, numbers."""

from __future__ import annotations

import pytest

from rag.generators._citations import says_not_found, verify
from rag.generators._sentences import context_sentences
from tests.contracts.test_generator import DOCUMENTS, QUESTION, WHOLE, context

FOUND = context_sentences(context(QUESTION, *WHOLE), DOCUMENTS)


@pytest.mark.parametrize(
    ("written", "text", "supported"),
    [
        ("The finance director approves trips [2].", "The finance director approves trips. [2]", [True]),
        ("The finance director approves trips.", "The finance director approves trips. [2]", [True]),
        ("The finance director approves trips [1].", "The finance director approves trips.", [False]),
        ("The finance director approves trips [9].", "The finance director approves trips.", [False]),
        ("A room costs up to 140 EUR a night [3].", "A room costs up to 140 EUR a night. [3]", [True]),
        ("A room costs up to 150 EUR a night [3].", "A room costs up to 150 EUR a night.", [False]),
        ("Trips above 5000 EUR need approval [2].", "Trips above 5000 EUR need approval. [2]", [True]),
        ("The capital of Peru is Cusco.", "The capital of Peru is Cusco.", [False]),
        (
            "Soup costs 3 EUR [1]. Lions roar [1]. Receipts are handed in [2][3].",
            "Soup costs 3 EUR. [1] Lions roar. Receipts are handed in. [2]",
            [True, False, True],
        ),
        ("[1]", "", []),
        ("It is.", "It is.", [False]),
    ],
)
def test_marks_stand_where_they_hold(written: str, text: str, supported: list[bool]) -> None:
    checked = verify(written, FOUND, 0.5)
    assert checked.text == text
    assert list(checked.supported) == supported
    sentences = [checked.text[span.start : span.end] for span in checked.sentences]
    assert " ".join(sentences) == text
    for citation in checked.citations:
        assert DOCUMENTS[citation.doc_id].text[citation.span.start : citation.span.end] == citation.text


def test_the_citation_is_the_sentence_that_says_it() -> None:
    checked = verify("Receipts are handed in within thirty days [2].", FOUND, 0.5)
    assert [citation.text for citation in checked.citations] == ["Receipts are handed in within thirty days."]


def test_words_are_demanded_by_degree() -> None:
    said = "The finance director swims."
    assert verify(said, FOUND, 0.5).supported == (True,)
    assert verify(said, FOUND, 0.9).supported == (False,)


def test_refusals_are_known() -> None:
    assert says_not_found("  ")
    assert says_not_found("not found in the documents")
    assert not says_not_found("The answer was found in the documents.")
