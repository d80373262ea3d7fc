"""CPU seconds of reading a context whole, and of shortening it and reading what is left; what follows from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from eval.bench._compress_contexts import Context
from rag.text import assemble

if TYPE_CHECKING:
    from eval.bench._kv_prompts import Loaded
    from rag.protocols import Compressor, Corpus, Embedder, Vectors
    from rag.types import CompressedContext

__all__ = ["ALONE", "break_even", "costs", "line", "ranges", "speeds"]

ALONE = "prefill alone"
Row = dict[str, Any]


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of all threads, and what came of it."""
    begin = time.process_time()
    made = work()
    return time.process_time() - begin, made


def _compressing(one: Compressor, context: Context, corpus: Corpus) -> tuple[float, CompressedContext]:
    seconds, left = _seconds(lambda: one.compress(context.bubble, corpus))
    return seconds, left


class _Unkept:
    """A corpus that embeds every sentence anew."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    def __getattr__(self, name: str) -> Any:
        return getattr(self._corpus, name)

    def sentence_vectors(self, texts: Sequence[str], embedder: Embedder) -> Vectors:
        return embedder.embed(texts)


def _ids(loaded: Loaded, question: str, text: str) -> list[int]:
    tail = loaded.encode(f"\nQuestion: {question}\n") + loaded.encode(loaded.after)
    return [*loaded.encode(loaded.before), *loaded.encode(text), *tail]


def costs(
    loaded: Loaded, made: Sequence[Context], compressors: Mapping[str, Compressor], corpus: Corpus, rounds: int
) -> list[Row]:
    """A row for each round, context and contender: ALONE and the compressors, in an order that moves on every round.

    Every contender had each context once before, so vectors of sentences are kept; `unkept_ms` is what shortening took
    on a corpus that keeps none.
    """
    from rag.engine.prefill import prefill

    def read(context: Context, text: str) -> tuple[float, int]:
        ids = _ids(loaded, context.bubble.question, text)
        seconds, _ = _seconds(lambda: prefill(loaded.model, ids))
        return seconds, len(ids)

    if made:
        read(made[-1], assemble(made[-1].bubble.texts))
    bare: Any = _Unkept(corpus)
    unkept: dict[tuple[str, int], float] = {}
    for at, context in enumerate(made):
        for name, one in compressors.items():
            unkept[name, at], _ = _compressing(one, context, bare)
            one.compress(context.bubble, corpus)
    names = [ALONE, *compressors]
    rows: list[Row] = []
    for number in range(rounds):
        for at, context in enumerate(made):
            turn = (number + at) % len(names)
            for name in names[turn:] + names[:turn]:
                spent, text = 0.0, assemble(context.bubble.texts)
                left: CompressedContext | None = None
                if name != ALONE:
                    spent, left = _compressing(compressors[name], context, corpus)
                    text = assemble(piece.text for piece in left.pieces)
                reading, prompt = read(context, text)
                rows.append(
                    {
                        "name": name,
                        "round": number,
                        "context": at,
                        "length": context.length,
                        "tokens": context.tokens,
                        "left": context.tokens if left is None else left.token_count,
                        "prompt": prompt,
                        "compress_ms": 1000 * spent,
                        "prefill_ms": 1000 * reading,
                        "unkept_ms": 1000 * unkept.get((name, at), 0.0),
                    }
                )
    return rows


def ranges(rows: Sequence[Row]) -> list[Row]:
    """For every length and contender: medians over contexts and rounds with [least, most], and the part of ALONE.

    The part is that of the same context in the same round, of which the median is taken.
    """
    alone = {(row["round"], row["context"]): row["prefill_ms"] for row in rows if row["name"] == ALONE}
    found = []
    for length, name in dict.fromkeys((row["length"], row["name"]) for row in rows):
        own = [row for row in rows if (row["length"], row["name"]) == (length, name)]
        both = [row["compress_ms"] + row["prefill_ms"] for row in own]
        parts = [total / alone[row["round"], row["context"]] for total, row in zip(both, own, strict=True)]
        columns = {
            **{key: [row[key] for row in own] for key in ("compress_ms", "prefill_ms", "unkept_ms")},
            "total_ms": both,
            "of_alone": parts,
        }
        found.append(
            {
                "length": length,
                "name": name,
                "tokens": median(row["tokens"] for row in own),
                "left": median(row["left"] for row in own),
                **{key: median(values) for key, values in columns.items()},
                "range": {key: [min(values), max(values)] for key, values in columns.items()},
            }
        )
    return sorted(found, key=lambda row: (row["length"], row["name"] != ALONE, row["name"]))


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(at zero, per unit) of the line with the least squared errors; a level one where all stand at one place."""
    middle = sum(x for x, _ in points) / len(points)
    height = sum(y for _, y in points) / len(points)
    spread = sum((x - middle) ** 2 for x, _ in points)
    slope = sum((x - middle) * (y - height) for x, y in points) / spread if spread else 0.0
    return height - slope * middle, slope


def break_even(rows: Sequence[Row]) -> dict[str, Any]:
    """From which length on shortening and reading what is left costs less than reading all.

    Lines through all measurements: reading costs a + b a token of the prompt, shortening c + d a token of the context,
    of which the share r stays. The sums are equal at n = c / (b (1 - r) - d) tokens of context; None where every token
    costs more to drop than to read. Reading grows faster than a line, so b is that of the lengths measured; an n below
    the shortest context is `extrapolated`, and says no more than that shortening paid at every length measured.
    """
    _, read = line([(row["prompt"], row["prefill_ms"]) for row in rows])
    around = median(row["prompt"] - row["left"] for row in rows)
    found: dict[str, Any] = {"prefill_ms_per_token": read, "how": " ".join((break_even.__doc__ or "").split())}
    for name in dict.fromkeys(row["name"] for row in rows if row["name"] != ALONE):
        own = [row for row in rows if row["name"] == name]
        fixed, each = line([(row["tokens"], row["compress_ms"]) for row in own])
        stays = sum(row["left"] for row in own) / sum(row["tokens"] for row in own)
        saved = read * (1 - stays) - each
        tokens = max(0.0, fixed / saved) if saved > 0 else None
        found[name] = {
            "compress_ms_fixed": fixed,
            "compress_ms_per_token": each,
            "stays": stays,
            "context_tokens": tokens,
            "extrapolated": tokens is not None and tokens < min(row["tokens"] for row in own),
            "prompt_tokens": None if tokens is None else tokens + around,
        }
    return found


def speeds(
    made: Sequence[Context], compressors: Mapping[str, Compressor], corpus: Corpus, rounds: int
) -> list[dict[str, Any]]:
    """Tokens per CPU second, question and all, with vectors kept: of every length, and under None of all contexts.

    A round has every compressor on every context; the figure of a round is tokens over seconds.
    """
    for one in compressors.values():
        for context in made:
            one.compress(context.bubble, corpus)
    spent: list[dict[tuple[str, int], float]] = []
    names = list(compressors)
    for number in range(rounds):
        seconds: dict[tuple[str, int], float] = {}
        for at, context in enumerate(made):
            turn = (number + at) % len(names)
            for name in names[turn:] + names[:turn]:
                seconds[name, at], _ = _compressing(compressors[name], context, corpus)
        spent.append(seconds)
    found = []
    for name in names:
        for length in [None, *dict.fromkeys(context.length for context in made)]:
            places = [at for at, context in enumerate(made) if length in (None, context.length)]
            tokens = sum(made[at].tokens for at in places)
            rates = [tokens / max(1e-9, sum(seconds[name, at] for at in places)) for seconds in spent]
            found.append({"name": name, "length": length, "rate": median(rates), "range": [min(rates), max(rates)]})
    return found
