"""Questions for `rag bench road`: bubbles of whole chunks that hold the answer, from public sets or the sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eval.bench._compress_contexts import opened
from eval.bench._report import Settings
from rag.text import assemble

if TYPE_CHECKING:
    from rag.index import Index
    from rag.pipeline import Pipeline
    from rag.protocols import TokenCounter
    from rag.types import Bubble

__all__ = ["SETS", "Asked", "Road", "asked_of", "pipeline_of", "roads"]

SETS = ("hotpotqa_200", "squad_long")
CHARS = 12_000
"""Characters of a document that are indexed, from its start."""
CHUNK_TOKENS = 200
_LONGEST = 80
"""Characters of an answer: longer ones are sentences, and measure copying."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question, an accepted answer, and the texts that it is asked about, by file."""

    text: str
    answer: str
    files: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Road:
    """Whole chunks for a question whose answer stands in them."""

    set: str
    answer: str
    bubble: Bubble


def asked_of(settings: Settings, count: int) -> dict[str, list[Asked]]:
    """Set -> up to `count` questions of its development half with a short answer; the sample where sets are absent."""
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    data = settings.data or (beside if all((beside / name).is_dir() for name in SETS) else None)
    if data is None:
        from rag.sample import documents_dir, questions

        files = {path.name: path.read_text(encoding="utf-8") for path in sorted(documents_dir().glob("*.md"))}
        asked = [(one.text, one.answers) for one in questions() if one.answers]
        return {"sample": [Asked(text=text, answer=_short(answers), files=files) for text, answers in asked[:count]]}
    return {name: _of_set(data / name, count) for name in SETS}


def _of_set(folder: Path, count: int) -> list[Asked]:
    from eval.chunks.data import half_of
    from eval.sets import read_rows

    texts = {row["doc_id"]: row["text"][:CHARS] for row in read_rows(folder / "corpus.jsonl")}
    places: dict[str, list[tuple[str, int]]] = {}
    for row in read_rows(folder / "evidence.jsonl"):
        places.setdefault(row["query_id"], []).append((row["doc_id"], row["end"]))
    found: list[Asked] = []
    spread: dict[str, int] = {}
    for row in read_rows(folder / "queries.jsonl"):
        own, answer = places.get(row["query_id"], []), _short(row.get("answers") or ())
        if half_of(row["query_id"]) != "dev" or not answer or not own or any(end > CHARS for _, end in own):
            continue
        ids = row.get("candidates") or [doc_id for doc_id, _ in own]
        if not row.get("candidates"):  # long documents: a few questions of each
            spread[own[0][0]] = spread.get(own[0][0], 0) + 1
            if spread[own[0][0]] > 3:
                continue
        files = {f"{doc_id}.txt": texts[doc_id] for doc_id in ids if doc_id in texts}
        found.append(Asked(text=row["text"], answer=answer, files=files))
        if len(found) == count:
            break
    return found


def _short(answers: Sequence[str]) -> str:
    return min((one for one in answers if len(one) <= _LONGEST), key=lambda one: (len(one), one), default="")


def pipeline_of(settings: Settings) -> Pipeline:
    """With the embedder of `settings.config`, MiniLM without one."""
    from rag import Pipeline, PipelineConfig

    config = PipelineConfig.from_yaml(settings.config) if settings.config is not None else PipelineConfig()
    chunker = {"use": "recursive", "max_tokens": CHUNK_TOKENS}
    return Pipeline(PipelineConfig.from_dict({"chunker": chunker, "embedder": config.embedder, "retriever": "hybrid"}))


@contextmanager
def roads(
    pipeline: Pipeline, name: str, asked: Sequence[Asked], budget: int, counter: TokenCounter
) -> Iterator[tuple[Index, list[Road]]]:
    """An index of all texts of a set, and for each question the best hits that fit into `budget` tokens, where they
    have its answer."""
    from rag.registry import build

    files = {file: text for one in asked for file, text in one.files.items()}
    services = {"counter": counter, "embedder": pipeline.embedder}
    selector = build("selector", {"use": "top-k", "budget": budget}, services=services)
    with opened(pipeline, files) as index:
        made = []
        for one in asked:
            bubble = selector.select(one.text, pipeline.search(one.text, index, k=20), index.corpus)
            if one.answer and one.answer.lower() in assemble(bubble.texts).lower():
                made.append(Road(set=name, answer=one.answer, bubble=bubble))
        yield index, made
