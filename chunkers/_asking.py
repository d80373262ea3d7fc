"""What chunkers share that ask the pipeline's language model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chunkers._base import SizedChunker
from rag.errors import ConfigError
from rag.protocols import Generator, TextModel, service
from rag.types import Chunk, Document

__all__ = ["AskingChunker", "model_of"]


@dataclass(frozen=True, kw_only=True)
class AskingChunker(SizedChunker):
    """Base of chunkers whose chunks depend on a language model: the one behind `generator`."""

    generator: Generator | None = service(default=None)

    @property
    def shaped_by(self) -> str:
        return repr(self.generator) if self.generator is not None else ""

    def chunk(self, document: Document) -> list[Chunk]:
        return self.decide(document)[0]

    @abstractmethod
    def decide(self, document: Document) -> tuple[list[Chunk], Mapping[str, Any] | None]:
        """The chunks, and what the model was asked and said."""


def model_of(chunker: str, generator: Generator | None, instead: str) -> TextModel | None:
    """The model behind a generator, None without one; ConfigError where the generator has none.

    `instead` names the chunkers that do without.
    """
    model = generator.text_model if generator is not None else None
    if generator is not None and model is None:
        raise ConfigError(
            f"{chunker}: the generator {type(generator).__name__} has no language model to ask; "
            f"set the slot generator to openai or local, or use the chunker {instead}"
        )
    return model
