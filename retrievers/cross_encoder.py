"""Reranking with a cross-encoder (Nogueira & Cho, arXiv 1901.04085): question and chunk read together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from rag.errors import ConfigError, MissingError, missing_extra
from rag.protocols import Corpus, nested
from rag.types import Chunk
from retrievers._rerank import Reranker, Scored, Scorer, check_numbers


@dataclass(frozen=True, kw_only=True)
class CrossEncoderRetriever(Reranker):
    """Scores each pair of question and chunk with a sentence-transformers CrossEncoder.

    `model` is a folder or a hub id, such as cross-encoder/ms-marco-MiniLM-L6-v2; no model is bundled, so there is no
    default. It is loaded at the first search: from the local cache, else downloaded; safetensors only, no remote
    code. The model must give one number a pair. It is taken before the model's own activation and goes through the
    logistic function, so scores lie in [0, 1] whatever the model, and are 1 / (1 + exp(-logit)).

    A pair over the model's limit is cut there: then `Hit.parts["cross-encoder.truncated"]` is the number of tokens
    that were not read, else 0. `batch_size` pairs are read at a time. With `weight` 1 the score is the model's.

    Deviations: no training; the first stage may keep a share (`weight` under 1).
    """

    name: ClassVar[str] = "cross-encoder"
    natural: ClassVar[bool] = True

    retriever: Any = nested("retriever", "hybrid")
    k: int = 40
    model: str = ""
    pool: int = 50
    weight: float = 1.0
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.batch_size < 1:
            raise ConfigError(f"cross-encoder: batch_size must be >= 1, not {self.batch_size}")

    def scorer(self, corpus: Corpus) -> Scorer:
        if not self.model:
            raise ConfigError(
                "cross-encoder: model is empty, and none is bundled. Set model to a folder or to a hub id such as "
                "cross-encoder/ms-marco-MiniLM-L6-v2, or take late-interaction or rule-rerank, which need no other "
                "model than the embedder"
            )
        return self._scored

    def _scored(self, question: str, chunks: Sequence[Chunk]) -> list[Scored]:
        pairs = [(question, chunk.embed_text) for chunk in chunks]
        cut = _cut_tokens(self._loaded, pairs)
        return [
            (_logistic(value), {"cross-encoder.truncated": float(lost)})
            for value, lost in zip(_logits(self._loaded, pairs, self.batch_size), cut, strict=True)
        ]

    @cached_property
    def _loaded(self) -> Any:
        return load_cross_encoder(self.model)


def load_cross_encoder(model: str) -> Any:
    """The CrossEncoder of a folder or a hub id; MissingError that says what to do when it cannot be had."""
    try:
        from sentence_transformers import CrossEncoder
    except ImportError as error:
        raise missing_extra("sentence-transformers", "local", "retriever cross-encoder") from error
    folder = Path(model).expanduser()
    name, failure = (str(folder), None) if folder.is_dir() else (model, None)
    for local in (True,) if folder.is_dir() else (True, False):  # the cache first: then no network is asked
        try:
            loaded = CrossEncoder(name, local_files_only=local, model_kwargs={"use_safetensors": True})
            break
        except Exception as error:  # whatever the hub client or transformers raises
            failure = error
    else:
        raise MissingError(
            f"cross-encoder: model {model!r} could not be loaded ({failure}). Set model to a folder with a "
            "CrossEncoder in safetensors, or to a hub id that is in the local cache; to fill the cache, run once "
            f"with the network reachable: hf download {model}"
        ) from failure
    labels = int(getattr(loaded, "num_labels", 1))
    if labels != 1:
        raise ConfigError(f"cross-encoder: model {model!r} gives {labels} numbers a pair; one that gives 1 is needed")
    return loaded


def _logits(model: Any, pairs: Sequence[tuple[str, str]], batch_size: int) -> list[float]:
    """What the last layer says, before any activation."""
    values = model.predict(list(pairs), batch_size=batch_size, show_progress_bar=False, activation_fn=_unchanged)
    return [float(value) for value in values]


def _unchanged(values: Any) -> Any:
    return values


def _cut_tokens(model: Any, pairs: Sequence[tuple[str, str]]) -> list[int]:
    """How many tokens of each pair are over the model's limit; zeros where it has none."""
    limit = getattr(model, "max_seq_length", None) or getattr(model, "max_length", None)  # new and old name
    if not limit:
        return [0] * len(pairs)
    questions, texts = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    coded = model.tokenizer(questions, texts, truncation=False, verbose=False)["input_ids"]
    return [max(0, len(ids) - int(limit)) for ids in coded]


def _logistic(value: float) -> float:
    """1 / (1 + exp(-value)), without overflow; nan stays nan."""
    if value >= 0:
        return 1.0 / (1.0 + math.exp(-value))
    return math.exp(value) / (1.0 + math.exp(value))
