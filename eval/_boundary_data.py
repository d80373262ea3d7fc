"""Sentences with paragraph ends, for training and testing the boundary model: text without line ends, and labels."""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from rag.text import sentence_spans
from rag.types import Document

SEED = 17
CONTRACT_CHARS = 80_000
OTHER_CHARS = 40_000
"""At most this much of a document, from its start, so that no long one outweighs the others."""
MAX_SENTENCE = 1_000
"""A longer one is a table or a list without stops; the pairs on both sides of it are left out."""
MIN_ENDS = 5
"""A test text of another kind with fewer paragraph ends (chat logs, one row per line) says nothing."""

_BLANK_LINE = re.compile(r"\n[ \t\r\f]*\n\s*")
_LINE = re.compile(r"\s*\n\s*")
OTHERS = {"chroma_chunking": 4, "squad_long": 6, "covidqa": 8}
"""Set -> documents. No line of these is trained or tuned on: they show how the model does on other kinds of text."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A text without line ends: its sentences, and for every place between two whether a paragraph ends there."""

    source: str
    part: str
    """`train`, `dev`, `test`, or `other` for the sets that nothing is trained on."""
    sentences: tuple[str, ...]
    ends: tuple[bool, ...]

    @property
    def kind(self) -> str:
        return self.source.partition("/")[0]


def labelled(source: str, part: str, paragraphs: Sequence[str]) -> Labelled | None:
    """The paragraphs joined with one space and cut into sentences again; None for less than eight sentences.

    A sentence is labelled by whether it opens where a paragraph opened. What the segmenter does not cut (a heading
    without a full stop before its first sentence) is one sentence here as it would be for a chunker.
    """
    bare = [" ".join(paragraph.split()) for paragraph in paragraphs]
    joined: list[str] = []
    for paragraph in bare:
        if sum(map(str.isalpha, paragraph)) < 3:
            continue  # a page number or a rule
        if joined and paragraph[:1].islower():
            joined[-1] += " " + paragraph  # a paragraph that runs on over a page end
        else:
            joined.append(paragraph)
    starts = set(accumulate((len(paragraph) + 1 for paragraph in joined), initial=0))
    text = " ".join(joined)
    spans = sentence_spans(Document(text=text, source=source))
    if len(spans) < 8:
        return None
    sentences = tuple(text[span.start : span.end].strip() for span in spans)
    return Labelled(source=source, part=part, sentences=sentences, ends=tuple(s.start in starts for s in spans[1:]))


def read_all(data: Path) -> list[Labelled]:
    """Everything, in one order for the same data."""
    found = [*_contracts(data), *_book(data), *_by_title(data)]
    found += [*_related(data, "hotpotqa_200"), *_related(data, "2wiki_164")]
    for name, count in OTHERS.items():
        found.extend(_other(data, name, count))
    return [one for one in found if one is not None]


def _contracts(data: Path) -> Iterator[Labelled | None]:
    for row in _rows(data / "cuad_contracts" / "corpus.jsonl"):
        paragraphs = _BLANK_LINE.split(row["text"][:CONTRACT_CHARS])
        yield labelled(f"cuad_contracts/{row['doc_id']}", _part(row["doc_id"]), paragraphs)


def _book(data: Path) -> Iterator[Labelled | None]:
    """Slices of one novel that do not overlap, the inserted needles taken out. Training only: it is one book."""
    needles = {row["doc_id"]: (row["start"], row["end"]) for row in _rows(data / "needle_books" / "evidence.jsonl")}
    slices = []
    for row in _rows(data / "needle_books" / "corpus.jsonl"):
        name, _, rest = row["title"].partition(" [")
        if name == "room_with_a_view.txt":
            start, end = (int(number) for number in rest.rstrip("]").split(":"))
            slices.append((start, end, row))
    taken = 0
    for start, end, row in sorted(slices, key=lambda one: (one[0], -one[1])):
        if start >= taken and end <= 283_000:  # after it, the licence of Project Gutenberg
            taken = end
            cut, stop = needles[row["doc_id"]]
            text = row["text"][:cut] + row["text"][stop:]
            yield labelled(f"needle_books/{row['doc_id']}", "train", _BLANK_LINE.split(text))


def _related(data: Path, name: str) -> Iterator[Labelled | None]:
    """The paragraphs that one question was asked over, in a random order: on the topic, and a border at each end.

    A paragraph is used once, by the first question, so that no text is in two parts.
    """
    rng = random.Random(SEED)  # noqa: S311
    corpus = {row["doc_id"]: row["text"] for row in _rows(data / name / "corpus.jsonl")}
    used: set[str] = set()
    for row in _rows(data / name / "queries.jsonl"):
        wanted = [one for one in dict.fromkeys(row["candidates"]) if one in corpus and one not in used]
        used.update(wanted)
        rng.shuffle(wanted)
        yield labelled(f"{name}/{row['query_id']}", _part(row["query_id"]), [corpus[one] for one in wanted])


def _by_title(data: Path) -> Iterator[Labelled | None]:
    """Wikipedia paragraphs from all over their articles, ten at a time by title, so that some neighbours are akin."""
    rows = list(_rows(data / "nq_gold" / "corpus.jsonl"))
    for at in range(0, len(rows), 10):
        ten = rows[at : at + 10]
        name = ten[0]["doc_id"]
        yield labelled(f"nq_gold/{name}", _part(name), [part for row in ten for part in _LINE.split(row["text"])])


def _other(data: Path, name: str, count: int) -> Iterator[Labelled | None]:
    rows = list(_rows(data / name / "corpus.jsonl"))
    random.Random(SEED).shuffle(rows)  # noqa: S311
    for row in rows[:count]:
        text = row["text"][:OTHER_CHARS]
        splitter = _LINE if name == "chroma_chunking" and len(_BLANK_LINE.findall(text)) < 20 else _BLANK_LINE
        one = labelled(f"{name}/{row['doc_id']}", "other", splitter.split(text))
        yield one if one is not None and sum(one.ends) >= MIN_ENDS else None


def _part(name: str) -> str:
    share = zlib.crc32(name.encode()) % 100
    return "train" if share < 70 else "dev" if share < 85 else "test"


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl, sorted by their id."""
    with path.open(encoding="utf-8") as lines:
        rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return sorted(rows, key=lambda row: str(row.get("doc_id", row.get("query_id"))))
