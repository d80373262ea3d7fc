"""Sparse attention in the generator local: what a config may say, the pieces as units, prefixes, drafts, statistics."""

from __future__ import annotations

import dataclasses
import random
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest

from rag.errors import ConfigError
from rag.generators._sparse import EXECUTORS, SELECTIONS, build_selection
from rag.generators.local import LocalGenerator
from rag.spans.pieces import scores_of
from rag.types import Bubble, Chunk, CompressedContext, Decision, Document, Hit, Piece, Span

QUESTION = "Which hour is told here?"


def _book(number: int) -> Document:
    words = random.Random(number)
    rows = (f"At {words.randrange(24)} the {words.choice('abcdefgh')} rings {words.randrange(99)}." for _ in range(18))
    return Document(text=" ".join(rows), source=f"{number}.txt")


BOOKS = {one.id: one for one in map(_book, range(6))}


class Library:
    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory

    def document(self, doc_id: str) -> Document:
        return BOOKS[doc_id]


def pieces(*numbers: int, scores: tuple[float, ...] = ()) -> list[Piece]:
    books = [list(BOOKS.values())[number] for number in numbers]
    made = []
    for at, book in enumerate(books):
        span = Span(0, len(book.text))
        score = scores[at] if scores else None
        name = f"{book.id}:0-{span.end}"
        made.append(Piece(chunk_id=name, doc_id=book.id, span=span, text=book.text, kept=(span,), score=score))
    return made


def context(*given: Piece, question: str = QUESTION) -> CompressedContext:
    return CompressedContext(question=question, pieces=given, token_count=0, source_token_count=0, compressor="none")


ALL = context(*pieces(0, 1, 2, 3, 4, 5, scores=(0.1, 0.9, 0.2, 0.8, 0.3, 0.7)))
_QUEST = {"use": "quest", "budget": 192, "dense_layers": 0, "prefill": True, "q_block": 64}
SMALL: dict[str, dict[str, Any]] = {
    "sink-recent": {"budget": 260, "q_block": 64},
    "chunk-block": {"density": 0.3, "anchor": 128, "floor": 1},
    "dhsa": {"budget_prefill": 320, "budget_decode": 320},
    "dma": {"keep_window_size": 256},
    "tokenselect": {"top_k": 64, "n_init": 16, "n_local": 64, "q_block": 64},
    "quest": {"budget": 192, "dense_layers": 0, "prefill": True, "q_block": 64},
    "flexprefill": {"gamma": 0.6, "min_budget": 128, "block_size": 64},
    "hip": {"sink": 16, "window": 64, "chunk_sizes": [16, 4], "keeps": [128, 64], "q_block": 16},
    "hisa": {"top_k": 192, "top_m": 8, "block_size": 32, "q_block": 32},
    "longheads": {"attention_length": 256, "chunk_size": 64, "q_block": 64},
    "chunkllm": {"budget": 256, "trained": False},
    "sparda": {"budget": 256, "trained": False},
    "token-skip": {"keep": 0.5, "start": 0, "every": 1, "least": 64},
    "compact": {"inner": _QUEST, "q_block": 128},
    "mac": {"inner": _QUEST},
    "share": {"inner": _QUEST, "start": 0},
}  # fmt: skip
"""Parameters that leave something out of a prompt of about 2,600 tokens."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.unit.test_generators_local import tiny_llama

    return tiny_llama(tmp_path_factory.mktemp("tiny"))


def local(folder: Path, attention: Any, **given: Any) -> LocalGenerator:
    base: dict[str, Any] = {"model": str(folder), "dtype": "float32", "max_new_tokens": 8, "attention": attention}
    return LocalGenerator(**{**base, **given})


def asked(generator: LocalGenerator, read: CompressedContext = ALL, directory: Path | None = None) -> Any:
    return generator.generate(read, Library(directory))  # type: ignore[arg-type]


def test_every_selection_has_a_name_and_its_parameters() -> None:
    pytest.importorskip("torch")
    import rag.engine.attention as room
    from rag.engine.attention.executors import ExecutorName
    from rag.engine.attention.sparse import Sparse

    assert set(get_args(ExecutorName)) == set(EXECUTORS)
    kinds = {}
    for file in Path(str(room.__file__)).parent.glob("[a-z]*.py"):
        module = import_module(f"rag.engine.attention.{file.stem}")
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, room.Selection) and kind.__module__ == module.__name__:
                kinds[kind.name] = kind
    assert set(kinds) == set(SELECTIONS) - {"auto"} == {*SMALL, "dense"}
    for name, kind in kinds.items():
        assert {one.name for one in dataclasses.fields(kind)} == set(SELECTIONS[name]), name
        assert type(build_selection({"use": name, **SMALL.get(name, {})})) is kind
        Sparse(build_selection(name))


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("sparse", "must be one of dense, auto, sink-recent"),
        ({"density": 0.5}, "must be one of dense"),
        ({"use": "quest", "density": 0.5}, "quest has no parameter 'density'; parameters: budget, page_size"),
        ({"use": "quest", "executor": "fast"}, "must be one of auto, dense_mask, gather, flex, triton, not 'fast'"),
        ({"use": "mac", "inner": "auto"}, "must be one of dense, sink-recent"),
        ({"use": "mac", "inner": {"use": "quest", "executor": "gather"}}, "quest has no parameter 'executor'"),
        ({"use": "quest", "budget": {"a": 1}}, "budget cannot be"),
    ],
)
def test_a_config_is_told_what_is_allowed(spec: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        LocalGenerator(attention=spec)


def test_ranges_and_types_are_told_too() -> None:
    pytest.importorskip("torch")
    for spec in ({"use": "chunk-block", "density": 0}, {"use": "quest", "budget": "many"}):
        with pytest.raises(ConfigError, match=f"local: attention {spec['use']}"):
            build_selection(spec)


def test_a_batch_is_refused_or_written_one_by_one(folder: Path) -> None:
    with pytest.raises(ConfigError, match="batch shared reads several questions in one pass"):
        LocalGenerator(attention="quest", batch="shared")
    assert local(folder, "dense").batches
    generator = local(folder, {"use": "quest", **SMALL["quest"]})
    assert not generator.batches
    both: Any = generator.generate_many([ALL, ALL], Library())  # type: ignore[arg-type]
    assert [one.text for one in both] == [asked(generator).text] * 2


def test_scores_are_those_of_the_ledger_where_it_tells_of_all() -> None:
    def bubble(*decisions: Decision) -> Bubble:
        return Bubble(question="", hits=hits, token_count=0, budget=0, decisions=decisions)

    def decision(at: int, action: str, relevance: float) -> Decision:
        rest: dict[str, Any] = {"gain": 0.0, "redundancy": 0.0, "tokens": 1, "reason": ""}
        return Decision(chunk_id=hits[at].chunk.id, action=action, relevance=relevance, **rest)

    chunks = [Chunk(doc_id="d", span=Span(at, at + 1), text="x", token_count=1) for at in (0, 1)]
    hits = tuple(Hit(chunk=one, score=5.0 + at, rank=1, retriever="") for at, one in enumerate(chunks))
    first = decision(0, "take", 0.2)
    assert scores_of(bubble(first)) == [5.0, 6.0]
    assert scores_of(bubble(first, decision(1, "skip-budget", 0.9))) == [5.0, 6.0]
    told = [decision(1, "take", 0.1), decision(1, "take", 0.4), decision(1, "skip-budget", 0.9)]
    assert scores_of(bubble(first, *told)) == [0.2, 0.4]


@pytest.mark.slow
@pytest.mark.parametrize("reuse", ["none", "prefix", "chunk"])
def test_everything_kept_is_dense(folder: Path, tmp_path: Path, reuse: Any) -> None:
    more: dict[str, Any] = {"reuse": reuse, "speculate": "none"}
    dense = asked(local(folder, "dense", **more), directory=tmp_path)
    assert (dense.stats.attention, dense.stats.density) == ("sdpa", 1.0)
    assert "attention" not in dense.notes
    for spec in (
        {"use": "quest", "budget": 8192, "prefill": True, "dense_layers": 0},
        {"use": "chunk-block", "anchor": 8192},
        {"use": "sink-recent", "budget": 8192},
    ):
        made = asked(local(folder, spec, **more), directory=tmp_path)
        assert made.text == dense.text
        assert made.stats.new_tokens == dense.stats.new_tokens
        assert made.stats.density == 1.0
        assert made.stats.attention.startswith(spec["use"])
        assert {row["read"] for row in made.notes["segments"]} == {1.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_selection_reads_prompts_of_all_kinds(folder: Path, tmp_path: Path, name: str) -> None:
    spec, texts = {"use": name, **SMALL[name]}, []
    for reuse in ("none", "prefix", "chunk"):
        made = asked(local(folder, spec, reuse=reuse), directory=tmp_path)
        stats, told = made.stats, made.notes["attention"]
        assert stats.attention == f"{told['selection']}, {told['executor']}"
        assert "gather" in told["executor"]
        assert stats.attention.startswith(name)
        assert 0 < stats.density < 1
        assert 0 < told["prefill_density"] <= 1
        assert 0 < told["decode_density"] <= 1
        assert stats.drafted_tokens == 0
        assert "off" in told["drafts"]
        assert "dense_masks" not in told
        reads = [row["read"] for row in made.notes["segments"]]
        assert len(reads) == 8
        assert all(0 <= one <= 1 for one in reads)
        texts.append(made.text)
    assert texts[0] == texts[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_prefixes_of_sparse_prompts_change_no_answer(folder: Path, name: str) -> None:
    import torch

    def logits(generator: LocalGenerator, read: CompressedContext) -> Any:
        plan = generator._plan(read, Library())  # type: ignore[arg-type]
        return generator._read(plan.parts, Library(), generator._sparse(plan))  # type: ignore[arg-type]

    spec = {"use": name, **SMALL[name]}
    other = context(*(dataclasses.replace(one, score=-(one.score or 0)) for one in ALL.pieces), question="And who?")
    warm = local(folder, spec)
    logits(warm, ALL)
    again, cold = logits(warm, other), logits(local(folder, spec), other)
    assert again.reused >= 2048
    assert cold.reused == 0
    assert torch.equal(again.logits, cold.logits)
    pool = warm._decoder.pool
    dense = logits(dataclasses.replace(warm, attention="dense"), other)
    assert dense.reused == 0
    assert pool is not None
    assert pool.salt == warm._decoder.required.fingerprint.encode()


@pytest.mark.slow
def test_the_prior_says_what_is_read(folder: Path) -> None:
    spec = {
        "use": "chunk-block",
        "density": 0.05,
        "anchor": 0,
        "floor": 2,
        "question_dense": False,
        "context": "own",
        "split": 64,
    }
    rows = asked(local(folder, spec)).notes["segments"]
    assert [row["part"] for row in rows if row["read"] == 0] == ["1", "3", "5", "6"]
    assert [row["part"] for row in rows if row["read"] == 1] == ["start", "2", "4", "question"]
    bare = context(*pieces(0, 1, 2, 3, 4, 5))
    assert sum(row["read"] for row in asked(local(folder, {**spec, "density": 0.4}), bare).notes["segments"]) < 6


@pytest.mark.slow
def test_auto_asks_the_calibration(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from rag.generators import _sparsely

    generator, calls = local(folder, {"use": "auto", "table": "mine.json"}), []

    def choose(model: str, length: int, table: str = "") -> dict[str, Any] | None:
        calls.append((model, table))
        return {"use": "sink-recent", "budget": 300, "q_block": 64} if length > 1500 else None

    monkeypatch.setattr(_sparsely, "choose", choose)
    made = asked(generator)
    assert made.stats.attention == "sink-recent(300), gather"
    assert calls == [(generator._decoder.required.fingerprint, "mine.json")]
    short = asked(generator, context(*pieces(0)))
    assert (short.stats.attention, short.stats.density) == ("sdpa", 1.0)
    assert short.notes["attention"]["selection"] == "dense"
    assert short.stats.drafted_tokens >= 0


@pytest.mark.slow
def test_an_audit_measures_sparse_attention_too(folder: Path, tmp_path: Path) -> None:
    for reuse in ("none", "chunk"):
        exact = asked(local(folder, {"use": "sink-recent", "budget": 8192}, audit=True, reuse="none"))
        assert exact.stats.measured_deviation is not None
        assert exact.stats.measured_deviation < 1e-6
        few = local(folder, {"use": "sink-recent", "budget": 260}, audit=True, reuse=reuse)
        strays = asked(few, directory=tmp_path)
        assert strays.stats.measured_deviation is not None
        assert strays.stats.measured_deviation > 1e-3
