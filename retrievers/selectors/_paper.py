"""The context bubble as the paper has it (arXiv 2601.10681): whole chunks through three gates, best score first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from rag.protocols import TokenCounter
from rag.spans.features import Words, question_words
from rag.spans.filling import token_counts
from rag.spans.units import reading_order
from rag.text import TokenMap, assemble, lexical_words
from rag.types import Bubble, Decision, Hit
from retrievers.selectors._ledger import is_duplicate

__all__ = ["PaperBubble", "Scored", "scored"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A candidate: score = (relevance + boost) * length_penalty, as in section 3 of the paper."""

    hit: Hit
    tokens: int
    words: frozenset[str]
    section: str
    parts: Mapping[str, float]

    @property
    def score(self) -> float:
        return self.parts["score"]


@dataclass(kw_only=True)
class PaperBubble:
    """One selection. Gates, in order: token budget, section budget, redundancy, floor.

    A section may use `section_share` of the budget, but always as much as the largest chunk among the `anchors` best:
    else nothing fits when the share is smaller than a chunk. Section: the first heading, or the source without one.
    """

    counter: TokenCounter
    budget: int
    delta: float
    section_share: float
    min_score: float
    reallocate: bool
    stop_at_budget: bool
    anchors: int = 1
    chosen: list[Scored] = field(default_factory=list)
    decisions: dict[str, Decision] = field(default_factory=dict)
    closed: bool = False

    def run(self, question: str, ranked: Sequence[Scored]) -> Bubble:
        """`ranked`: best score first."""
        anchor = max((one.tokens for one in ranked[: self.anchors]), default=0)
        cap = max(self.section_share * self.budget, anchor)
        crowded = [one for one in ranked if self._offer(one, cap) == "section_budget_exceeded"]
        if self.reallocate:
            for one in crowded:
                self._offer(one, float("inf"))
        hits = tuple(reading_order(one.hit for one in self.chosen))
        return Bubble(
            question=question,
            hits=hits,
            token_count=self._count(self.chosen),
            budget=self.budget,
            decisions=tuple(self.decisions.values()),
        )

    def _offer(self, one: Scored, cap: float) -> str:
        total = self._count([*self.chosen, one]) if not self.closed else 0
        in_section = one.tokens + sum(other.tokens for other in self.chosen if other.section == one.section)
        said = frozenset[str]().union(*(other.words for other in self.chosen))
        overlap = len(one.words & said) / (len(one.words) or 1)
        same = next((other for other in self.chosen if is_duplicate(one.hit.chunk, other.hit.chunk)), None)
        around = any(is_duplicate(other.hit.chunk, one.hit.chunk) for other in self.chosen)
        if self.closed or total > self.budget:
            self.closed = self.closed or self.stop_at_budget
            action, reason = "skip-budget", "budget_exceeded"
        elif in_section > cap:
            action, reason = "skip-section", "section_budget_exceeded"
        elif same is not None or around or overlap >= self.delta:
            action, reason = "skip-redundant", "too_redundant"
        elif one.score <= self.min_score:
            action, reason = "skip-relevance", "low_relevance"
        else:
            action, reason = "take", "passed_all_gates"
            self.chosen.append(one)
        detail = f"{reason}: overlap {overlap:.2f} of {self.delta}, section {one.section!r} {in_section} of {cap:.0f}"
        self.decisions[one.hit.chunk.id] = Decision(
            chunk_id=one.hit.chunk.id,
            action=action,
            relevance=one.score,
            gain=one.score if action == "take" else 0.0,
            redundancy=round(overlap, 6),
            tokens=one.tokens,
            reason=detail,
            parts=one.parts,
        )
        return reason

    def _count(self, chosen: Sequence[Scored]) -> int:
        text = assemble(hit.chunk.text for hit in reading_order(one.hit for one in chosen))
        return TokenMap(self.counter, text).count(0, len(text))


def scored(
    question: str,
    hits: Sequence[Hit],
    counter: TokenCounter,
    *,
    score: str,
    theta: float,
    boosts: Mapping[str, float],
    keywords: Mapping[str, float],
    priors: Sequence[float],
    sources: Sequence[str],
) -> list[Scored]:
    """Best score first, ties by document and place. `theta` 0: the median of the tokens of the candidates."""
    tokens = token_counts([hit.chunk.text for hit in hits], counter)
    words = Words(question_words(question), [hit.chunk.text for hit in hits])
    frequency = words.counts.sum(axis=1)
    relevance = {"tf": frequency, "bm25": words.bm25(words.idf()), "retriever": [hit.score for hit in hits]}[score]
    target = theta or float(median(tokens or [1])) or 1.0
    made = []
    for at, hit in enumerate(hits):
        section = hit.chunk.section[0] if hit.chunk.section else sources[at]
        said = hit.chunk.text.casefold()
        boost = boosts.get(section, 0.0) + priors[at]
        boost += sum(value for word, value in keywords.items() if word.casefold() in said)
        penalty = 1.0 / (1.0 + tokens[at] / target)
        raw = float(relevance[at]) + boost
        parts = {"tf": float(frequency[at]), "boost": boost, "length_penalty": round(penalty, 6)}
        parts |= {"score_raw": round(raw, 6), "score": round(raw * penalty, 6)}
        bag = frozenset(lexical_words(hit.chunk.text))
        made.append(Scored(hit=hit, tokens=tokens[at], words=bag, section=section, parts=parts))
    return sorted(made, key=lambda one: (-one.score, one.hit.chunk.doc_id, one.hit.chunk.span))
