"""What is evaluated, and how a selector is named in tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eval.chunks.data import Half, LeakGuard, strings_of
from eval.select.sets import Asked
from rag.errors import UsageError
from rag.registry import Spec, check, spec_name
from rag.types import Document

__all__ = ["HYBRID", "Settings", "label_of"]

HYBRID: Spec = {"use": "hybrid", "k": 100}
_WORDS = 4
"""A parameter with fewer words is not looked at: it cannot hold a question."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`chunker` None: the one of each set. Selectors come without their budget; `baseline` is one of them."""

    data: Path
    sets: tuple[str, ...] = ("chroma_chunking",)
    half: Half = "dev"
    selectors: tuple[Spec, ...] = ("top-k", "mmr")
    baseline: Spec = "top-k"
    retrievers: tuple[Spec, ...] = (HYBRID,)
    chunker: Spec | None = None
    embedder: Spec = "minilm"
    budgets: tuple[int, ...] = (200, 400, 800)
    counters: tuple[str, ...] = ("embedder", "generator")
    references: bool = True
    cache: Path | None = None
    resamples: int = 10_000
    seed: int = 0

    @property
    def labelled(self) -> dict[str, Spec]:
        """Label -> spec of every selector, the baseline first."""
        return {label_of(spec): spec for spec in (self.baseline, *self.selectors)}

    def check(self) -> None:
        """UsageError or ConfigError when a spec cannot be built. No model is loaded."""
        for label, spec in self.labelled.items():
            if not isinstance(spec, str) and "budget" in spec:
                raise UsageError(f"--selector {label}: leave the budget out; --budget sets it for all selectors")
            check("selector", spec, path="--selector")
        for spec in self.retrievers:
            check("retriever", spec, path="--retriever")
        if not self.budgets or min(self.budgets) < 1:
            raise UsageError(f"--budget: expected at least one number >= 1, not {list(self.budgets)}")

    def check_leaks(self, asked: Asked) -> None:
        """UsageError when texts in the parameters of a selector, or in files that they name, hold questions."""
        specs = [spec for spec in self.labelled.values() if not isinstance(spec, str)]
        texts = [text for spec in specs for text in strings_of(spec) if len(text.split()) >= _WORDS]
        if not texts:
            return
        documents = [Document(text=text, source=name) for name, text in asked.texts.items()]
        found = LeakGuard(asked.every, documents).leaks(texts)
        if found:
            raise UsageError(
                f"--selector: its parameters hold {len(found)} of the questions that it would be tested with "
                f"({', '.join(found[:3])}); they must be made without them"
            )


def label_of(spec: Spec) -> str:
    """`mmr`, or `mmr lam=0.5, pool=20`."""
    given = {} if isinstance(spec, str) else {key: value for key, value in spec.items() if key != "use"}
    return f"{spec_name(spec)} {', '.join(f'{key}={value}' for key, value in given.items())}".strip()
