"""What is compared: chunkers of this project by spec, and chunkers of other packages in child processes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from eval.bench._children import child_environment
from eval.chunks.vectors import CountingEmbedder
from eval.sets import Place
from rag.errors import UsageError
from rag.protocols import Chunker, Embedder, TokenCounter
from rag.registry import Spec, build, load, spec_name
from rag.types import Chunk, Document

__all__ = ["LOST", "Contender", "Cut", "Ours", "Peer", "Piece", "find_peers", "ours_of"]

LOST = "(not found in the document)"
"""The document of chunks whose text stands nowhere in their document."""
_KNOBS = ("target_chars", "target_tokens", "max_tokens")
_SECONDS = 900
_THREADS = 1


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk as it is scored: its place, what the encoder reads, and its tokens.

    `chunk`: one of ours whose vector is read with the text around it; None where `text` is all that is read.
    """

    place: Place
    text: str
    tokens: int
    chunk: Chunk | None = None


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Chunks of all documents, and what they cost. CPU seconds are without the encoder's, None for unknown."""

    pieces: tuple[Piece, ...]
    headers: tuple[str, ...] = ()
    encoder_texts: int | None = 0
    encoder_tokens: int | None = 0
    cpu_seconds: float | None = None

    @property
    def mean_chars(self) -> float:
        sizes = [end - start for _, start, end in (piece.place for piece in self.pieces)]
        return sum(sizes) / max(1, len(sizes))


class Contender(Protocol):
    """A chunker with one knob that changes the size of its chunks."""

    name: str
    knob: str

    def range(self, target: float) -> tuple[int, int]:
        """Smallest and largest value of the knob worth trying for chunks of `target` characters."""

    def cut(self, documents: Mapping[str, Document], value: int) -> Cut:
        """The chunks with the knob at `value`."""


@dataclass(frozen=True, kw_only=True)
class Ours(Contender):
    """A chunker of the catalogue."""

    name: str
    knob: str
    spec: Mapping[str, Any]
    embedder: Embedder
    services: Mapping[str, Any] = field(default_factory=dict)

    @property
    def plugin(self) -> str:
        return str(self.spec["use"])

    def range(self, target: float) -> tuple[int, int]:
        limit = self.embedder.counter.limit or 1024
        return (1, int(4 * target)) if self.knob.endswith("chars") else (8, limit)

    def chunker(self, value: int, embedder: Embedder | None = None, knob: str | None = None) -> Chunker:
        given = embedder or self.embedder
        services = {**self.services, "embedder": given, "counter": given.counter}
        spec = _with_knob(self.spec, (knob or self.knob).split("."), value)
        chunker: Chunker = build("chunker", spec, services=services, path=self.name)
        return chunker

    def cut(self, documents: Mapping[str, Document], value: int) -> Cut:
        counting = CountingEmbedder(inner=self.embedder)
        chunker = self.chunker(value, counting)
        begin = time.process_time()
        found = {name: chunker.chunk(document) for name, document in documents.items()}
        spent = time.process_time() - begin - counting.counts["cpu_seconds"]
        pieces = [
            Piece(
                (name, chunk.span.start, chunk.span.end),
                chunk.embed_text,
                chunk.token_count,
                chunk if chunk.surround else None,
            )
            for name, chunks in found.items()
            for chunk in chunks
        ]
        headers = {chunk.header for chunks in found.values() for chunk in chunks if chunk.header}
        return Cut(
            pieces=tuple(pieces),
            headers=tuple(sorted(headers)),
            encoder_texts=int(counting.counts["texts"]),
            encoder_tokens=int(counting.counts["tokens"]),
            cpu_seconds=max(spent, 0.0),
        )


@dataclass(frozen=True, kw_only=True)
class Peer(Contender):
    """A chunker of another package, run by `python` in a child process. Its encoder's work is not counted."""

    name: str
    module: Path
    python: str
    model: str
    counter: TokenCounter
    versions: Mapping[str, str | None]
    knob: str = "max_tokens"

    def range(self, target: float) -> tuple[int, int]:
        return 8, self.counter.limit or 1024

    def cut(self, documents: Mapping[str, Document], value: int) -> Cut:
        texts = [document.text for document in documents.values()]
        answer = self.answer(texts, value, rounds=1, seconds=_SECONDS)
        pieces: list[Piece] = []
        for (name, document), found in zip(documents.items(), answer["rounds"][0], strict=True):
            if isinstance(found, dict):
                raise UsageError(f"{self.name} cannot cut {name}: {found['error']}")
            pieces.extend(self._pieces(name, document.text, found))
        return Cut(pieces=tuple(pieces), encoder_texts=None, encoder_tokens=None, cpu_seconds=answer.get("cpu_seconds"))

    def answer(self, texts: Sequence[str], value: int, *, rounds: int, seconds: int) -> dict[str, Any]:
        """What the driver says; UsageError when it ended without an answer."""
        job = {"chunker": self.name, "texts": list(texts), "max_tokens": value, "model": self.model}
        return _drive(self.python, self.module, {**job, "rounds": rounds, "seconds": seconds})

    def _pieces(self, name: str, text: str, found: Sequence[tuple[str, int | None, int | None]]) -> list[Piece]:
        """Places as the package tells them when they are exact, else by forward search."""
        pieces: list[Piece] = []
        after = 0
        for part, start, end in found:
            if not part:
                continue
            at = start if start is not None and text[start:end] == part else text.find(part, after)
            place = (name, at, at + len(part)) if at >= 0 else (LOST, 0, len(part))
            after = at + len(part) if at >= 0 else after
            pieces.append(Piece(place, part, self.counter.count(part)))
        return pieces


def _with_knob(spec: Mapping[str, Any], path: Sequence[str], value: int) -> dict[str, Any]:
    """The spec with a parameter set, of the plugin itself or, for a longer path, of one inside it."""
    name, *rest = path
    if not rest:
        return {**spec, name: value}
    inner = spec.get(name, {})
    return {**spec, name: _with_knob({"use": inner} if isinstance(inner, str) else inner, rest, value)}


def ours_of(spec: Spec, embedder: Embedder, services: Mapping[str, Any] | None = None) -> Ours:
    """The contender of a spec; besides parameters it may have `label`, and `knob`: which parameter sets the size.

    A knob inside of a nested chunker has a dot: `chunker.target_chars`.
    """
    given: dict[str, Any] = {"use": spec} if isinstance(spec, str) else dict(spec)
    label, knob = given.pop("label", None), given.pop("knob", None)
    plugin = load("chunker", spec_name(given, path="--chunker"), path="--chunker")
    known = [one.name for one in dataclasses.fields(plugin)]
    wanted = knob or next((name for name in _KNOBS if name in known and name not in given), None)
    if str(wanted).partition(".")[0] not in known:
        problem = f"no parameter {knob!r}" if knob else "no parameter that surely sets the size"
        raise UsageError(f"--chunker {given['use']}: {problem}; name one with 'knob', of: {', '.join(known)}")
    rest = ", ".join(f"{key}={value}" for key, value in given.items() if key != "use")
    name = label or (f"{given['use']} ({rest})" if rest else str(given["use"]))
    return Ours(name=name, knob=str(wanted), spec=given, embedder=embedder, services=services or {})


def find_peers(pythons: Sequence[str], model: str, counter: TokenCounter) -> tuple[list[Peer], dict[str, str]]:
    """Every peer with the first interpreter that has it, and the reasons why others are absent."""
    present: list[Peer] = []
    absent: dict[str, str] = {}
    for module in sorted((Path(__file__).parent / "peers").glob("[!_]*.py")):
        for python in pythons or [sys.executable]:
            try:
                answer = _drive(python, module, {})
            except UsageError as error:
                answer = {"status": "failed", "reason": str(error)}
            if answer["status"] == "ok":
                present += [
                    Peer(
                        name=name,
                        module=module,
                        python=python,
                        model=model,
                        counter=counter,
                        versions=answer["versions"],
                    )
                    for name in answer["chunkers"]
                ]
                absent.pop(module.stem, None)
                break
            absent[module.stem] = str(answer["reason"])
    return present, absent


def _drive(python: str, module: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    driver = Path(__file__).parent / "peers" / "_drive.py"
    try:
        done = subprocess.run(
            [python, str(driver), str(module)],
            input=json.dumps(job).encode(),
            capture_output=True,
            timeout=_SECONDS,
            check=False,
            env=child_environment(_THREADS),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{module.stem}: {error}") from error
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UsageError(f"{module.stem}: {last}")
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer
