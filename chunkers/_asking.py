"""The language model that a chunker may ask."""

from __future__ import annotations

from rag.errors import ConfigError
from rag.protocols import Generator, TextModel

__all__ = ["model_of"]


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
