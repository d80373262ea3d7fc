"""Prompts for `rag bench attention`: needles in books, key-value pairs, questions about retrieved chunks, and prose.

As in `_kv_prompts`, a prompt is the system text, chunks and the question, each tokenised alone. A chunk has a prior,
the retriever's score of it. Questions are those of one half, the development half unless the other is asked for.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.bench._attention_priors import Near, by_retriever
from eval.bench._kv_prompts import PASSAGE, Loaded, passages_at
from eval.chunks.data import half_of
from eval.sets import read_rows

if TYPE_CHECKING:
    from rag.engine.attention import Units

__all__ = ["ASKED", "KINDS", "Case", "cases_of", "prose"]

ASKED = ("hotpotqa_200", "squad_long", "chroma_chunking")
KINDS = ("needle", "kv", "text", "asked")
BOOKS, PAIRS = "needle_books", "kv_retrieval"
SCORED = 256
"""Tokens of prose that are scored, at the end of each text."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """`gold` are the tokens whose likelihood counts, behind `tail`; `evidence` the numbers of the chunks that hold what
    the question needs."""

    kind: str
    name: str
    prefix: list[int]
    chunks: list[list[int]]
    priors: list[float]
    tail: list[int]
    gold: list[int]
    evidence: tuple[int, ...] = ()

    @property
    def ids(self) -> list[int]:
        return [*self.prefix, *(token for chunk in self.chunks for token in chunk), *self.tail]

    @property
    def spans(self) -> list[tuple[int, int]]:
        found, at = [], len(self.prefix)
        for chunk in self.chunks:
            found.append((at, at + len(chunk)))
            at += len(chunk)
        return found

    def units(self) -> Units:
        from rag.engine.attention import Units

        return Units.of_spans(self.spans, priors=self.priors)


def cases_of(
    loaded: Loaded, data: Path, kind: str, *, tokens: int, count: int, seed: int, near: Near | None = None,
    half: str = "dev",
) -> Iterator[Case]:  # fmt: skip
    """`count` cases of one of KINDS, drawn by `seed` from a half of the questions, dev or test; those of "asked" in
    equal shares from each set of ASKED."""
    near = near or by_retriever()
    if kind == "needle":
        yield from _needles(loaded, _drawn(data / BOOKS, seed, half), data / BOOKS, tokens, count, near)
    elif kind == "kv":
        yield from _pairs(loaded, _drawn(data / PAIRS, seed, half)[:count], data / PAIRS, tokens)
    elif kind == "text":
        for number, ids in enumerate(prose(loaded, data, tokens=tokens, count=count)):
            body, tail = ids[: -2 * SCORED], ids[-2 * SCORED :]
            chunks = [body[at : at + PASSAGE] for at in range(0, len(body), PASSAGE)]
            yield Case(
                kind="text", name=f"{BOOKS}-{number}", prefix=[], chunks=chunks, priors=[], tail=tail[:SCORED],
                gold=tail[SCORED:],
            )  # fmt: skip
    else:
        yield from _asked(loaded, data, tokens, count, seed, near, half)


def prose(loaded: Loaded, data: Path, *, tokens: int, count: int) -> list[list[int]]:
    """`count` texts of exactly so many tokens: the books, then the articles of squad_long, one after the other."""
    rows = [row for row in read_rows(data / BOOKS / "corpus.jsonl") if half_of(row["doc_id"]) == "dev"]
    texts = [row["text"] for row in sorted(rows, key=lambda row: (-len(row["text"]), row["doc_id"]))]
    articles = data / "squad_long" / "corpus.jsonl"
    texts += [row["text"] for row in read_rows(articles)] if articles.is_file() else []
    held: list[int] = []
    found: list[list[int]] = []
    for text in texts:
        room = (count - len(found)) * tokens - len(held)
        held += loaded.encode(text[: 8 * max(0, room)])
        while len(held) >= tokens and len(found) < count:
            found.append(held[:tokens])
            held = held[tokens:]
        if len(found) == count:
            break
    return found


def _drawn(folder: Path, seed: int, half: str) -> list[dict[str, Any]]:
    """The questions of a half that have an answer, in an order of chance, each with its evidence."""
    evidence: dict[str, list[dict[str, Any]]] = {}
    for row in read_rows(folder / "evidence.jsonl"):
        if row.get("level", "answer") == "answer":
            evidence.setdefault(row["query_id"], []).append(row)
    rows = [row for row in read_rows(folder / "queries.jsonl") if half_of(row["query_id"]) == half]
    rows = [{**row, "evidence": evidence[row["query_id"]]} for row in rows if row["query_id"] in evidence]
    rows = [row for row in rows if row.get("answers")]
    return random.Random(seed).sample(rows, len(rows))  # noqa: S311


def _case(
    loaded: Loaded, kind: str, row: dict[str, Any], chunks: list[list[int]], priors: list[float], *,
    evidence: Sequence[int], begin: str, gold: str,
) -> Case:  # fmt: skip
    """`begin` is put into the model's mouth."""
    tail = [*loaded.encode(f"\nQuestion: {row['text']}\n"), *loaded.encode(loaded.after), *loaded.encode(begin)]
    return Case(
        kind=kind, name=str(row["query_id"]), prefix=loaded.encode(loaded.before), chunks=chunks, priors=priors,
        tail=tail, gold=loaded.encode(gold), evidence=tuple(evidence),
    )  # fmt: skip


def _needles(
    loaded: Loaded, drawn: Sequence[dict[str, Any]], folder: Path, tokens: int, count: int, near: Near
) -> Iterator[Case]:  # fmt: skip
    """Books cut to `tokens` around the needle, which stands as deep in what is left as in the book."""
    texts = {row["doc_id"]: row["text"] for row in read_rows(folder / "corpus.jsonl")}
    found = 0
    for row in drawn:
        (hit,) = row["evidence"]
        parts = _pieces(texts[hit["doc_id"]])
        at = next(number for number, (start, part) in enumerate(parts) if start <= hit["start"] < start + len(part))
        if row["answers"][0] not in parts[at][1]:
            continue
        cut = [loaded.encode(part) for _, part in parts]
        if sum(map(len, cut)) < tokens or found == count:
            continue
        low, high = at, at + 1
        while sum(map(len, cut[low:high])) < tokens:
            before = low > 0 and (high == len(cut) or (at - low) < (high - at) * row["depth"] / (1.01 - row["depth"]))
            low, high = (low - 1, high) if before else (low, high + 1)
        priors = near(row["text"], [part for _, part in parts[low:high]])
        begin, _, _ = hit["text"].partition(row["answers"][0])
        found += 1
        yield _case(
            loaded, "needle", row, cut[low:high], priors, evidence=[at - low], begin=begin.rstrip(),
            gold=f" {row['answers'][0]}",
        )  # fmt: skip


def _pieces(text: str, size: int = 800) -> list[tuple[int, str]]:
    """(start, piece): lines together up to `size` characters."""
    found: list[tuple[int, str]] = []
    start, at = 0, 0
    for line in text.splitlines(keepends=True):
        if at > start and at + len(line) - start > size:
            found.append((start, text[start:at]))
            start = at
        at += len(line)
    return [*found, (start, text[start:])]


def _pairs(loaded: Loaded, drawn: Sequence[dict[str, Any]], folder: Path, tokens: int) -> Iterator[Case]:
    """As many pairs as fit, four to a chunk; the one that is asked for stays as deep as it was. Chunks have no priors:
    to a retriever all keys look alike."""
    texts = {row["doc_id"]: row["text"] for row in read_rows(folder / "corpus.jsonl")}
    for row in drawn:
        lines = texts[row["evidence"][0]["doc_id"]].strip("{} \n").split("\n")
        (hit,) = [at for at, line in enumerate(lines) if row["answers"][0] in line]
        each = len(loaded.encode("\n" + lines[0]))
        wanted = max(1, min(len(lines), tokens // each))
        first = round(hit * (len(lines) - wanted) / max(1, len(lines) - 1))
        kept = [line.strip() for line in lines[first : first + wanted]]
        chunks = [loaded.encode("\n" + "\n".join(kept[at : at + 4])) for at in range(0, wanted, 4)]
        line = lines[hit].strip()
        begin, _, _ = line.partition(row["answers"][0])
        yield _case(
            loaded, "kv", row, chunks, [], evidence=[(hit - first) // 4], begin=begin, gold=row["answers"][0]
        )  # fmt: skip


def _asked(
    loaded: Loaded, data: Path, tokens: int, count: int, seed: int, near: Near, half: str
) -> Iterator[Case]:  # fmt: skip
    """Chunks as a retriever gives them: the nearest of the question's documents and of as many others, the nearest
    first, up to `tokens`. Questions none of whose evidence is among them are left out."""
    sets = [name for name in ASKED if (data / name).is_dir()]
    for number, name in enumerate(sets):
        wanted = count // len(sets) + (number < count % len(sets))
        corpus = {row["doc_id"]: row for row in read_rows(data / name / "corpus.jsonl")}
        for row in _drawn(data / name, seed, half):
            if not wanted:
                break
            case = _retrieved(loaded, row, corpus, tokens, random.Random(f"{seed} {row['query_id']}"), near)  # noqa: S311
            if case is not None:
                wanted -= 1
                yield case


def _retrieved(
    loaded: Loaded, row: dict[str, Any], corpus: dict[str, dict[str, Any]], tokens: int, draw: random.Random, near: Near
) -> Case | None:
    own = list(dict.fromkeys([*(row.get("candidates") or ()), *(one["doc_id"] for one in row["evidence"])]))
    others = draw.sample(sorted(corpus.keys() - set(own)), min(len(corpus) - len(own), max(2, tokens // 100)))
    texts: list[tuple[str, str]] = []
    places: list[tuple[str, int]] = []
    for doc in [*own, *others]:
        one = corpus[doc]
        parts = [(start + len(part) - len(part.lstrip()), part.strip()) for start, part in _pieces(one["text"], 700)]
        texts += [(one.get("title") or doc, part) for _, part in parts if part]
        places += [(doc, start) for start, part in parts if part]
        if sum(len(text) for _, text in texts) > 12 * tokens and doc not in own:
            break
    scores = near(row["text"], [f"{title}\n{text}" for title, text in texts])
    order = sorted(range(len(texts)), key=lambda at: (-scores[at], at))
    fits = [(order[at], chunk) for at, chunk in passages_at(loaded, [texts[at] for at in order], tokens)]
    held = [(*places[at], len(texts[at][1])) for at, _ in fits]
    evidence = [
        number
        for number, (doc, start, size) in enumerate(held)
        if any(doc == one["doc_id"] and one["start"] < start + size and start < one["end"] for one in row["evidence"])
    ]
    if not evidence:
        return None
    chunks = [chunk for _, chunk in fits]
    priors = [scores[at] for at, _ in fits]
    return _case(loaded, "asked", row, chunks, priors, evidence=evidence, begin="", gold=row["answers"][0])
