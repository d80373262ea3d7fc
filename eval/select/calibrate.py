"""The threshold of `budget-auto` for a recall that is wanted, with a bound that holds for new questions of the kind.

Fixed-sequence testing (Learn then Test, arXiv 2110.01052) of thresholds from safe to aggressive, each by Hoeffding's
inequality: with probability 1 - alpha over the choice of the questions, the mean recall of the threshold found is at
least the target. The slack is wide: sqrt(ln(1 / alpha) / (2 n)), .07 for 236 questions at alpha .1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log, sqrt

from eval.chunks.data import half_of
from rag.errors import UsageError

__all__ = ["Calibrated", "Tested", "calibrated_theta", "slack_of"]


@dataclass(frozen=True, kw_only=True)
class Tested:
    """One threshold: mean recall of the questions, and what the mean of all such questions is at least."""

    theta: float
    recall: float
    bound: float


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """`theta` is the largest that holds, None when not even the safest does. `tested` ends with the first that fails.

    `slack` is what the bound is below the mean; `questions` is how many there were.
    """

    theta: float | None
    tested: tuple[Tested, ...]
    target: float
    alpha: float
    slack: float
    questions: int


def calibrated_theta(
    recall: Callable[[float, str], float],
    questions: Sequence[str],
    thetas: Sequence[float],
    *,
    target: float,
    alpha: float = 0.1,
) -> Calibrated:
    """The largest of `thetas` whose recall is at least `target` with probability 1 - `alpha`.

    `recall(theta, question id)` is from 0 to 1. Questions must be of the dev half, each once: the other half is for
    reports. Thresholds are tried in rising order, and none after the first that fails.

    Errors: UsageError for questions of the test half or twice, and numbers outside of their range.
    """
    _check(questions, thetas)
    slack = slack_of(len(questions), target, alpha)
    found: float | None = None
    tested: list[Tested] = []
    for theta in sorted(set(thetas)):
        recalls = [recall(theta, question) for question in questions]
        if not all(0.0 <= one <= 1.0 for one in recalls):
            raise UsageError(f"calibrate: a recall must be between 0 and 1, not {min(recalls)} to {max(recalls)}")
        mean = sum(recalls) / len(recalls)
        tested.append(Tested(theta=theta, recall=mean, bound=mean - slack))
        if mean - slack < target:
            break
        found = theta
    return Calibrated(
        theta=found, tested=tuple(tested), target=target, alpha=alpha, slack=slack, questions=len(questions)
    )


def slack_of(questions: int, target: float, alpha: float) -> float:
    """What the bound is below the mean recall of so many questions; UsageError for numbers outside of their range."""
    if not 0.0 < target <= 1.0 or not 0.0 < alpha < 1.0:
        raise UsageError(f"calibrate: target and alpha must be between 0 and 1, not {target}, {alpha}")
    return sqrt(log(1 / alpha) / (2 * questions))


def _check(questions: Sequence[str], thetas: Sequence[float]) -> None:
    if not questions or not thetas:
        raise UsageError("calibrate: at least one question and one theta are needed")
    if len(set(questions)) < len(questions):
        raise UsageError("calibrate: a question is there twice, but the bound needs them to be independent")
    unfit = [question for question in questions if half_of(question) != "dev"]
    if unfit:
        raise UsageError(f"calibrate: {len(unfit)} questions are of the test half, such as {unfit[0]!r}: use dev only")
