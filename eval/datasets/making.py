"""A question set of one's own documents: candidates, filters, and the files of a set that `rag eval run` reads."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.chunks.data import digest
from eval.chunks.measures import covered
from eval.datasets.model import Dataset
from eval.datasets.templates import Candidate, asked_by_model, asked_by_template, sentences_of
from eval.runs.ingesting import Prepared, line_of, name_in, prepare
from eval.sets import Place
from rag.config import PipelineConfig
from rag.errors import ConfigError, UsageError
from rag.index import Index
from rag.pipeline import Pipeline
from rag.prompt import build_prompt
from rag.registry import spec_name
from rag.types import CompressedContext, Hit, Piece

__all__ = ["Made", "make", "write_sft", "write_spans"]

_FIRST = 10
"""The retriever must have the evidence among so many hits."""
_COPIED = 6
"""Words in a row that a question may not share with its evidence."""
_DISTRACTORS = 3
_TRIES = 20
"""A model is asked about so many chunks for each question that is wanted."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """`asked`: candidates that passed, with what the retriever found; `dropped`: reason -> how many did not."""

    texts: Mapping[str, str]
    asked: tuple[tuple[Candidate, tuple[Hit, ...]], ...]
    dropped: Mapping[str, int]
    index: Index
    home: Path


def make(
    documents: Path,
    config: PipelineConfig,
    cache: Path,
    *,
    count: int,
    source: str,
    seed: int,
    tell: Callable[[str], None],
) -> Made:
    """At most `count` questions over the files of a folder, spread over them; the same for the same inputs.

    Filters: the question shares no long run of words with its evidence; no other sentence has all its terms; the
    retriever of `config` finds the evidence. Errors: UsageError when nothing is left, ConfigError without a model.
    """
    if not documents.is_dir():
        raise UsageError(f"{documents}: no such folder; give the folder of the documents")
    dataset = Dataset(name=documents.name, questions=(), folder=documents)
    prepared = prepare(dataset, config, cache, tell)
    pipeline, index = line_of(config, None), Index.open(prepared.directory)
    found = _templates(prepared, seed) if source == "template" else _modelled(prepared, pipeline, count, seed)
    every = [
        prepared.texts[name][s:e] for name, text in prepared.texts.items() for name, s, e in sentences_of(name, text)
    ]
    asked: list[tuple[Candidate, tuple[Hit, ...]]] = []
    dropped: Counter[str] = Counter()
    seen: set[str] = set()
    for one in found:
        if len(asked) == count:
            break
        reason = "asked before" if one.question.casefold() in seen else _unfit(one, prepared, every)
        hits = () if reason else tuple(pipeline.search(one.question, index, k=_FIRST))
        reason = reason or ("" if _finds(hits, one.place, index, prepared.home) else "not found by the retriever")
        if reason:
            dropped[reason] += 1
            continue
        seen.add(one.question.casefold())
        asked.append((one, hits))
    if not asked:
        index.close()
        raise UsageError(
            f"{documents}: no question passed the filters ({dict(dropped) or 'no candidates'}); templates need English "
            "sentences with names or years: add documents, or use --source llm with a generator"
        )
    return Made(texts=prepared.texts, asked=tuple(asked), dropped=dict(dropped), index=index, home=prepared.home)


def write_spans(made: Made, out: Path) -> None:
    """corpus.jsonl, queries.jsonl, evidence.jsonl: the layout `spans`, with the texts as they were parsed."""
    used = sorted(made.texts)
    _lines(out / "corpus.jsonl", ({"doc_id": name, "title": "", "text": made.texts[name]} for name in used))
    _lines(
        out / "queries.jsonl",
        (
            {"query_id": _id(at), "text": one.question, "answers": [one.answer], "type": one.kind}
            for at, (one, _) in enumerate(made.asked)
        ),
    )
    _lines(
        out / "evidence.jsonl",
        (
            {"query_id": _id(at), "doc_id": name, "start": start, "end": end, "text": made.texts[name][start:end]}
            for at, (one, _) in enumerate(made.asked)
            for name, start, end in [one.place]
        ),
    )


def write_sft(made: Made, out: Path) -> None:
    """train.jsonl: one chat a question, as most trainers read them: the prompt that a generator gets, and the answer
    with its mark. The passage with the evidence stands among passages that the retriever found beside it.
    """
    _lines(out / "train.jsonl", (_chat(one, hits, made) for one, hits in made.asked))


def _chat(one: Candidate, hits: Sequence[Hit], made: Made) -> dict[str, Any]:
    gold = next(hit for hit in hits if _holds(hit, one.place, made.index, made.home))
    others = [hit for hit in hits if not _holds(hit, one.place, made.index, made.home)][:_DISTRACTORS]
    order = sorted([gold, *others], key=lambda hit: digest([one.question, hit.chunk.id]))
    pieces = tuple(
        Piece(chunk_id=c.id, doc_id=c.doc_id, span=c.span, text=c.text, kept=(c.span,))
        for c in (hit.chunk for hit in order)
    )
    context = CompressedContext(
        question=one.question, pieces=pieces, token_count=0, source_token_count=0, compressor="none"
    )
    documents = {piece.doc_id: made.index.corpus.document(piece.doc_id) for piece in pieces}
    prompt = build_prompt(context, documents)
    said = f"{one.answer} [{order.index(gold) + 1}]"
    system = "".join(part.text for part in prompt.segments if part.role == "system")
    asked = "".join(part.text for part in prompt.segments if part.role != "system")
    roles = (("system", system.strip()), ("user", asked.strip()), ("assistant", said))
    return {"messages": [{"role": role, "content": content} for role, content in roles]}


def _templates(prepared: Prepared, seed: int) -> list[Candidate]:
    found = [one for name in sorted(prepared.texts) for one in asked_by_template(name, prepared.texts[name])]
    return sorted(found, key=lambda one: digest([str(seed), one.question, str(one.place)]))


def _modelled(prepared: Prepared, pipeline: Pipeline, count: int, seed: int) -> Iterator[Candidate]:
    model = pipeline.generator.text_model
    if model is None:
        raise ConfigError(
            f"--source llm: generator {spec_name(pipeline.config.generator)} has no language model; set generator: "
            "local or openai in the config"
        )
    chunks = [(name, start, end) for name, places in prepared.chunks.items() for start, end in places]
    chunks.sort(key=lambda place: digest([str(seed), str(place)]))
    for place in chunks[: count * _TRIES]:
        one = asked_by_model(model, prepared.texts[place[0]], place)
        if one is not None:
            yield one


def _unfit(one: Candidate, prepared: Prepared, every: Sequence[str]) -> str:
    name, start, end = one.place
    if _longest_run(one.question, prepared.texts[name][start:end]) >= _COPIED:
        return "copied from the evidence"
    if one.terms and sum(all(term in text for term in one.terms) for text in every) != 1:
        return "several places could answer it"
    return ""


def _longest_run(left: str, right: str) -> int:
    """Most words in a row that both have."""
    a, b = (re.findall(r"\w+", text.casefold()) for text in (left, right))
    best, row = 0, [0] * (len(b) + 1)
    for word in a:
        row = [0, *(row[at] + 1 if word == other else 0 for at, other in enumerate(b))]
        best = max(best, *row)
    return best


def _finds(hits: Sequence[Hit], place: Place, index: Index, home: Path) -> bool:
    return any(_holds(hit, place, index, home) for hit in hits)


def _holds(hit: Hit, place: Place, index: Index, home: Path) -> bool:
    """Half of the evidence or more."""
    chunk = hit.chunk
    there = (name_in(home, index.corpus.document(chunk.doc_id).source), chunk.span.start, chunk.span.end)
    return 2 * covered([place], [there]) >= place[2] - place[1]


def _id(number: int) -> str:
    return f"made-{number:04d}"


def _lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
