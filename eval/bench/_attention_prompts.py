"""Prompts for `rag bench attention`: needles in books, key-value pairs, questions about retrieved chunks, and prose.

As in `_kv_prompts`, a prompt is the system text, chunks and the question, each tokenised alone. A chunk has a prior,
the retriever's score of it. Only the development half of the questions is read.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.bench._kv_prompts import PASSAGE, Loaded, passages_at
from eval.chunks.data import half_of
from eval.sets import read_rows

if TYPE_CHECKING:
    from rag.engine.attention import Units

__all__ = ["ASKED", "KINDS", "Case", "Near", "by_cosine", "cases_of", "prose"]

ASKED = ("hotpotqa_200", "squad_long", "chroma_chunking")
KINDS = ("needle", "kv", "text", "asked")
BOOKS, PAIRS = "needle_books", "kv_retrieval"
SCORED = 256
"""Tokens of prose that are scored, at the end of each text."""
Near = Callable[[str, Sequence[str]], list[float]]
"""From a question and texts, the retriever's score of each."""


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
    loaded: Loaded, data: Path, kind: str, *, tokens: int, count: int, seed: int, near: Near | None = None
) -> Iterator[Case]:
    """`count` cases of one of KINDS, drawn by `seed`; those of "asked" in turns from each set of ASKED."""
    near = near or by_cosine()
    if kind == "needle":
        yield from _needles(loaded, data / BOOKS, tokens, count, seed, near)
    elif kind == "kv":
        yield from _pairs(loaded, data / PAIRS, tokens, count, seed)
    elif kind == "text":
        for number, ids in enumerate(prose(loaded, data, tokens=tokens, count=count)):
            body, tail = ids[: -2 * SCORED], ids[-2 * SCORED :]
            chunks = [body[at : at + PASSAGE] for at in range(0, len(body), PASSAGE)]
            yield Case(
                kind="text", name=f"{BOOKS}-{number}", prefix=[], chunks=chunks, priors=[], tail=tail[:SCORED],
                gold=tail[SCORED:],
            )  # fmt: skip
    else:
        yield from _asked(loaded, data, tokens, count, seed, near)


def by_cosine() -> Near:
    """Cosines of the bundled embedder; it is loaded at the first question."""
    held: list[Any] = []

    def score(question: str, texts: Sequence[str]) -> list[float]:
        if not held:
            from rag.registry import build

            held.append(build("embedder", {"use": "minilm", "overlong": "window"}, services={}))
        return [round(float(one), 6) for one in held[0].embed(texts) @ held[0].embed([question])[0]]

    return score


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


def _drawn(folder: Path, seed: int) -> list[dict[str, Any]]:
    """The questions of the development half that have an answer, in an order of chance, each with its evidence."""
    evidence: dict[str, list[dict[str, Any]]] = {}
    for row in read_rows(folder / "evidence.jsonl"):
        if row.get("level", "answer") == "answer":
            evidence.setdefault(row["query_id"], []).append(row)
    rows = [row for row in read_rows(folder / "queries.jsonl") if half_of(row["query_id"]) == "dev"]
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
    loaded: Loaded, folder: Path, tokens: int, count: int, seed: int, near: Near
) -> Iterator[Case]:  # fmt: skip
    """Books cut to `tokens` around the needle, which stands as deep in what is left as in the book."""
    texts = {row["doc_id"]: row["text"] for row in read_rows(folder / "corpus.jsonl")}
    found = 0
    for row in _drawn(folder, seed):
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


def _pairs(loaded: Loaded, folder: Path, tokens: int, count: int, seed: int) -> Iterator[Case]:
    """As many pairs as fit, four to a chunk; the one that is asked for stays as deep as it was. Chunks have no priors:
    to a retriever all keys look alike."""
    texts = {row["doc_id"]: row["text"] for row in read_rows(folder / "corpus.jsonl")}
    for row in _drawn(folder, seed)[:count]:
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


def _asked(loaded: Loaded, data: Path, tokens: int, count: int, seed: int, near: Near) -> Iterator[Case]:
    """Chunks as a retriever gives them: the nearest of the question's documents and of as many others, the nearest
    first, up to `tokens`. Questions none of whose evidence is among them are left out."""
    sets = [name for name in ASKED if (data / name).is_dir()]
    for number, name in enumerate(sets):
        wanted = count // len(sets) + (number < count % len(sets))
        corpus = {row["doc_id"]: row for row in read_rows(data / name / "corpus.jsonl")}
        for row in _drawn(data / name, seed):
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
    for doc in [*own, *others]:
        one = corpus[doc]
        texts += [(one.get("title") or doc, part.strip()) for _, part in _pieces(one["text"], 700) if part.strip()]
        if sum(len(text) for _, text in texts) > 12 * tokens and doc not in own:
            break
    scores = near(row["text"], [f"{title}\n{text}" for title, text in texts])
    order = sorted(range(len(texts)), key=lambda at: (-scores[at], at))
    fits = passages_at(loaded, [texts[at] for at in order], tokens)
    needed = [" ".join(one["text"].split())[:60] for one in row["evidence"]]
    kept = [" ".join(texts[order[at]][1].split()) for at, _ in fits]
    evidence = [at for at, text in enumerate(kept) if any(one in text for one in needed)]
    if not evidence:
        return None
    priors = [scores[order[at]] for at, _ in fits]
    chunks = [chunk for _, chunk in fits]
    return _case(loaded, "asked", row, chunks, priors, evidence=evidence, begin="", gold=row["answers"][0])
