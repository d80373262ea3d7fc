"""Embedders around the embedder: one remembers vectors on disk, one counts what is asked of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.protocols import Embedder
from rag.spans.around import AroundEmbedder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rag.protocols import Vectors

__all__ = ["CachedEmbedder", "CountingEmbedder"]

_KEY_BYTES = 16
_COUNTED = ("calls", "texts", "characters", "tokens", "cpu_seconds")
_BATCH = 512  # texts between two looks at the clock and two writes to disk


@dataclass(frozen=True, kw_only=True)
class CachedEmbedder(AroundEmbedder):
    """Embeds every text once; vectors lie in `folder` (numpy files named by fingerprint, keys beside vectors).

    `folder` None remembers in memory only. A file that cannot be read is ignored: its vectors are made again.
    """

    inner: Embedder
    folder: Path | None = None
    _known: dict[bytes, NDArray[np.float32]] = field(default_factory=dict, repr=False)
    _loaded: list[bool] = field(default_factory=list, repr=False)

    @property
    def light(self) -> Embedder:
        return self

    def embed(self, texts: Sequence[str]) -> Vectors:
        return self._looked_up([_key(text) for text in texts], texts, self.inner.embed)

    def embed_within(self, pieces: Sequence[tuple[str, int, int]]) -> Vectors:
        keys = [_key(f"within\0{start}\0{end}\0{text}") for text, start, end in pieces]
        return self._looked_up(keys, pieces, self.inner.embed_within)

    def embed_question(self, text: str) -> Vectors:
        self._load()
        key = _key("question\0" + text)
        if key not in self._known:
            self._remember([key], self.inner.embed_question(text)[None, :])
        return self._known[key]

    def _looked_up(
        self, keys: Sequence[bytes], wanted: Sequence[Any], embed: Callable[[list[Any]], Vectors]
    ) -> Vectors:
        """(len(keys), dimension) the vectors under `keys`; those that are not known are made of `wanted`."""
        import numpy as np

        self._load()
        places = dict(zip(keys, wanted, strict=True))
        missing = [key for key in places if key not in self._known]
        for at in range(0, len(missing), _BATCH):
            part = missing[at : at + _BATCH]
            self._remember(part, embed([places[key] for key in part]))
        rows = [self._known[key] for key in keys]
        return np.stack(rows) if rows else np.zeros((0, self.dimension), dtype=np.float32)

    def _remember(self, keys: Sequence[bytes], vectors: Vectors) -> None:
        import numpy as np

        self._known.update(zip(keys, vectors, strict=True))
        if self.folder is None:
            return
        home = self._home
        home.mkdir(parents=True, exist_ok=True)
        name = hashlib.blake2b(b"".join(keys), digest_size=8).hexdigest()
        np.save(home / f"{name}.keys.npy", np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, _KEY_BYTES))
        np.save(home / f"{name}.npy", vectors)

    def _load(self) -> None:
        import numpy as np

        if self._loaded:
            return
        self._loaded.append(True)
        if self.folder is None or not self._home.is_dir():
            return
        for path in sorted(self._home.glob("*.keys.npy")):
            try:
                keys = np.load(path, allow_pickle=False)
                vectors = np.load(path.with_name(path.name.replace(".keys", "")), allow_pickle=False)
            except (OSError, ValueError, EOFError):
                continue
            if keys.ndim == 2 and vectors.shape == (len(keys), self.dimension):
                self._known.update((key.tobytes(), vector) for key, vector in zip(keys, vectors, strict=True))

    @property
    def _home(self) -> Path:
        assert self.folder is not None  # noqa: S101  # for the type checker: callers look first
        return self.folder / hashlib.blake2b(self.fingerprint.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, kw_only=True)
class CountingEmbedder(AroundEmbedder):
    """Another embedder that notes how often it was asked, with what amount of text, and the CPU seconds it took."""

    inner: Embedder
    counts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_COUNTED, 0.0))

    @property
    def light(self) -> Embedder:
        light = self.inner.light
        return self if light is self.inner else CountingEmbedder(inner=light, counts=self.counts)

    def embed(self, texts: Sequence[str]) -> Vectors:
        return self._counted(texts, lambda: self.inner.embed(texts))

    def embed_within(self, pieces: Sequence[tuple[str, int, int]]) -> Vectors:
        return self._counted([text for text, _, _ in pieces], lambda: self.inner.embed_within(pieces))

    def embed_question(self, text: str) -> Vectors:
        return self._counted([text], lambda: self.inner.embed_question(text))

    def _counted(self, texts: Sequence[str], call: Any) -> Vectors:
        begin = time.process_time()
        counter = self.inner.counter
        self.counts["calls"] += bool(texts)
        self.counts["texts"] += len(texts)
        self.counts["characters"] += sum(map(len, texts))
        self.counts["tokens"] += sum(counter.count(text) for text in texts)
        vectors: Vectors = call()
        self.counts["cpu_seconds"] += time.process_time() - begin
        return vectors


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES).digest()
