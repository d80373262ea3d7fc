"""How likely the reference answers are to the generator's own model, behind the prompt that the pipeline made.

Measured where the generator tells likelihoods (`local`; not `extractive`, not endpoints): one more pass over the prompt
for each different reference, four at most. A pass sees what `losses` of the model sees: all, where `local` has room.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from eval.measures.answers import normalised

if TYPE_CHECKING:
    from rag.answer import Prompt
    from rag.protocols import TextModel

__all__ = ["LIKELIHOOD", "Told", "gold_nats", "likelihood", "nats_per_token", "references", "tells"]

LIKELIHOOD = ("gold_nats", "gold_probability")
"""Nats a token of the reference, lower is better, of questions with a prompt; e to minus that, 0 without a prompt."""
Told = Mapping[str, float | None]
"""Reference -> nats a token; None where no prompt was made."""
_MOST = 4


def references(answers: Iterable[str]) -> tuple[str, ...]:
    """The first few that differ by more than case, punctuation and articles."""
    found: dict[str, str] = {}
    for answer in answers:
        if name := normalised(answer):
            found.setdefault(name, answer.strip())
    return tuple(found.values())[:_MOST]


def nats_per_token(model: TextModel, text: str, after: str) -> float | None:
    """Mean -ln p of the tokens of `text` behind `after`; None where the model does not tell."""
    losses = model.losses(text if not after or after[-1].isspace() else f" {text}", after=after)
    return sum(nats for _, _, nats in losses) / len(losses) if losses else None


def gold_nats(model: TextModel | None, prompt: Prompt, answers: Sequence[str]) -> dict[str, float | None] | None:
    """The Told of `answers`; None where there is no model, or one that does not tell."""
    if model is None:
        return None
    if not prompt.segments:
        return dict.fromkeys(answers)
    made: dict[str, float | None] = {}
    for answer in answers:
        nats = nats_per_token(model, answer, prompt.text)
        if nats is None:
            return None
        made[answer] = nats
    return made


def tells(told: Iterable[Told | None]) -> bool:
    """True when likelihoods were measured for any question."""
    return any(nats is not None for one in told if one for nats in one.values())


def likelihood(told: Told | None, answers: Iterable[str]) -> dict[str, float]:
    """Measures of a question whose run tells: those of the likeliest reference. No prompt: there is no answer to it."""
    found = [nats for answer in references(answers) if told and (nats := told.get(answer)) is not None]
    if not found:
        return {"gold_probability": 0.0}
    return {"gold_nats": min(found), "gold_probability": math.exp(-min(found))}
