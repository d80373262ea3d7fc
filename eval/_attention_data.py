"""Text and a model's own attention on it, for training and testing selections: rows of queries, all keys and values.

Only development halves are read. Documents are split again, by a hash of their name, into `train` and `held`; books are
`other`, of which nothing is trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from eval._keep_data import part_of
from eval.bench._attention_prompts import cases_of, prose
from eval.bench._kv_prompts import Loaded
from eval.chunks.data import half_of
from eval.sets import read_rows
from rag.engine.attention import Kept, Memory, Selection, Sparse, Step, read_sparsely

__all__ = ["Text", "other_texts", "recorded", "texts_of"]

SETS = ("squad_long", "covidqa")


@dataclass(frozen=True, kw_only=True)
class Text:
    """`ends`: whether a sentence ends with the token; `evidence`: the tokens that hold what the last one asks for."""

    ids: list[int]
    ends: list[bool] = field(default_factory=list)
    evidence: tuple[int, int] | None = None


def texts_of(loaded: Loaded, data: Path, part: str, *, tokens: int, count: int) -> list[Text]:
    """`count` texts of so many tokens, `train` or `held`, in turns from each of SETS, one from a document."""
    found: list[Text] = []
    for row in _in_turns([_documents(data / name, part) for name in SETS]):
        text = _cut(loaded, row["text"], tokens)
        if text is not None:
            found.append(text)
        if len(found) == count:
            break
    return found


def other_texts(loaded: Loaded, data: Path, *, tokens: int, count: int) -> list[Text]:
    """Books, and books that a question about a needle in them follows."""
    found = [Text(ids=ids) for ids in prose(loaded, data, tokens=tokens, count=count)]
    cases = cases_of(
        loaded, data, "needle", tokens=tokens, count=count, seed=0, near=lambda _, texts: [0.0] * len(texts)
    )
    return found + [Text(ids=case.ids, evidence=case.spans[case.evidence[0]]) for case in cases]


def _documents(folder: Path, part: str) -> list[dict[str, Any]]:
    wanted = "val" if part == "held" else "train"
    rows = [row for row in read_rows(folder / "corpus.jsonl") if half_of(row["doc_id"]) == "dev"]
    return [row for row in rows if part_of(row["doc_id"]) == wanted]


def _in_turns(sets: Sequence[Sequence[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for at in range(max(map(len, sets), default=0)):
        yield from (rows[at] for rows in sets if at < len(rows))


def _cut(loaded: Loaded, text: str, tokens: int) -> Text | None:
    """Sentences are tokenised alone, so that their ends are known. None if the text is shorter."""
    from rag.text import sentence_spans
    from rag.types import Document

    text = text[: 8 * tokens]
    ids: list[int] = []
    ends: list[bool] = []
    last = 0
    for span in sentence_spans(Document(text=text, source="")):
        stop = len(text[: span.end].rstrip())  # the space behind is of the next
        more = loaded.encode(text[last:stop])
        ids += more
        ends += [False] * (len(more) - 1) + [True] * bool(more)
        last = stop
        if len(ids) >= tokens:
            return Text(ids=ids[:tokens], ends=ends[:tokens])
    return None


@dataclass(frozen=True, kw_only=True)
class _Recorder(Selection):
    """Keeps the queries of `rows`, and all keys and values, of every layer, and changes nothing."""

    name: ClassVar[str] = "recorder"
    rows: Tensor
    seen: dict[str, Tensor] = field(default_factory=dict)

    def select(self, step: Step, memory: Memory) -> Kept | None:
        given = {"query": step.query[0, :, self.rows], "key": step.key[0], "value": step.value[0]}
        self.seen.update({f"{step.layer}.{name}": one.half().contiguous().clone() for name, one in given.items()})
        return None


def recorded(loaded: Loaded, text: Text, rows: Tensor, cache: Path) -> Path:
    """The file with "LAYER.query" (heads, rows, d), "LAYER.key" and "LAYER.value" (kv heads, tokens, d), float16. One
    that is there is not made again."""
    from safetensors.torch import save_file

    key = hashlib.sha256(repr((loaded.model.fingerprint, text.ids, rows.tolist())).encode()).hexdigest()[:16]
    path = cache / f"attention-{key}.safetensors"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        probe = _Recorder(rows=rows)
        with torch.inference_mode(), read_sparsely(loaded.model.model, Sparse(probe, "gather")):
            loaded.model.run(text.ids, loaded.model.new_cache(len(text.ids)))
        save_file(probe.seen, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    return path
