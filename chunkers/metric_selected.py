"""Metric-selected chunks: each document is cut in several ways, and the way that measures best is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from chunkers._base import SizedChunker, tiles_of
from chunkers._cuts import STRUCTURE, CutLevels
from chunkers._embedded import EmbeddedChunker
from chunkers._pack import split
from chunkers._segment import Atoms
from chunkers._selection import Candidate, left_one_out, mean_score, measured, size_relations
from chunkers._sharing import needs, with_services
from chunkers.metrics._base import Sentences
from chunkers.metrics.block_integrity import BlockIntegrityMetric
from rag.errors import ConfigError
from rag.protocols import Chunker, Embedder, Metric, TokenCounter, nested, service
from rag.spans.kept import KeptCounter, KeptEmbedder
from rag.text import safe_cut
from rag.types import Chunk, Document

_CANDIDATES = ("recursive", "markdown", "semantic", "cluster-semantic")
_METRICS = (
    "references-completeness",
    "intrachunk-cohesion",
    "document-coherence",
    "block-integrity",
    "size-compliance",
)
_FOLLOWS_SIZE = 0.8


@dataclass(frozen=True, kw_only=True)
class MetricSelectedChunker(SizedChunker):
    """Cuts a document with every candidate and keeps the result with the best weighted mean of the metrics.

    `candidates` without a `max_tokens` of their own get the one given here. A candidate that fails, leaves text out
    or exceeds the limits is left out, with the reason in the record; ties go to the first candidate.
    `weights`: label of a metric -> its weight; None weighs all alike. A metric that says nothing about a candidate is
    left out of its mean.
    `objective`: "paper" takes the mean of the metrics themselves, most of which follow the size of the chunks.
    "debiased" asks instead how much better each is than on `permutations` random cuts of the same sizes, z standard
    deviations as z / (2 + |z|), with leave-one-out document coherence; size compliance counts as what it lacks to 1.
    Cuts between topics raise cohesion and lower leave-one-out coherence, so these two pull against each other.
    `encoder_chars`: in a longer text, candidates and metrics that need vectors are left out.

    Source: Adaptive Chunking (arXiv 2603.25333).
    Deviations: the debiased objective is ours; candidates are any chunkers; sentences are embedded once and shared by
    candidates and metrics, whose vectors of chunks and windows are means of them.
    """

    candidates: Any = nested("chunker", _CANDIDATES)
    metrics: Any = nested("metric", _METRICS)
    weights: Mapping[str, float] | None = None
    objective: Literal["debiased", "paper"] = "debiased"
    permutations: int = 24
    encoder_chars: int = 2_000_000
    embedder: Embedder | None = service(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("candidates", "metrics"):
            value = getattr(self, name)
            many = tuple(value) if isinstance(value, list | tuple) else (value,)
            if not many or any(one is None or isinstance(one, str | Mapping) for one in many):
                raise ConfigError(f"metric-selected: {name} must be built plugins, at least one, not {value!r}")
            object.__setattr__(self, name, many)
        labels = [metric.label for metric in self.metrics]
        if len(set(labels)) < len(labels):
            raise ConfigError(f"metric-selected: each metric once, not {', '.join(labels)}")
        if self.objective not in ("debiased", "paper"):
            raise ConfigError(f"metric-selected: objective must be debiased or paper, not {self.objective!r}")
        weights = self.weights or {}
        if any(name not in labels or not 0 <= weight < float("inf") for name, weight in weights.items()):
            raise ConfigError(
                f"metric-selected: weights must be >= 0 for some of {', '.join(labels)}, not {dict(weights)}"
            )
        if self.weights is not None and not sum(weights.values()):
            raise ConfigError("metric-selected: at least one weight must be above 0")
        self._check_at_least("permutations", self.permutations, 1)
        self._check_at_least("encoder_chars", self.encoder_chars, 0)

    @property
    def shaped_by(self) -> str:
        return " ".join(filter(None, (candidate.shaped_by for candidate in self.candidates)))

    def chunk(self, document: Document) -> list[Chunk]:
        return self.decide(document)[0]

    def decide(self, document: Document) -> tuple[list[Chunk], Mapping[str, Any] | None]:
        if not document.text.strip():
            return [], {"chunker": self.plugin, "winner": None, "reason": "the text is empty"}
        counter = KeptCounter(self.counter)
        encoder = self._encoder(document, counter)
        ready = self._prepared(counter, encoder)
        view = self._view(document, ready, counter, encoder)
        like = _first_group(plugin for _, plugin in ready)
        found = [self._tried(name, plugin, document, view if _alike(plugin, like) else None) for name, plugin in ready]
        for one in found:
            one.why_not = one.why_not or self._fault(document, one.chunks, counter)
        skipped = self._measure([one for one in found if not one.why_not], view)
        winner = max(
            (one for one in found if not one.why_not),
            key=lambda one: -float("inf") if one.score is None else one.score,
            default=None,
        )
        record = self._record(found, winner, skipped)
        record["encoder"] = {"texts": encoder.texts if encoder else 0, "sentences": len(view)}
        chunks = winner.chunks if winner else self._plain(document, view)
        return [replace(chunk, chunker=self.plugin) for chunk in chunks], record

    def _encoder(self, document: Document, counter: KeptCounter) -> KeptEmbedder | None:
        if self.embedder is None or len(document.text) > self.encoder_chars:
            return None
        own = self.embedder.counter
        return KeptEmbedder(self.embedder, counter if own is self.counter else own)

    def _prepared(self, counter: TokenCounter, encoder: Embedder | None) -> list[tuple[str, Chunker | Exception]]:
        """The candidates by name, with services that remember, or why they are out of the question."""
        services: dict[str, Any] = {"counter": counter} | ({"embedder": encoder} if encoder else {})
        ready: list[tuple[str, Chunker | Exception]] = []
        names: list[str] = []
        for candidate in self.candidates:
            name = type(candidate).__module__.rpartition(".")[2].replace("_", "-")
            names.append(name)
            name += f"#{names.count(name)}" if names.count(name) > 1 else ""
            try:
                if encoder is None and needs(candidate, "embedder"):
                    raise ConfigError(f"needs the encoder, and the text is over {self.encoder_chars} characters")
                plugin = with_services(candidate, services)
                if self.max_tokens is not None and getattr(plugin, "max_tokens", 0) is None:
                    plugin = replace(plugin, max_tokens=self.max_tokens)
                ready.append((name, plugin))
            except ConfigError as error:
                ready.append((name, error))
        return ready

    def _view(
        self,
        document: Document,
        ready: Sequence[tuple[str, Chunker | Exception]],
        counter: TokenCounter,
        encoder: Embedder | None,
    ) -> Atoms:
        """The sentences, embedded; they are those of the first candidate that groups sentences, where there is one.

        They are embedded here, so that an encoder that is out of order stops the document, not one candidate.
        """
        groups = _first_group(plugin for _, plugin in ready)
        if groups is not None:
            view = groups.atoms(document)
        else:
            own = replace(self, counter=counter)
            view = Atoms.of(document, own.ruler(document), encoder)
        if encoder and (groups is not None or any(getattr(one, "needs_vectors", False) for one in self.metrics)):
            _ = view.vectors
        return view

    def _tried(self, name: str, plugin: Chunker | Exception, document: Document, view: Atoms | None) -> Candidate:
        if isinstance(plugin, Exception):
            return Candidate(name, why_not=str(plugin))
        try:
            if isinstance(plugin, EmbeddedChunker) and view is not None:
                return Candidate(name, plugin.group(view))
            chunks, record = plugin.decide(document)
            return Candidate(name, chunks, record)
        except Exception as error:  # any plugin of anybody: the others still cut the document
            return Candidate(name, why_not=f"failed: {type(error).__name__}: {error}")

    def _fault(self, document: Document, chunks: Sequence[Chunk], counter: TokenCounter) -> str:
        """What forbids these chunks; "" for nothing."""
        done = 0
        for chunk in chunks:
            if document.text[done : chunk.span.start].strip():
                return f"leaves out the text from {done} to {chunk.span.start}"
            done = max(done, chunk.span.end)
            tokens = chunk.token_count
            if chunk.header and counter.additive:
                tokens += counter.count(f"{chunk.header}\n")
            elif chunk.header:
                tokens = counter.count(chunk.embed_text)
            over = tokens > self.token_limit or len(chunk.text) > self.char_limit
            if over and safe_cut(chunk.text, 0, 1) < len(chunk.text):
                return f"exceeds {self.token_limit} tokens or {self.char_limit} characters at {chunk.span.start}"
        return "leaves out the end of the text" if document.text[done:].strip() else ""

    def _measure(self, found: Sequence[Candidate], view: Atoms) -> dict[str, str]:
        """Fills in measures and scores; label -> why a metric was skipped, for all or for some."""
        debiased = self.objective == "debiased"
        metrics: list[Metric] = [left_one_out(one) if debiased else one for one in self.metrics]
        skipped = {}
        if view.embedder is None:
            blind = [one.label for one in metrics if getattr(one, "needs_vectors", False)]
            skipped = dict.fromkeys(blind, "needs the encoder")
            metrics = [one for one in metrics if one.label not in blind]
        sentences, weights = Sentences(view), self._weights()
        blocks = next((one for one in metrics if isinstance(one, BlockIntegrityMetric)), None)
        known: dict[tuple[Chunk, ...], Candidate] = {}
        for one in found:
            twin = known.setdefault(tuple(replace(chunk, chunker="", header="") for chunk in one.chunks), one)
            if twin is one:
                measured(one, metrics, sentences, self.permutations if debiased else 0)
            else:
                one.raw, one.chance, one.values = twin.raw, twin.chance, twin.values
            one.score = mean_score(one.values, weights)
            one.inner_cuts = blocks.inner_cuts(one.chunks, view.document) if blocks else {}
        for metric in metrics:
            silent = [one.name for one in found if one.values[metric.label] is None]
            if silent:
                skipped[metric.label] = f"says nothing about {', '.join(silent)}"
        return skipped

    def _weights(self) -> dict[str, float]:
        if self.weights is None:
            return {metric.label: 1.0 / len(self.metrics) for metric in self.metrics}
        return {metric.label: float(self.weights.get(metric.label, 0.0)) for metric in self.metrics}

    def _record(
        self, found: Sequence[Candidate], winner: Candidate | None, skipped: Mapping[str, str]
    ) -> dict[str, Any]:
        fair = [one for one in found if not one.why_not]
        relations = size_relations(fair, [metric.label for metric in self.metrics])
        record: dict[str, Any] = {
            "chunker": self.plugin,
            "winner": winner.name if winner else None,
            "reason": self._reason(fair, winner),
            "objective": self.objective,
            "weights": self._weights(),
            "candidates": [one.row() for one in found],
            "skipped_metrics": dict(skipped),
            "size_correlation": relations,
            "follows_size": [label for label, value in relations.items() if abs(value) > _FOLLOWS_SIZE],
        }
        if winner and winner.record:
            record["winner_decision"] = dict(winner.record)
        return record

    def _reason(self, fair: Sequence[Candidate], winner: Candidate | None) -> str:
        if winner is None:
            return "no candidate could be used; the text was split recursively"
        if winner.score is None:
            return f"no metric says anything about this text; {winner.name} is the first candidate that can be used"
        others = sorted((one for one in fair if one is not winner and one.score is not None), key=_score, reverse=True)
        what = "mean gain over random cuts of the same sizes" if self.objective == "debiased" else "mean of the metrics"
        said = ", ".join(f"{label} {value:.3f}" for label, value in winner.raw.items() if value is not None)
        before = f", before {others[0].name} with {others[0].score:.3f}" if others else ""
        if others and others[0].score == winner.score:
            before = f", as {others[0].name}, which comes later in the list"
        return f"{winner.name} has the best {what}, {winner.score:.3f}{before} ({said})"

    def _plain(self, document: Document, view: Atoms) -> list[Chunk]:
        """Where no candidate can be used."""
        ruler = self.ruler(document, tokens=view.ruler.tokens)
        ends = split(ruler, CutLevels(document, STRUCTURE), 0, len(document.text))
        return self.cut(document, tiles_of(ends), ruler.tokens)


def _score(candidate: Candidate) -> float:
    return candidate.score or 0.0


def _first_group(plugins: Iterable[Any]) -> EmbeddedChunker | None:
    """The first chunker whose whole work is to group embedded sentences, so that others can use the same ones."""
    for plugin in plugins:
        own: Any = type(plugin)
        if (
            isinstance(plugin, EmbeddedChunker)
            and own.chunk is EmbeddedChunker.chunk
            and own.decide is Chunker.decide
            and own.atoms is EmbeddedChunker.atoms
        ):
            return plugin
    return None


def _alike(plugin: Any, like: EmbeddedChunker | None) -> bool:
    """True when both would make the same sentences, within the same limits and under the same headers."""
    if like is None or _first_group([plugin]) is None:
        return False
    names = ("token_limit", "char_limit", "heading_header")
    return all(getattr(plugin, name) == getattr(like, name) for name in names)
