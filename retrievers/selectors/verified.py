"""A gate in front of another selector: hits that look poisoned, injected or contradicted do not reach it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rag.errors import ConfigError
from rag.protocols import Corpus, Selector, TokenCounter, nested, service
from rag.spans.features import question_words
from rag.types import Bubble, Chunk, Decision, Document, Hit
from retrievers.selectors._claims import agreement, claims_of, dissenters
from retrievers.selectors._guarded import GuardedCorpus
from retrievers.selectors._signals import TIERS, containment, densities, hidden, injection, robust_z, tier_of

_SHARES = ("injection", "hidden", "containment", "conflict", "agreement")


@dataclass(frozen=True, kw_only=True)
class VerifiedSelector(Selector):
    """Examines all hits, and hands those that pass to `selector`. What it drops is on the ledger as `skip-verifier`.

    A hit is dropped when a signal reaches its threshold; a threshold of 0 switches the signal off. `injection`:
    instructions for a model (patterns on the NFKC text without invisible characters). `hidden`: share of invisible
    characters. `containment`: share of the question's word trigrams in the text. `density`: robust z of the share of
    question words among the hits. `conflict`: word overlap from which two sentences with another year, number or
    name contradict each other; the hit that stands alone or is less trusted goes. `agreement`: drops a hit with a
    smaller share of keywords that other sources have as well; off, for it drops what one source alone knows.

    `trust` gives sources a tier (`blocked`, `untrusted`, `known`, `trusted`) by the first rule that fits, either
    `source=PATTERN` or `meta.NAME=PATTERN`, from ingestion metadata only; others have `default_trust`. Blocked ones
    are dropped; trusted ones are judged by `injection` and `hidden` alone. `source_hits` and `source_tokens` cap what
    one source may hand over, best ranks first (0: no cap). `on_flag: demote` puts flagged hits behind all others
    instead. `budget` is that of `selector` (0: the one that it has).

    After the verifier of METEORA (arXiv 2505.16014). Deviations: no language model judges, and passages are not
    summarised for each other: patterns, counts and conflicts decide, all hits at once instead of one after another.
    """

    selector: Any = nested("selector", "top-k")
    counter: TokenCounter = service()
    budget: int = 0
    injection: float = 0.6
    hidden: float = 0.01
    containment: float = 0.8
    density: float = 0.0
    conflict: float = 0.6
    agreement: float = 0.0
    trust: Mapping[str, str] = field(default_factory=dict)
    default_trust: Literal["blocked", "untrusted", "known", "trusted"] = "known"
    source_hits: int = 0
    source_tokens: int = 0
    on_flag: Literal["drop", "demote"] = "drop"

    def __post_init__(self) -> None:
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"verified: {name} must lie between 0 (off) and 1, not {getattr(self, name)}")
        for name in ("budget", "density", "source_hits", "source_tokens"):
            if getattr(self, name) < 0:
                raise ConfigError(f"verified: {name} must be >= 0, not {getattr(self, name)}")
        for rule, tier in self.trust.items():
            if "=" not in rule or not rule.startswith(("source=", "meta.")):
                raise ConfigError(f"verified: trust rule {rule!r} is no source=PATTERN and no meta.NAME=PATTERN")
            self._tier(tier, f"trust of {rule!r}")
        self._tier(self.default_trust, "default_trust")
        if self.on_flag not in ("drop", "demote"):
            raise ConfigError(f"verified: on_flag must be drop or demote, not {self.on_flag!r}")
        if self.budget and not hasattr(self.selector, "budget"):
            raise ConfigError("verified: its selector has no field budget; set budget: 0")

    def select(self, question: str, hits: Sequence[Hit], corpus: Corpus) -> Bubble:
        ranked = sorted(hits, key=lambda hit: hit.rank)
        found = self.examine(question, ranked, [corpus.document(hit.chunk.doc_id) for hit in ranked])
        flagged = [hit for hit, (reason, _) in zip(ranked, found, strict=True) if reason]
        passed = [hit for hit, (reason, _) in zip(ranked, found, strict=True) if not reason]
        if self.on_flag == "demote":
            passed, flagged = _demoted(passed, flagged), []
        inner = replace(self.selector, budget=self.budget) if self.budget else self.selector
        if self.on_flag == "drop":
            corpus = self._guarded(question, corpus, flagged)
        bubble: Bubble = inner.select(question, passed, corpus)
        about = {hit.chunk.id: given for hit, given in zip(ranked, found, strict=True)}
        kept = tuple(_noted(decision, about) for decision in bubble.decisions)
        dropped = tuple(self._dropped(hit, *about[hit.chunk.id]) for hit in flagged)
        return replace(bubble, decisions=dropped + kept)

    def examine(
        self, question: str, hits: Sequence[Hit], documents: Sequence[Document]
    ) -> list[tuple[str, Mapping[str, float]]]:
        """(reason to drop it or "", its scores) of every hit, in order; best hits first, each with its document."""
        tiers = [tier_of(self.trust, document, self.default_trust) for document in documents]
        sources = [document.source for document in documents]
        texts = [hit.chunk.text for hit in hits]
        together = self._together(question, texts, sources, tiers)
        found: list[tuple[str, Mapping[str, float]]] = []
        for text, tier, (late, more) in zip(texts, tiers, together, strict=True):
            early, parts = self._alone(question, text, tier)
            found.append((early or late, {**parts, **more}))
        return self._capped(hits, sources, found)

    def _guarded(self, question: str, corpus: Corpus, flagged: Sequence[Hit]) -> Corpus:
        """The corpus without what was dropped, and without other chunks that a signal of one text speaks against."""
        gone = {hit.chunk.id for hit in flagged}

        def refused(chunk: Chunk) -> bool:
            tier = tier_of(self.trust, corpus.document(chunk.doc_id), self.default_trust)
            return chunk.id in gone or bool(self._alone(question, chunk.text, tier)[0])

        return GuardedCorpus(corpus, refused)

    def _alone(self, question: str, text: str, tier: str) -> tuple[str, dict[str, float]]:
        """The signals of one text."""
        score, names = injection(text)
        parts = {"trust": float(TIERS.index(tier)), "injection": score, "hidden": hidden(text)}
        parts["containment"] = containment(question, text)
        if tier == "blocked":
            return "trust: its source is blocked", parts
        if _over(score, self.injection):
            return f"injection: {', '.join(names)} ({score:.2f})", parts
        if _over(parts["hidden"], self.hidden):
            return f"hidden: {parts['hidden']:.1%} of its characters show nothing", parts
        if tier != "trusted" and _over(parts["containment"], self.containment):
            return f"containment: {parts['containment']:.0%} of the question stands in it", parts
        return "", parts

    def _together(
        self, question: str, texts: Sequence[str], sources: Sequence[str], tiers: Sequence[str]
    ) -> list[tuple[str, Mapping[str, float]]]:
        """The signals that compare the hits with each other."""
        dense = robust_z(densities(question_words(question), texts))
        shared = agreement(question, texts, sources) if self.agreement else [1.0] * len(texts)
        lost = dissenters(claims_of(texts), sources, tiers, self.conflict) if self.conflict else {}
        found: list[tuple[str, Mapping[str, float]]] = []
        for place, tier in enumerate(tiers):
            parts = {"density": dense[place], "conflict": float(place in lost), "agreement": shared[place]}
            reason = ""
            if tier != "trusted":
                if _over(dense[place], self.density):
                    reason = f"density: its share of question words is {dense[place]:.1f} spreads over the median"
                elif place in lost:
                    reason = f"conflict: {lost[place][1]} ({sources[lost[place][0]]})"
                elif shared[place] < self.agreement:
                    reason = f"agreement: other sources have {shared[place]:.0%} of its keywords"
            found.append((reason, parts))
        return found

    def _capped(
        self, hits: Sequence[Hit], sources: Sequence[str], found: list[tuple[str, Mapping[str, float]]]
    ) -> list[tuple[str, Mapping[str, float]]]:
        """The same, with a reason for what is over the caps of its source; a source that is over its tokens is full."""
        if not (self.source_hits or self.source_tokens):
            return found
        count: dict[str, int] = {}
        tokens: dict[str, int] = {}
        made = []
        for hit, source, (reason, parts) in zip(hits, sources, found, strict=True):
            if not reason:
                count[source] = count.get(source, 0) + 1
                tokens[source] = tokens.get(source, 0) + self.counter.count(hit.chunk.text)
                if self.source_hits and count[source] > self.source_hits:
                    reason = f"cap: {self.source_hits} hits of its source come before it"
                elif self.source_tokens and tokens[source] > self.source_tokens:
                    reason = f"cap: with it its source has {tokens[source]} of {self.source_tokens} tokens"
            made.append((reason, parts))
        return made

    def _dropped(self, hit: Hit, reason: str, parts: Mapping[str, float]) -> Decision:
        return Decision(
            chunk_id=hit.chunk.id,
            action="skip-verifier",
            relevance=hit.score,
            gain=0.0,
            redundancy=0.0,
            tokens=self.counter.count(hit.chunk.text),
            reason=reason,
            parts=parts,
        )

    def _tier(self, tier: str, what: str) -> None:
        if tier not in TIERS:
            raise ConfigError(f"verified: {what} must be one of {', '.join(TIERS)}, not {tier!r}")


def _over(score: float, threshold: float) -> bool:
    return threshold > 0 and score >= threshold


def _demoted(passed: Sequence[Hit], flagged: Sequence[Hit]) -> list[Hit]:
    """The flagged ones ranked after all others, with no better score than they have."""
    least = min((hit.score for hit in passed), default=float("inf"))
    late = [replace(hit, score=min(hit.score, least)) for hit in flagged]
    return [replace(hit, rank=rank) for rank, hit in enumerate((*passed, *late), start=1)]


def _noted(decision: Decision, about: Mapping[str, tuple[str, Mapping[str, float]]]) -> Decision:
    """A decision about a flagged hit that was demoted, with what was found."""
    reason, parts = about.get(decision.chunk_id, ("", {}))
    if not reason:
        return decision
    return replace(decision, reason=f"{decision.reason}; demoted: {reason}", parts={**decision.parts, **parts})
