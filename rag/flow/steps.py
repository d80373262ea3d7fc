"""Steps over the slots of the pipeline: retrieve, select, compress, generate; and refine, widen, abstain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from rag.answer import Generation
from rag.errors import ConfigError
from rag.flow.merges import fused
from rag.flow.nodes import Node, Notes
from rag.flow.relevance import Strip, strips_of
from rag.flow.state import Run, State
from rag.prompt import NOT_FOUND
from rag.registry import Spec, spec_name
from rag.text import assemble
from rag.types import Bubble, Decision, Hit

__all__ = ["Abstain", "Adjust", "Compress", "Generate", "Refine", "Retrieve", "Select", "Widen"]

Ask = Literal["question", "query"]


@dataclass(frozen=True, kw_only=True)
class Retrieve(Node):
    """Searches for the query. `union` fuses the hits with those that are there, `replace` drops them."""

    use: ClassVar[str] = "retrieve"
    gives: ClassVar[tuple[str, ...]] = ("hits",)

    retriever: Spec | None = None
    k: int = 0
    ask: Ask = "query"
    join: Literal["replace", "union"] = "replace"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 0 or self.join not in ("replace", "union"):
            raise ConfigError(f"retrieve: k >= 0 and join replace or union, not k={self.k}, join={self.join!r}")

    def run(self, state: State, run: Run, path: str) -> tuple[State, Notes]:
        pipeline = run.with_slot("retriever", self.retriever)
        asked = (state.query if self.ask == "query" else state.question).strip() or state.question
        k = state.k or self.k or pipeline.retriever.k
        hits = tuple(pipeline.search(asked, run.index, k=k, where=state.where))
        if self.join == "union" and state.hits:
            hits = fused([state.hits, hits], [1.0, 1.0], run)
        notes = {"plugin": spec_name(pipeline.config.retriever), "query": asked, "k": k}
        return replace(state, hits=hits), notes


@dataclass(frozen=True, kw_only=True)
class Select(Node):
    """Hits to a bubble within the selector's budget. After `adjust` the selector must have a `min_k`, as `gradient`."""

    use: ClassVar[str] = "select"
    needs: ClassVar[tuple[str, ...]] = ("hits",)
    gives: ClassVar[tuple[str, ...]] = ("bubble",)

    selector: Spec | None = None
    ask: Ask = "question"

    def run(self, state: State, run: Run, path: str) -> tuple[State, Notes]:
        spec = self.selector
        if state.min_k:
            given = run.pipeline.config.selector if spec is None else spec
            spec = {**({"use": given} if isinstance(given, str) else given), "min_k": state.min_k}
        pipeline = run.with_slot("selector", spec)
        asked = state.question if self.ask == "question" else state.query
        bubble = pipeline.selector.select(asked, state.hits, run.index.corpus)
        notes = {"plugin": spec_name(pipeline.config.selector), "tokens": bubble.token_count, "budget": bubble.budget}
        return replace(state, bubble=bubble), notes


@dataclass(frozen=True, kw_only=True)
class Compress(Node):
    """A bubble to the pieces that the generator reads."""

    use: ClassVar[str] = "compress"
    needs: ClassVar[tuple[str, ...]] = ("bubble",)
    gives: ClassVar[tuple[str, ...]] = ("context",)

    compressor: Spec | None = None

    def run(self, state: State, run: Run, path: str) -> tuple[State, Notes]:
        assert state.bubble is not None  # noqa: S101 - the check of the flow saw to it
        pipeline = run.with_slot("compressor", self.compressor)
        context = pipeline.compressor.compress(state.bubble, run.index.corpus)
        notes = {"plugin": spec_name(pipeline.config.compressor), "keep_ratio": context.keep_ratio}
        return replace(state, context=context), notes


@dataclass(frozen=True, kw_only=True)
class Generate(Node):
    """The pieces to an answer; what the generator read and wrote is charged to the budget."""

    use: ClassVar[str] = "generate"
    needs: ClassVar[tuple[str, ...]] = ("context",)
    gives: ClassVar[tuple[str, ...]] = ("generation",)

    generator: Spec | None = None

    def run(self, state: State, run: Run, path: str) -> tuple[State, Notes]:
        assert state.context is not None  # noqa: S101 - the check of the flow saw to it
        pipeline = run.with_slot("generator", self.generator)
        made = pipeline.generator.generate(state.context, run.index.corpus)
        tokens = (made.stats.prompt_tokens or state.context.token_count) + (
            made.stats.new_tokens or run.count(made.text)
        )
        run.tokens += tokens
        notes = {"plugin": spec_name(pipeline.config.generator), "tokens": tokens, **made.notes}
        return replace(state, generation=made), notes


@dataclass(frozen=True, kw_only=True)
class Refine(Node):
    """CRAG's knowledge refinement: the best sentences of the hits, put together again in reading order.

    Sentences under the probability `least` are left out, at most `strips` and `budget` tokens are kept; without any
    that is good enough the bubble is empty.
    """

    use: ClassVar[str] = "refine"
    needs: ClassVar[tuple[str, ...]] = ("hits",)
    gives: ClassVar[tuple[str, ...]] = ("bubble",)

    least: float = 0.1
    strips: int = 8
    top: int = 10
    budget: int = 800

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.least <= 1 or min(self.strips, self.top, self.budget) < 1:
            raise ConfigError(
                "refine: 0 <= least <= 1, and strips, top and budget >= 1, not "
                f"least={self.least}, strips={self.strips}, top={self.top}, budget={self.budget}"
            )

    def run(self, state: State, run: Run, path: str) -> tuple[State, Notes]:
        strips = strips_of(state.question, state.hits[: self.top], run)
        order = sorted(range(len(strips)), key=lambda at: (-strips[at].support, at))
        kept: list[Strip] = []
        decisions, closed, tokens = [], "", 0
        for at in order:
            one = strips[at]
            if one.relevance < self.least:
                action, reason = "skip-relevance", f"probability {one.relevance:.3f} under {self.least}"
            elif closed or len(kept) == self.strips:
                action, reason = "skip-budget", closed or f"{self.strips} sentences are taken"
            else:
                total = run.count(assemble(_bubble(state.question, [*kept, one], 0, self.budget, ()).texts))
                if total > self.budget:
                    closed = f"needs {total} of {self.budget} tokens"
                    action, reason = "skip-budget", closed
                else:
                    action, reason, tokens = "take", f"probability {one.relevance:.3f}", total
                    kept.append(one)
            decisions.append(_decision(one, action, reason, run))
        bubble = _bubble(state.question, kept, tokens, self.budget, tuple(decisions))
        return replace(state, bubble=bubble), {"strips": len(strips), "kept": len(kept), "tokens": tokens}


def _decision(strip: Strip, action: str, reason: str, run: Run) -> Decision:
    return Decision(
        chunk_id=strip.hit.chunk.id,
        action=action,
        relevance=strip.relevance,
        gain=strip.relevance,
        redundancy=0.0,
        tokens=run.count(strip.text),
        reason=reason,
        span=strip.span,
        parts={"support": strip.support},
    )


def _bubble(question: str, kept: list[Strip], tokens: int, budget: int, decisions: tuple[Decision, ...]) -> Bubble:
    """The strips by chunk; documents by their best hit, chunks and strips by their place."""
    by_chunk: dict[str, list[Strip]] = {}
    for strip in kept:
        by_chunk.setdefault(strip.hit.chunk.id, []).append(strip)
    hits: list[Hit] = [strips[0].hit for strips in by_chunk.values()]
    best: dict[str, int] = {}
    for hit in hits:
        best[hit.chunk.doc_id] = min(hit.rank, best.get(hit.chunk.doc_id, hit.rank))
    hits.sort(key=lambda hit: (best[hit.chunk.doc_id], hit.chunk.doc_id, hit.chunk.span))
    return Bubble(
        question=question,
        hits=tuple(hits),
        token_count=tokens,
        budget=budget,
        decisions=decisions,
        kept=tuple(tuple(sorted(strip.span for strip in by_chunk[hit.chunk.id])) for hit in hits),
    )


@dataclass(frozen=True, kw_only=True)
class Widen(Node):
    """Takes `step` hits more when the last judgement was `lacking`, fewer when it was `excessive` (SAGE)."""

    use: ClassVar[str] = "widen"

    start: int = 8
    step: int = 4
    most: int = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.start <= self.most or self.step < 1:
            raise ConfigError(
                f"widen: 1 <= start <= most and step >= 1, not start={self.start}, most={self.most}, step={self.step}"
            )

    def run(self, state: State, run: Run, path: str) -> tuple[State, Notes]:
        turn: Mapping[str, int] = {"lacking": self.step, "excessive": -self.step}
        k = min(self.most, max(1, state.k + turn.get(state.label, 0))) if state.k else self.start
        return replace(state, k=k), {"k": k}


@dataclass(frozen=True, kw_only=True)
class Adjust(Node):
    """SAGE's step: the selector keeps `step` hits more in any case when the last judgement was `lacking`, fewer when it
    was `excessive`; `start` is the paper's min_k."""

    use: ClassVar[str] = "adjust"

    start: int = 7
    step: int = 1
    most: int = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.start <= self.most or self.step < 1:
            raise ConfigError(
                f"adjust: 1 <= start <= most and step >= 1, not start={self.start}, most={self.most}, step={self.step}"
            )

    def run(self, state: State, run: Run, path: str) -> tuple[State, Notes]:
        turn = {"lacking": self.step, "excessive": -self.step}.get(state.label, 0)
        min_k = min(self.most, max(1, state.min_k + turn)) if state.min_k else self.start
        return replace(state, min_k=min_k), {"min_k": min_k}


@dataclass(frozen=True, kw_only=True)
class Abstain(Node):
    """Says that the documents hold no answer; whatever was found is dropped, so nothing is cited."""

    use: ClassVar[str] = "abstain"
    gives: ClassVar[tuple[str, ...]] = ("generation",)

    def run(self, state: State, run: Run, path: str) -> tuple[State, Notes]:
        return replace(state, generation=Generation(text=NOT_FOUND), bubble=None, context=None), {"after": state.label}
