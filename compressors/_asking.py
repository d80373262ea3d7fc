"""The language model that a compressor reads with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rag.errors import ConfigError
from rag.protocols import Generator, TextModel, TokenLoss

__all__ = ["Reader", "mean"]

_CURE = "set the slot generator to local, whose model runs in this process, or take a compressor without a model"


@dataclass(frozen=True)
class Reader:
    """The model behind a generator, for one compressor."""

    compressor: str
    model: TextModel

    @classmethod
    def of(cls, compressor: str, generator: Generator | None) -> Reader:
        """ConfigError that names the compressor and the cure when there is no model to ask."""
        model = generator.text_model if generator is not None else None
        if model is None:
            who = "there is no generator" if generator is None else f"{type(generator).__name__} has no language model"
            raise ConfigError(f"{compressor} reads with a language model, but {who}; {_CURE}")
        return cls(compressor, model)

    def losses(self, text: str, *, after: str = "") -> list[TokenLoss]:
        """As `TextModel.losses`; ConfigError for a model that does not tell them."""
        found = self.model.losses(text, after=after) if text else []
        if found is None:
            raise ConfigError(f"{self.compressor}: this pipeline's language model tells no likelihoods; {_CURE}")
        return found

    def mean(self, text: str, *, after: str = "") -> float:
        """The mean loss of a token of `text`, in nats; 0 for ""."""
        return mean([nats for _, _, nats in self.losses(text, after=after)])


def mean(values: Sequence[float]) -> float:
    """0 for none."""
    return sum(values) / len(values) if values else 0.0
