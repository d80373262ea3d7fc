"""What is compressed, how far, and with what."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from eval.chunks.data import Half
from eval.select.settings import HYBRID, label_of
from rag.errors import UsageError
from rag.registry import Spec, check

__all__ = ["Settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The context is what `selector` takes of the hits of `retriever` within `budget` tokens of the generator.

    `generator`: whose tokens are counted and, where a compressor needs one, whose model is asked.
    Compressors come without target and rate. `baseline`: one of them, or of the references. `likelihood`: how many
    questions with a short answer per set are asked of the local model, 0 for none.
    """

    data: Path
    sets: tuple[str, ...] = ("chroma_chunking",)
    half: Half = "dev"
    compressors: tuple[Spec, ...] = ("sentence-prune",)
    baseline: str = "(top-k)"
    rates: tuple[float, ...] = (0.5, 0.25, 0.125)
    budget: int = 1600
    retriever: Spec = field(default_factory=lambda: HYBRID)
    selector: Spec = "top-k"
    embedder: Spec = "minilm"
    generator: Spec = "local"
    likelihood: int = 0
    questions: int | None = None
    cache: Path | None = None
    resamples: int = 10_000
    seed: int = 0

    @property
    def labelled(self) -> dict[str, Spec]:
        """Label -> spec of every compressor."""
        return {label_of(spec): spec for spec in self.compressors}

    def check(self) -> None:
        """UsageError or ConfigError when something cannot be built. No model is loaded."""
        for label, spec in self.labelled.items():
            if not isinstance(spec, str) and {"target", "rate"} & set(spec):
                raise UsageError(f"--compressor {label}: leave target and rate out; --rate sets them for all")
            check("compressor", spec, path="--compressor")
        check("selector", self.selector, path="--selector")
        check("retriever", self.retriever, path="--retriever")
        check("generator", self.generator, path="--generator")
        if not self.rates or not all(0.0 < rate < 1.0 for rate in self.rates):
            raise UsageError(f"--rate: expected numbers above 0 and below 1, not {list(self.rates)}")
