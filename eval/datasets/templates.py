"""Questions made from the documents: by templates, or by a language model that must quote what it asks about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from eval.measures.answers import normalised
from eval.sets import Place
from rag.protocols import TextModel
from rag.text import sentence_spans, trimmed
from rag.types import Document

__all__ = ["Candidate", "asked_by_model", "asked_by_template", "sentences_of"]

_SHORTEST, _LONGEST = 40, 400  # characters of a sentence that is asked about
_DEFINITION = re.compile(
    r"(?P<subject>(?:(?:The|A|An) )?[A-Z][\w'’-]*(?: [\w'’-]+){0,5}?) (?P<verb>is|are|was|were) "
    r"(?P<rest>(?:a|an|the|one of|known as|used) .{15,})"
)
_WORDS = (
    "it this that he she they there we these those what here i you his her its their our my your one some many most "
    "such another both each all if when while although because however"
)
_POINTERS = frozenset(_WORDS.split())
"""A sentence that starts with one of these is about something that is named elsewhere."""
_YEAR = re.compile(r"\b(?:1[0-9]|20)\d\d\b")
_NAME = re.compile(r"(?<=[a-z,;] )[A-Z][\w'’-]+(?: [A-Z][\w'’-]+)+\b(?! (?:of|and|[A-Z0-9@\W]))")
"""Two words or more: one alone is often part of a name, a month, or the start of a list."""
_PROMPT = """Write one question that the passage answers, and its answer. The answer is copied from the passage word for
word and is short. The question uses its own words and can be understood without the passage.

Passage: The mill on the Drin opened in 1870 and burned down twice.
Question: When did the mill on the river Drin start to work?
Answer: 1870

Passage: {passage}
Question:"""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """`terms`: words of the document that the question leans on; a place that has them all could answer it."""

    question: str
    answer: str
    place: Place
    terms: tuple[str, ...]
    kind: str


def sentences_of(name: str, text: str) -> Iterator[Place]:
    """The sentences of a document, without white space at their ends."""
    for span in sentence_spans(Document(text=text, source=name)):
        inner = trimmed(text, span)
        if inner:
            yield name, inner.start, inner.end


def asked_by_template(name: str, text: str) -> Iterator[Candidate]:
    """What a sentence defines, what happened in its year, what it says about two of its names."""
    for place in sentences_of(name, text):
        sentence = " ".join(text[place[1] : place[2]].split())
        if not _SHORTEST <= len(sentence) <= _LONGEST or sentence.endswith("?") or sentence[0] in "#|*-":
            continue
        found = _DEFINITION.match(sentence)
        if found and found["subject"].split()[0].lower() not in _POINTERS:
            subject = re.sub(r"^(The|A|An) ", lambda article: article[0].lower(), found["subject"])
            answer = found["rest"].rstrip(".")
            asked = f"What {found['verb']} {subject}?"
            yield Candidate(question=asked, answer=answer, place=place, terms=(found["subject"],), kind="definition")
        names = list(dict.fromkeys(_NAME.findall(sentence)))
        year = _YEAR.search(sentence)
        if year and names:
            asked = f"What happened in {year[0]} in connection with {names[0]}?"
            yield Candidate(question=asked, answer=sentence, place=place, terms=(year[0], names[0]), kind="year")
        elif len(names) > 1:
            asked = f"What is said about {names[0]} together with {names[1]}?"
            yield Candidate(question=asked, answer=sentence, place=place, terms=tuple(names[:2]), kind="names")


def asked_by_model(model: TextModel, text: str, chunk: Place) -> Candidate | None:
    """A question about a chunk; None where what the model writes is no question with an answer from the chunk.

    The evidence is the sentence that has the answer.
    """
    name, start, end = chunk
    written = model.complete(_PROMPT.format(passage=" ".join(text[start:end].split())), max_tokens=96, stop=("\n\n",))
    question, mark, answer = (part.strip() for part in written.partition("Answer:"))
    if not mark or not question.endswith("?") or "\n" in question or not normalised(answer):
        return None
    for _, low, high in sentences_of(name, text[start:end]):
        if f" {normalised(answer)} " in f" {normalised(text[start + low : start + high])} ":
            place = (name, start + low, start + high)
            return Candidate(question=question, answer=answer, place=place, terms=(), kind="model")
    return None
