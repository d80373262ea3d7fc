"""The five-line start: an immutable builder that checks every slot at the call."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rag.config import PipelineConfig
from rag.limits import Limits
from rag.registry import check

if TYPE_CHECKING:
    from rag.pipeline import Pipeline

__all__ = ["PipelineBuilder"]


@dataclass(frozen=True)
class PipelineBuilder:
    """Collects slots; every method returns a new builder. Unknown names and parameters fail where they are written.

    >>> PipelineBuilder().chunker("recursive", max_tokens=200).retriever("bm25").config.chunker
    {'use': 'recursive', 'max_tokens': 200}
    """

    config: PipelineConfig = field(default_factory=PipelineConfig.default)

    def chunker(self, name: str, **parameters: Any) -> PipelineBuilder:
        """How documents are cut."""
        return self._with("chunker", name, parameters)

    def embedder(self, name: str, **parameters: Any) -> PipelineBuilder:
        """How chunks and questions become vectors."""
        return self._with("embedder", name, parameters)

    def retriever(self, name: str, **parameters: Any) -> PipelineBuilder:
        """How candidates are found."""
        return self._with("retriever", name, parameters)

    def selector(self, name: str, **parameters: Any) -> PipelineBuilder:
        """How candidates become a context within a budget."""
        return self._with("selector", name, parameters)

    def compressor(self, name: str, **parameters: Any) -> PipelineBuilder:
        """How the context is shortened."""
        return self._with("compressor", name, parameters)

    def generator(self, name: str, **parameters: Any) -> PipelineBuilder:
        """How the answer is made."""
        return self._with("generator", name, parameters)

    def executor(self, name: str, **parameters: Any) -> PipelineBuilder:
        """Where files are read and cut: serial, threads or processes."""
        return self._with("executor", name, parameters)

    def limits(self, **limits: float) -> PipelineBuilder:
        """What one file may cost (`rag.limits.Limits`); the others stay as they are."""
        merged = Limits.from_dict({**self.config.limits, **limits})
        defaults = Limits().to_dict()
        given = {name: value for name, value in merged.to_dict().items() if value != defaults[name]}
        return replace(self, config=self.config.merged({"limits": given}, where="builder"))

    def describe(self) -> str:
        """The YAML of this pipeline."""
        return self.config.to_yaml()

    def build(self) -> Pipeline:
        """The pipeline; no model is loaded before it is used."""
        from rag.pipeline import Pipeline

        return Pipeline(self.config)

    def _with(self, slot: str, name: str, parameters: dict[str, Any]) -> PipelineBuilder:
        spec = {"use": name, **parameters} if parameters else name
        check(slot, spec, path=slot)
        return replace(self, config=self.config.merged({slot: spec}, where="builder"))
