"""Outcome and gold of a question -> scores, where its evidence was lost, and a row for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from eval.chunks.measures import area, corrected, covered, merged
from eval.measures.answers import Outcomes, abstention, exact_match, normalised, plain, rouge_l, token_f1
from eval.measures.grounding import citation_precision, citation_recall, contained_facts, k_precision
from eval.measures.ranking import name_of
from eval.runs.gold import Gold
from eval.runs.ingesting import Prepared
from eval.runs.likelihood import likelihood, references
from eval.runs.outcomes import BUDGETS, Outcome
from eval.sets import Place

__all__ = ["BETTER", "COSTS", "FAILURES", "PROXIES", "STAGES", "TOKEN_COSTS", "Scored", "ranking_of", "scored"]

STAGES = ("chunk", "retrieve", "select", "compress", "generate")
FAILURES = ("none", "parse", *STAGES, "error")
PROXIES = frozenset({"k_precision", "number_name_containment"})
"""They look at words, not at meaning."""
TOKEN_COSTS = ("prompt_tokens", "new_tokens")
_ENCODER = {
    "encoder_calls": "calls", "encoder_texts": "texts", "encoder_characters": "characters",
    "sentence_vectors": "sentences",
}  # fmt: skip
"""`sentence_vectors` are read from the index, which keeps them."""
_CONTEXT = ("context_tokens", "context_chunks", "context_bytes")
COSTS = frozenset({*_CONTEXT, *TOKEN_COSTS, *_ENCODER})
BETTER: Mapping[str, Literal["higher", "lower"]] = dict.fromkeys([*sorted(COSTS), "gold_nats"], "lower")
"""What is not here is better when it is higher."""
_ENOUGH = 0.5
"""A stage loses a question when less than this share of its evidence is left; an answer with such an F1 is right."""
_FIRST = 10
_AROUND = 40


@dataclass(frozen=True, kw_only=True)
class Scored:
    """`scores` has only measures that apply to the question. `shares`: stage -> share of the evidence left after it."""

    scores: Mapping[str, float]
    shares: Mapping[str, float]
    curve: tuple[float, ...]
    failure: str | None
    abstention: Outcomes
    row: Mapping[str, Any]


def ranking_of(gold: Gold, outcome: Outcome) -> list[str]:
    """The chunks found, best first, or the documents they are of, each once."""
    hits = [(name, start, end) for name, start, end, _ in outcome["hits"]]
    return list(dict.fromkeys(name if gold.by_document else name_of((name, s, e)) for name, s, e in hits))


def scored(
    gold: Gold, outcome: Outcome, ranking: Mapping[str, float], prepared: Prepared, answers: bool, told: bool = False
) -> Scored:
    """`ranking`: the scores of ir-measures. `answers`: the set has reference answers. `told`: the likelihood of some
    was measured in this run. An error scores 0 everywhere, and has neither costs nor nats.
    """
    shares = _shares(gold, outcome, prepared)
    curve = _curve(gold, outcome)
    scores = {
        **(dict(ranking) if gold.grades or gold.has_evidence else {}),
        **(_spans(gold, outcome, prepared, curve) if gold.has_evidence else {}),
        **(_answers(gold, outcome, prepared) if answers else {}),
        **_grounding(gold, outcome, prepared),
        **(likelihood(outcome["gold"], gold.question.answers) if told and _has_reference(gold) else {}),
    }
    if outcome["error"] is not None:
        scores = dict.fromkeys(scores, 0.0)
    else:
        scores |= _costs(outcome, prepared)
    failure = _failure(gold, outcome, shares)
    return Scored(
        scores=scores, shares=shares, curve=curve, failure=failure,
        abstention=abstention(bool(outcome["abstained"]), gold.question.answerable),
        row=_row(gold, outcome, prepared, scores, failure),
    )  # fmt: skip


def _kept(outcome: Outcome) -> list[Place]:
    return [(name, start, end) for name, _, _, kept in outcome["context"] for start, end in kept]


def _places(rows: list[list[Any]]) -> list[Place]:
    return [(str(row[0]), int(row[1]), int(row[2])) for row in rows]


def _shares(gold: Gold, outcome: Outcome, prepared: Prepared) -> dict[str, float]:
    if not gold.has_evidence and not gold.by_document:
        return {}
    names = {name for name, _, _ in gold.places} | (set(gold.grades) if gold.by_document else set())
    chunks = [(name, start, end) for name in sorted(names) for start, end in prepared.chunks.get(name, ())]
    after = (chunks, _places(outcome["hits"]), _places(outcome["selected"]), _kept(outcome),
             _places(outcome["citations"]))  # fmt: skip
    return {stage: gold.share(list(places)) for stage, places in zip(STAGES, after, strict=True)}


def _curve(gold: Gold, outcome: Outcome) -> tuple[float, ...]:
    """Share of the evidence in what is read of the ranking within each budget."""
    if not gold.has_evidence:
        return ()
    hits = _places(outcome["hits"])
    found = []
    for whole, end in outcome["prefixes"]:
        part = [(hits[whole][0], hits[whole][1], end)] if end else []
        found.append(gold.share([*hits[:whole], *part]))
    return tuple(found)


def _spans(gold: Gold, outcome: Outcome, prepared: Prepared, curve: tuple[float, ...]) -> dict[str, float]:
    """Of the final context; IoU and the like count only evidence that parsing left."""
    names = ("recall", "precision", "iou", "precision_omega")
    if gold.places:
        touching = [
            (name, s, e)
            for name in sorted({name for name, _, _ in gold.places})
            for s, e in prepared.chunks.get(name, ())
            if covered(gold.places, [(name, s, e)])
        ]
        made = corrected(gold.places, _kept(outcome), touching)
        spans = {f"span_{name}": made[f"{name}_corrected"] for name in names}
        spans["span_recall"] = gold.share(_kept(outcome))
    else:
        spans = dict.fromkeys((f"span_{name}" for name in names), 0.0)
    at = {f"recall@{budget}": share for budget, share in zip(BUDGETS, curve, strict=True)}
    return {**spans, **at, "recall_area": area(BUDGETS, curve)}


def _answers(gold: Gold, outcome: Outcome, prepared: Prepared) -> dict[str, float]:
    question = gold.question
    if question.answerable and not question.answers:
        return {}
    said = "" if outcome["abstained"] else plain(outcome["answer"])
    references = question.answers if question.answerable else ()
    made = {"em": exact_match(said, references), "f1": token_f1(said, references)}
    if not question.answerable:
        return made
    context = normalised(" ".join(_slices(_kept(outcome), prepared)))
    there = any(normalised(one) in context for one in references if normalised(one))
    return {**made, "rouge_l": rouge_l(said, references), "answer_in_context": float(there)}


def _grounding(gold: Gold, outcome: Outcome, prepared: Prepared) -> dict[str, float]:
    """Citations against the evidence for every question that has some; proxies for those that were answered."""
    cited = _places(outcome["citations"])
    made: dict[str, float] = {}
    if gold.has_evidence:
        made |= {
            "citation_precision": citation_precision(cited, gold.places),
            "citation_recall": citation_recall(cited, gold.places),
        }
    if not outcome["abstained"]:
        said = plain(outcome["answer"])
        made |= {
            "k_precision": k_precision(said, _slices(_kept(outcome), prepared)),
            "number_name_containment": contained_facts(said, _slices(cited, prepared)),
        }
    return made


def _costs(outcome: Outcome, prepared: Prepared) -> dict[str, float]:
    texts = _slices(_kept(outcome), prepared)
    used = (outcome["tokens"], len(outcome["context"]), sum(len(text.encode("utf-8", "replace")) for text in texts))
    found = dict(zip(_CONTEXT, used, strict=True))
    if outcome["encoder"] is not None:
        found |= {name: outcome["encoder"][key] for name, key in _ENCODER.items()}
    if outcome["generation"]["prompt_tokens"]:
        found |= {name: outcome["generation"][name] for name in TOKEN_COSTS}
    return {name: float(value) for name, value in found.items()}


def _has_reference(gold: Gold) -> bool:
    return gold.question.answerable and bool(references(gold.question.answers))


def _slices(places: list[Place], prepared: Prepared) -> list[str]:
    return [prepared.texts[name][start:end] for name, start, end in places]


def _failure(gold: Gold, outcome: Outcome, shares: Mapping[str, float]) -> str | None:
    """The stage that a wrong answer is due to: the first after which less than half of the evidence is left."""
    if outcome["error"] is not None:
        return "error"
    if _right(gold, outcome, shares):
        return None
    if gold.lost and gold.share(list(gold.places)) < _ENOUGH:
        return "parse"
    return next((stage for stage in STAGES if shares.get(stage, 1.0) < _ENOUGH), "generate")


def _right(gold: Gold, outcome: Outcome, shares: Mapping[str, float]) -> bool:
    """Right: abstained where nothing answers; else a reference is in the answer or has half of its words in common
    with it, or the citations hold half of the evidence.
    """
    if not gold.question.answerable or outcome["abstained"]:
        return bool(outcome["abstained"]) and not gold.question.answerable
    said = plain(outcome["answer"])
    words = f" {normalised(said)} "
    known = [one for one in gold.question.answers if normalised(one)]
    if any(f" {normalised(one)} " in words for one in known):
        return True
    if known and token_f1(said, known) >= _ENOUGH:
        return True
    return shares.get("generate", 0.0 if known else 1.0) >= _ENOUGH


def _row(
    gold: Gold, outcome: Outcome, prepared: Prepared, scores: Mapping[str, float], failure: str | None
) -> dict[str, Any]:
    texts = prepared.texts
    hits = [
        {"rank": rank, "source": name, "start": start, "end": end, "score": score,
         "gold": (name if gold.by_document else name_of((name, start, end))) in gold.grades}
        for rank, (name, start, end, score) in enumerate(outcome["hits"][:_FIRST], start=1)
    ]  # fmt: skip
    context = [
        {"source": name, "start": start, "end": end, "kept": kept, "text": texts[name][start:end],
         "before": texts[name][max(0, start - _AROUND) : start], "after": texts[name][end : end + _AROUND]}
        for name, start, end, kept in outcome["context"]
    ]  # fmt: skip
    return {
        "query_id": gold.question.id,
        "question": gold.question.text,
        "answers": list(gold.question.answers),
        "answer": outcome["answer"],
        "failure": failure,
        "error": outcome["error"],
        "scores": dict(scores),
        "evidence": [{"source": n, "start": s, "end": e, "text": texts[n][s:e]} for n, s, e in merged(gold.places)],
        "hits": hits,
        "context": context,
        "citations": [{"source": n, "start": s, "end": e} for n, s, e in outcome["citations"]],
    }
