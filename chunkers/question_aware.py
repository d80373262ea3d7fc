"""Question-aware chunks: several segmentations for the questions a text answers, the best one completed in headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from chunkers._base import SizedChunker, tiles_of
from chunkers._candidates import Segmentation, compared, fault, named, reason, tried
from chunkers._chunk_score import ModelIndependence, Windows, chunk_score, scaled, spread, vector_independence
from chunkers._completion_header import LEAST, extended, room, shortened
from chunkers._headers import Headers
from chunkers._integrity import Flag, ModelReviewer, completion_of, reviewed
from chunkers._intents import Intents, gathered, intent_count
from chunkers._intents_score import Score, Weights
from chunkers._intents_sources import ModelQuestions, Source, headings, heuristic
from chunkers._segment import Atoms, best_cuts, checked, joined, reach_back
from chunkers.metrics._base import Cuts, Sentences
from rag.errors import ConfigError
from rag.protocols import Embedder, Generator, TextModel, nested, service
from rag.spans.kept import KeptCounter, KeptEmbedder
from rag.types import Chunk, Document

_ROLES = ("outline", "independence", "review", "completion")
_OUTLINE_SHOWN, _FLAGS_SHOWN = 40, 100


@dataclass
class _Work:
    """What the roles share while they work on one document."""

    document: Document
    atoms: Atoms
    sentences: Sentences
    headers: Headers
    counter: KeptCounter
    encoder: KeptEmbedder
    models: dict[str, TextModel] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    cost: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class QuestionAwareChunker(SizedChunker):
    """Four roles, each by rules or, where `model_roles` names it and the pipeline has a language model, by that model.

    1. outline: what the text answers: headings and questions of rare words, or questions that the model writes;
    2. segmentations: those of `candidates`, and the best ones for the outline (intents of a dynamic program over
       sentences) at each of `sizes`, target sizes as shares of the limit;
    3. independence: the best ChunkScore = lam LI + (1 - lam) SD is kept. SD, how spread out the chunk vectors lie, is
       scaled to [0, 1] over the candidates. LI, how little chunks lean on the one before, is a ratio of likelihoods
       with and without its last `tail_tokens` tokens (model; only for the `best_by_sd` candidates, at `boundaries`
       evenly spaced boundaries each), or 1 - max(0, cosine), our substitute, at every boundary;
    4. review and completion: a chunk whose opening refers back gets the sentence that it refers to into
       `Chunk.header`, below title and heading path, never into its text. A model's own sentence is taken only when each
       of its words and numbers stands in the text before. At most `completion_share` of the limit, which the
       segmentations leave free; 0 for no completion.

    `objective`: "paper" compares candidates as they are, so that both measures also follow the sizes of chunks: context
    helps to read the start of a chunk most, so that LI of a model rises with length. "debiased" takes SD as what it has
    above `permutations` random cuts of the same sizes, and LI over the first `opening_tokens` only.

    A model of 135M parameters tells likelihoods; its reviews flag nearly every chunk and its completions are refused
    nearly always, so by default it is asked for LI only: about 10 s for a text of 6,000 characters on one core.

    Source: QChunker (arXiv 2603.11650).
    Deviations: one small model with prompts, or none, for three trained 3B models; the paper does not tell how
    ChunkScore is normalised; chunks are never rewritten; debiased; the rules know English only.
    """

    candidates: Any = nested("chunker", ("recursive", "cluster-semantic"))
    embedder: Embedder = service()
    generator: Generator | None = service(default=None)
    model_roles: tuple[str, ...] = ("independence",)
    objective: Literal["debiased", "paper"] = "debiased"
    lam: float = 0.3
    sizes: tuple[float, ...] = (0.35, 0.5, 0.7)
    min_tokens: int = 16
    best_by_sd: int = 2
    boundaries: int | None = 12
    opening_tokens: int = 48
    tail_tokens: int = 64
    permutations: int = 16
    completion_share: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        value = self.candidates
        many = tuple(value) if isinstance(value, list | tuple) else () if value is None else (value,)
        if any(one is None or isinstance(one, str | Mapping) for one in many):
            raise ConfigError(f"question-aware: candidates must be built plugins, not {value!r}")
        object.__setattr__(self, "candidates", many)
        for name in ("model_roles", "sizes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not many and not self.sizes:
            raise ConfigError("question-aware: candidates or sizes must name at least one segmentation")
        for role in self.model_roles:
            if role not in _ROLES:
                raise ConfigError(f"question-aware: model_roles are {', '.join(_ROLES)}, not {role!r}")
        if self.objective not in ("debiased", "paper"):
            raise ConfigError(f"question-aware: objective must be debiased or paper, not {self.objective!r}")
        if not 0 <= self.lam <= 1 or not 0 <= self.completion_share <= 0.5:
            raise ConfigError(
                "question-aware: lam must lie in [0, 1] and completion_share in [0, 0.5], not "
                f"{self.lam} and {self.completion_share}"
            )
        if any(not 0 < size <= 1 for size in self.sizes):
            raise ConfigError(f"question-aware: sizes must lie in (0, 1], not {self.sizes}")
        self._check_at_least("min_tokens", self.min_tokens, 0)
        for name in ("best_by_sd", "boundaries", "opening_tokens", "tail_tokens", "permutations"):
            self._check_at_least(name, getattr(self, name), 1)

    @property
    def shaped_by(self) -> str:
        own = repr(self.generator) if self.generator and self.generator.text_model and self.model_roles else ""
        return " ".join(filter(None, (own, *(candidate.shaped_by for candidate in self.candidates))))

    def chunk(self, document: Document) -> list[Chunk]:
        return self.decide(document)[0]

    def decide(self, document: Document) -> tuple[list[Chunk], Mapping[str, Any] | None]:
        """The record has the outline, every segmentation with its measures, the choice, and what completed which chunk.

        `cost` counts texts that the encoder read, and calls and characters of the language model.
        """
        if not document.text.strip():
            return [], None
        work = self._work(document)
        outline = self._outline(work)
        found = self._segmentations(work, outline)
        fair = [one for one in found if not one.why_not]
        how = self._rate(work, fair)
        winner = max(fair, key=lambda one: -1.0 if one.score is None else one.score)
        chunks = self._cut_out(work, winner.groups) if winner.groups else winner.chunks
        chunks = [replace(chunk, chunker=self.plugin) for chunk in chunks]
        chunks, flags = self._completed(work, chunks)
        work.cost |= {"encoder_texts": work.encoder.texts, "sentences": len(work.atoms)}
        record = {
            "chunker": self.plugin,
            "winner": winner.name,
            "reason": reason(fair, winner, how),
            "objective": self.objective,
            "independence": how,
            "lam": self.lam,
            "outline": [{"text": t, "source": s} for t, s in zip(outline.texts, outline.sources, strict=True)][
                :_OUTLINE_SHOWN
            ],
            "candidates": [one.row(how) for one in found],
            "flagged": len(flags),
            "flags": flags[:_FLAGS_SHOWN],
            "notes": work.notes,
            "cost": work.cost,
        }
        return chunks, record

    @property
    def _reserve(self) -> int:
        """Tokens that segmentations leave free for completions; 0 where that is too little for any."""
        tokens = int(self.completion_share * self.token_limit)
        return tokens if tokens >= LEAST else 0

    def _work(self, document: Document) -> _Work:
        counter = KeptCounter(self.counter)
        own = self.embedder.counter
        encoder = KeptEmbedder(self.embedder, counter if own is self.counter else own)
        inner = replace(self, counter=counter, max_tokens=self.token_limit - self._reserve, max_chars=self.char_limit)
        headers = Headers(inner, document, path=True, title=True, rows=False)
        atoms = Atoms.of(document, inner.ruler(document, header=headers.at), encoder)
        model = self.generator.text_model if self.generator and self.model_roles else None
        models = dict.fromkeys(self.model_roles, model) if model else {}
        work = _Work(document, atoms, Sentences(atoms), headers, counter, encoder, models)
        if self.generator and self.model_roles and model is None:
            work.notes.append("the generator has no language model: all roles by rules and vectors")
        return work

    def _outline(self, work: _Work) -> Intents:
        model = work.models.get("outline")
        sources: dict[str, Source | None] = {"headings": headings}
        sources |= {"generator": ModelQuestions(model)} if model else {"heuristic": heuristic}
        return gathered(work.atoms, sources, intent_count(len(work.atoms)), work.counter)

    def _segmentations(self, work: _Work, outline: Intents) -> list[Segmentation]:
        services = {"counter": work.counter, "embedder": work.encoder}
        inner = self.token_limit - self._reserve
        found = [tried(name, plugin, work.document, services, inner) for name, plugin in named(self.candidates)]
        for one in found:
            one.why_not = one.why_not or fault(
                work.document, one.chunks, work.counter, self.token_limit, self.char_limit
            )
        sizes = self.sizes if self.sizes or any(not one.why_not for one in found) else (0.5,)
        return [*(self._for_outline(work, outline, size) for size in sizes), *found]

    def _for_outline(self, work: _Work, outline: Intents, size: float) -> Segmentation:
        """The best segmentation for the questions of the outline, at `size` of the limit per chunk.

        It is compared as the sentences add up, and counted exactly once it has won.
        """
        atoms = work.atoms
        per_token = len(work.document.text) / max(1, int(atoms.edges[-1]))
        weights = Weights(
            objective="length-weighted",
            lam=0.0,
            beta=0.0,
            w_intent=1.0,
            w_coherence=1.0,
            w_size=1.0,
            w_paragraph=0.3,
            w_section=0.3,
            target_chars=max(1, round(size * self.token_limit * per_token)),
        )
        score, low = Score(atoms, outline, weights), reach_back(atoms)
        groups = joined(atoms, best_cuts(low, score.gain, score.prior), low, self.min_tokens)
        return Segmentation(f"outline-{size:g}", _cuts_of(atoms, groups), groups=groups)

    def _cut_out(self, work: _Work, groups: Sequence[int]) -> list[Chunk]:
        atoms = work.atoms
        ranges = tiles_of(atoms.ends[cut - 1] for cut in checked(atoms, groups))
        return self.cut(work.document, ranges, atoms.ruler.tokens, atoms.ruler.header)

    def _rate(self, work: _Work, found: Sequence[Segmentation]) -> str:
        """Fills in the measures of every segmentation; says what LI was: "model" or "embedding"."""
        debiased = self.objective == "debiased"
        own = compared(found)
        for one in own:
            one.sd_raw, one.sd_gain = spread(one.cuts, work.sentences, self.permutations if debiased else 0)
        values = scaled([one.sd_raw if one.sd_gain is None else one.sd_gain for one in own])
        for one, value in zip(own, values, strict=True):
            one.sd = value
        windows = Windows(work.atoms.ruler.tokens, self.opening_tokens if debiased else None, self.tail_tokens)
        how = "model" if self._by_model(work, own, windows) else "embedding"
        for one in own:
            if how == "embedding":
                one.li = vector_independence(one.cuts, work.sentences, windows)
            if one.li is not None:
                one.score = chunk_score(one.li, one.sd, self.lam)
        return how

    def _by_model(self, work: _Work, own: Sequence[Segmentation], windows: Windows) -> bool:
        """Fills in LI of the best candidates by SD; False where the model does not tell likelihoods."""
        model = work.models.get("independence")
        if model is None:
            return False
        asked = ModelIndependence(model, work.document.text, windows, self.boundaries)
        for one in sorted(own, key=lambda one: -one.sd)[: self.best_by_sd]:
            one.li = asked.of(one.cuts)
            if one.li is None:
                work.notes.append("the language model does not tell likelihoods: LI by vectors")
                for other in own:
                    other.li = None
                return False
        work.cost |= {"independence_calls": asked.calls, "independence_chars": asked.chars}
        return True

    def _completed(self, work: _Work, chunks: Sequence[Chunk]) -> tuple[list[Chunk], list[dict[str, Any]]]:
        """The chunks, those that refer back with a completion in their headers; a row for each of these."""
        if not self._reserve:
            return list(chunks), []
        model = work.models.get("review")
        reviewer = ModelReviewer(model) if model else None
        done, rows = list(chunks), []
        for flag in reviewed(work.document, [chunk.span for chunk in chunks], work.atoms.ends, reviewer):
            done[flag.chunk], row = self._complete(work, done[flag.chunk], flag)
            rows.append(row)
        if reviewer:
            work.cost["review_calls"] = reviewer.calls
        return done, rows

    def _complete(self, work: _Work, chunk: Chunk, flag: Flag) -> tuple[Chunk, dict[str, Any]]:
        limit, counter, text = self.token_limit, work.counter, work.document.text
        if not chunk.header:
            above = [line for line in work.headers.at(chunk.span.start).split("\n") if line]
            chunk, _ = extended(chunk, above, counter, limit=limit, share=limit // 4)
        row: dict[str, Any] = {"start": chunk.span.start, "word": flag.word, "by": flag.by}
        free = room(chunk, counter, limit, self._reserve)
        if free < LEAST:
            return chunk, row | {"completion": None, "why": "no room"}
        model = work.models.get("completion")
        if model:
            work.cost["completion_calls"] = work.cost.get("completion_calls", 0) + 1
        line, by, refused = completion_of(work.document, flag, chunk.span, model)
        chars = max(1, self.char_limit // 4)
        tries = [line] if len(line) <= chars else []
        tries.append(shortened(text[flag.mention : min(flag.end, chunk.span.start)], counter, free - 1, chars))
        for attempt in tries:
            longer, kept = extended(chunk, [attempt], counter, limit=limit, share=self._reserve)
            if kept:
                row |= {"completion": attempt, "from": flag.start, "made_by": by}
                return longer, row | ({"refused": refused} if refused else {})
            by = "extract"
        return chunk, row | {"completion": None, "why": "no room"}


def _cuts_of(atoms: Atoms, groups: Sequence[int]) -> Cuts:
    import numpy as np

    last = np.array(groups, dtype=np.int64)
    first = np.concatenate(([0], last[:-1]))
    starts, ends = np.array(atoms.starts, dtype=np.int64), np.array(atoms.ends, dtype=np.int64)
    return Cuts(starts[first], ends[last - 1], atoms.edges[last] - atoms.edges[first])
