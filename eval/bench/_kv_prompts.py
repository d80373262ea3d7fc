"""Prompts for `rag bench kv`: passages around a question, and donors from documents that no prompt has.

A prompt is the system text, passages of about so many tokens in all, and the question, each tokenised alone. A passage
is a block of the prompt: its delimiters and title are in it, its number is not, so that it is the same wherever it
stands. Several questions may share their passages, those that came with any of them: one prefill then serves them all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rag.prompt import SYSTEM

__all__ = [
    "SETS", "Corpus", "KvCase", "Loaded", "Near", "Rank", "by_relevance", "corpora", "donors_of", "kv_cases", "load",
    "neighbours_of",
]  # fmt: skip

SETS = ("hotpotqa_200", "2wiki_164")
PASSAGE = 220
"""Tokens of a passage, at most."""
MINILM = {"use": "minilm", "overlong": "window"}
_BODY = "<<body>>"
Near = Callable[[Sequence[int]], list[list[int]]]
"""From a passage, what stands between each donor and it while its block is made: passages near it in the corpus."""
Rank = Callable[[Sequence[str], Sequence[str]], list[int]]
"""From questions and texts, the places of the texts in the order in which they stand in a prompt."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model and its tokenizer: `before` and `after` are the two ends of its chat template, `stops` ends an answer."""

    model: Any
    encode: Callable[[str], list[int]]
    before: str
    after: str
    stops: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class KvCase:
    """Token ids of one prompt."""

    prefix: list[int]
    chunks: list[list[int]]
    tail: list[int]

    @property
    def ids(self) -> list[int]:
        return [*self.prefix, *(token for chunk in self.chunks for token in chunk), *self.tail]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """(title, text) of documents by their id; (question, ids of the documents it came with) of the questions; ids that
    are only for donors."""

    name: str
    texts: Mapping[str, tuple[str, str]]
    questions: Sequence[tuple[str, Sequence[str]]]
    outside: Mapping[str, tuple[str, str]]


def load(dtype: str = "") -> Loaded:
    """The bundled model. `dtype` "" is bfloat16 where the processor multiplies it in hardware."""
    from rag.embedders._cpu import cpu_has_bf16
    from rag.engine.model import EngineModel
    from rag.generators._models import load_model, model_folder

    model, tokenizer = load_model(model_folder(""), dtype=dtype or ("bfloat16" if cpu_has_bf16() else "float32"))
    turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": _BODY}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    before, _, after = text.partition(_BODY)

    def encode(part: str) -> list[int]:
        return list(tokenizer.encode(part, add_special_tokens=False))

    return Loaded(
        model=EngineModel(model), encode=encode, before=before, after=after, stops=frozenset({tokenizer.eos_token_id})
    )


def corpora(data: Path | None, half: str = "dev") -> list[Corpus]:
    """The public sets, each with the other's documents as donors; the sample corpus where they are absent. `half` of
    the questions is dev, test or all."""
    folders = [data / name for name in SETS] if data is not None else []
    if not folders or not all(folder.is_dir() for folder in folders):
        return [_sample()]
    from eval.chunks.data import half_of
    from eval.sets import read_rows

    rows = {
        folder.name: {kind: read_rows(folder / f"{kind}.jsonl") for kind in ("corpus", "queries")} for folder in folders
    }
    texts = {name: {row["doc_id"]: (row["title"], row["text"]) for row in one["corpus"]} for name, one in rows.items()}
    found = []
    for name, other in zip(SETS, reversed(SETS), strict=True):
        asked = [row for row in rows[name]["queries"] if half in ("all", half_of(row["query_id"]))]
        outside = {key: pair for key, pair in texts[other].items() if key not in texts[name]}
        questions = [(row["text"], [key for key in row["candidates"] if key in texts[name]]) for row in asked]
        found.append(Corpus(name=name, texts=texts[name], questions=questions, outside=outside))
    return found


def _sample() -> Corpus:
    """Every third document is for donors; passages are paragraphs."""
    from rag.sample import documents_dir, questions

    parts: dict[str, tuple[str, str]] = {}
    outside: dict[str, tuple[str, str]] = {}
    for number, file in enumerate(sorted(documents_dir().glob("*.md"))):
        for at, text in enumerate(file.read_text(encoding="utf-8").split("\n\n")):
            (outside if number % 3 == 0 else parts)[f"{file.stem}-{at}"] = (file.stem, text)
    return Corpus(name="sample", texts=parts, questions=[(one.text, ()) for one in questions()], outside=outside)


def kv_cases(
    loaded: Loaded, corpus: Corpus, *, tokens: int, count: int, seed: int, together: int = 1, rank: Rank | None = None
) -> list[KvCase]:
    """`count` questions, drawn by `seed` whatever `tokens` is, each `together` of which share passages of at most
    `tokens` tokens in all: those they came with, in turns, then others of the corpus. They stand as `rank` has them,
    or in an order of chance."""
    draw = random.Random(seed)  # noqa: S311
    asked = draw.sample(list(corpus.questions), min(count, len(corpus.questions)))
    keys = sorted(corpus.texts)
    prefix = loaded.encode(loaded.before)
    cases = []
    for start in range(0, len(asked), together):
        group = asked[start : start + together]
        own = [draw.sample(list(came), len(came)) for _, came in group]
        order = [key for turn in zip_longest(*own) for key in turn if key is not None]
        order += draw.sample(keys, min(len(keys), tokens // 20))
        taken = [corpus.texts[key] for key in dict.fromkeys(order)]
        if rank is None:
            chunks = passages(loaded, taken, tokens)
            draw.shuffle(chunks)
        else:
            fits = passages_at(loaded, taken, tokens)
            texts = [f"{taken[at][0]}\n{taken[at][1]}" for at, _ in fits]
            chunks = [fits[at][1] for at in rank([question for question, _ in group], texts)]
        for question, _ in group:
            tail = loaded.encode(f"\nQuestion: {question}\n") + loaded.encode(loaded.after)
            cases.append(KvCase(prefix=prefix, chunks=chunks, tail=tail))
    return cases


def donors_of(loaded: Loaded, corpus: Corpus, *, tokens: int, count: int, seed: int) -> list[list[int]]:
    """`count` donors of at most `tokens` tokens, in the format of the passages, with no document of the corpus."""
    keys = sorted(corpus.outside)
    draw = random.Random(seed)  # noqa: S311
    order = draw.sample(keys, len(keys))
    share = max(1, len(order) // count)
    parts = [order[at * share : (at + 1) * share] for at in range(count)]
    drawn = [passages(loaded, [corpus.outside[key] for key in part[: tokens // 10]], tokens) for part in parts]
    return [[token for chunk in chunks for token in chunk] for chunks in drawn]


def neighbours_of(loaded: Loaded, corpus: Corpus, folder: Path | None) -> Near:
    """For a passage of the corpus what `blocks: neighbour-mean` of the generator `local` puts before it, by the vectors
    of MiniLM, which are kept in `folder`."""
    from eval.chunks.vectors import CachedEmbedder
    from rag.generators._neighbours import between, nearest
    from rag.registry import build

    cut = [(passages(loaded, [pair], PASSAGE), f"{pair[0]}\n{pair[1]}") for _, pair in sorted(corpus.texts.items())]
    known = [(tuple(made[0]), text) for made, text in cut if made]
    embedder = CachedEmbedder(inner=build("embedder", MINILM, services={}), folder=folder)
    near = nearest(embedder.embed([text for _, text in known]), [passage for passage, _ in known])
    place = {passage: at for at, (passage, _) in enumerate(known)}

    def before(passage: Sequence[int]) -> list[list[int]]:
        return [[*own] for own in between([known[at][0] for at in near[place[tuple(passage)]]])]

    return before


def passages(loaded: Loaded, texts: Sequence[tuple[str, str]], tokens: int) -> list[list[int]]:
    """Of the texts those that fit into `tokens`, cut to PASSAGE tokens each."""
    return [chunk for _, chunk in passages_at(loaded, texts, tokens)]


def passages_at(loaded: Loaded, texts: Sequence[tuple[str, str]], tokens: int) -> list[tuple[int, list[int]]]:
    """As `passages`, each with its place in `texts`."""
    chunks: list[tuple[int, list[int]]] = []
    left = tokens
    for at, (title, text) in enumerate(texts):
        close = loaded.encode("\n</document>\n")
        body = loaded.encode(f"\n<document>\nSource: {title}\n{text.strip()}")[: PASSAGE - len(close)] + close
        if len(body) <= left:
            chunks.append((at, body))
            left -= len(body)
    return chunks


def by_relevance() -> Rank:
    """The nearest to any of the questions first, by the cosines of MiniLM."""
    from rag.registry import build

    embedder = build("embedder", MINILM, services={})

    def rank(questions: Sequence[str], texts: Sequence[str]) -> list[int]:
        near = (embedder.embed(texts) @ embedder.embed(questions).T).max(axis=1)
        return sorted(range(len(texts)), key=lambda at: (-round(float(near[at]), 6), at))

    return rank
