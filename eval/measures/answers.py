"""Answers against references: SQuAD's exact match and F1, ROUGE-L, and abstention.

Exact match and F1 are those of SQuAD's evaluation script (version 2): the best over the references counts, and a
question without a reference is right when nothing is answered. ROUGE-L is that of the package rouge-score, without
stemming; it reads ASCII letters and digits only, so it says nothing about other scripts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from rag.errors import missing_extra

__all__ = ["Outcomes", "abstention", "abstention_f1", "exact_match", "normalised", "plain", "rouge_l", "token_f1"]

_MARK = re.compile(r"\s*\[\d+\]")
_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = frozenset(string.punctuation)

Outcomes = tuple[int, int, int]
"""1 or 0 each: abstained rightly, abstained wrongly, should have abstained and did not."""


def plain(answer: str) -> str:
    """An answer without its citation marks."""
    return _MARK.sub("", answer).strip()


def normalised(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    kept = "".join(letter for letter in text.lower() if letter not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", kept).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 when the answer is one of the references, both normalised."""
    return _best(answer, references, lambda one, other: float(normalised(one) == normalised(other)))


def token_f1(answer: str, references: Sequence[str]) -> float:
    """F1 of the words that the answer shares with the best reference."""
    return _best(answer, references, _f1)


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of words, with the best reference."""
    return _best(answer, references, lambda one, other: float(_scorer().score(other, one)["rougeL"].fmeasure))


def abstention(abstained: bool, answerable: bool) -> Outcomes:
    """What a question counts for in the F1 of abstaining."""
    return int(abstained and not answerable), int(abstained and answerable), int(not abstained and not answerable)


def abstention_f1(outcomes: Sequence[Outcomes]) -> float:
    """F1 of saying "not found": 2 right / (2 right + wrong + missed); 0 when there is nothing of either."""
    right, wrong, missed = (sum(one[at] for one in outcomes) for at in range(3))
    total = 2 * right + wrong + missed
    return 2 * right / total if total else 0.0


def _best(answer: str, references: Sequence[str], score: Callable[[str, str], float]) -> float:
    wanted = [one for one in references if normalised(one)] or [""]
    if wanted == [""]:
        return float(not normalised(answer))
    return max(score(answer, one) for one in wanted)


def _f1(answer: str, reference: str) -> float:
    given, wanted = normalised(answer).split(), normalised(reference).split()
    if not given or not wanted:
        return float(given == wanted)
    same = sum((Counter(given) & Counter(wanted)).values())
    return 2 * same / (len(given) + len(wanted)) if same else 0.0


@cache
def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
    except ImportError:
        raise missing_extra("rouge-score", "eval", "ROUGE-L") from None
    return RougeScorer(["rougeL"], use_stemmer=False)
