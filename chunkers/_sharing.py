"""Services that remember: several chunkers that work on one document tokenise and embed it once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rag.protocols import Embedder, TokenCounter

if TYPE_CHECKING:
    from rag.protocols import Vectors

__all__ = ["KeptCounter", "KeptEmbedder", "needs", "with_services"]


class KeptCounter(TokenCounter):
    """The same counter; a text that it has seen is not tokenised again. For one document, then thrown away."""

    def __init__(self, inner: TokenCounter) -> None:
        self.name, self.limit, self.additive = inner.name, inner.limit, inner.additive
        self._inner = inner
        self._counts: dict[str, int] = {}
        self._offsets: dict[str, list[tuple[int, int]]] = {}

    def count(self, text: str) -> int:
        if text not in self._counts:
            self._counts[text] = self._inner.count(text)
        return self._counts[text]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        if text not in self._offsets:
            self._offsets[text] = self._inner.offsets(text)
        return self._offsets[text]


class KeptEmbedder(Embedder):
    """The same embedder; a text that it has seen is not embedded again. `texts` counts those that were."""

    def __init__(self, inner: Embedder, counter: TokenCounter) -> None:
        self._inner = inner
        self._counter = counter
        self._rows: dict[str, Any] = {}
        self.matches_meaning = inner.matches_meaning  # type: ignore[misc]  # a constant of the class there

    @property
    def texts(self) -> int:
        """How many texts the encoder has read."""
        return len(self._rows)

    @property
    def light(self) -> Embedder:
        return self._inner.light

    @property
    def dimension(self) -> int:
        return self._inner.dimension

    @property
    def counter(self) -> TokenCounter:
        return self._counter

    @property
    def fingerprint(self) -> str:
        return self._inner.fingerprint

    def agrees_with(self, fingerprint: str) -> bool:
        return self._inner.agrees_with(fingerprint)

    def embed(self, texts: Sequence[str]) -> Vectors:
        import numpy as np

        fresh = [text for text in dict.fromkeys(texts) if text not in self._rows]
        if fresh:
            self._rows.update(zip(fresh, self._inner.embed(fresh), strict=True))
        if not texts:
            return self._inner.embed([])
        return np.stack([self._rows[text] for text in texts])

    def embed_question(self, text: str) -> Vectors:
        return self._inner.embed_question(text)


def with_services(plugin: Any, services: Mapping[str, Any]) -> Any:
    """The plugin with these services in place of its own, and so its nested plugins."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(plugin):
        value = getattr(plugin, field.name)
        if field.metadata.get("service") and field.name in services and value is not None:
            changes[field.name] = services[field.name]
        elif "nested" in field.metadata and value is not None:
            many = isinstance(value, tuple)
            inner = [with_services(one, services) for one in (value if many else (value,))]
            changes[field.name] = tuple(inner) if many else inner[0]
    return dataclasses.replace(plugin, **changes) if changes else plugin


def needs(plugin: Any, service: str) -> bool:
    """True when the plugin, or one inside it, was given that service."""
    values = [(field, getattr(plugin, field.name)) for field in dataclasses.fields(plugin)]
    if any(field.metadata.get("service") and field.name == service and value is not None for field, value in values):
        return True
    inner = [value for field, value in values if "nested" in field.metadata and value is not None]
    return any(needs(one, service) for value in inner for one in (value if isinstance(value, tuple) else (value,)))
