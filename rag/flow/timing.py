"""When to retrieve again, and what to ask, by what the model's probabilities and its attention say of a draft."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from rag.answer import Generation
from rag.errors import ConfigError
from rag.flow.judges import Confident
from rag.flow.nodes import Judge
from rag.flow.state import Run, State, Verdict
from rag.generators._attention import whole_word
from rag.generators._support import content_words
from rag.prompt import MARKS

__all__ = ["Needs", "Reading", "trigger"]

Reading = Literal["from", "received", "printed"]
"""Which attention is read; rag/generators/_attention.py has the formulas."""


@dataclass(frozen=True, kw_only=True)
class Needs(Judge):
    """ATLAS's test (arXiv 2504.01281): `no` when the draft has a token at which the model needs to look something up.

    First the gate: a token that carries meaning (no stop word, number or punctuation) with a probability under
    `least`. Then what its attention says, from 0 to 1, must be at least `need`; `reading` says which attention. An
    abstention is `no` too. A model that does not show its attention is judged as by `confident`.

    ATLAS gives no threshold. .21 is the median, over 25 drafts of SmolLM2-135M for questions of the development halves
    of hotpotqa_200 and squad_long, of the largest value of a draft with the reading `from` (quartiles .17 and .25):
    half of its drafts retrieve again. It tells where a model stands, not what is best, and another model has other
    values: look at `need` in the trace. With `received` the median is .015; `printed` is 0 for every token, so that
    nothing is retrieved again but after an abstention.

    Deviations: the whole draft is judged, not token by token while it is written.
    """

    use: ClassVar[str] = "needs"
    needs: ClassVar[tuple[str, ...]] = ("generation",)

    least: float = 0.5
    need: float = 0.21
    reading: Reading = "from"

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1 or not 0 <= self.need <= 1:
            raise ConfigError(f"needs: least and need must lie in [0, 1], not least={self.least}, need={self.need}")
        if self.reading not in ("from", "received", "printed"):
            raise ConfigError(f"needs: reading must be from, received or printed, not {self.reading!r}")

    @property
    def labels(self) -> tuple[str, ...]:
        return ("yes", "no")

    def judge(self, state: State, run: Run) -> Verdict:
        made = state.generation or Generation(text="")
        found = trigger(made, run, least=self.least, reading=self.reading)
        if found is None:
            return Confident(least=self.least).judge(state, run)
        word, need, _ = found
        wanted = need >= self.need and bool(word)
        notes = {"how": f"attention, reading {self.reading}", "word": word, "need": need, "over": wanted}
        return Verdict(label="no" if wanted or not made.citations else "yes", score=1.0 - need, notes=notes)


def trigger(made: Generation, run: Run, *, least: float, reading: Reading) -> tuple[str, float, tuple[str, ...]] | None:
    """(word of the draft with the largest need, that need, the words before it that it leans on).

    Of tokens that pass the gate; ("", 0, ()) when none does. None where the model does not show its attention.
    """
    model, text = run.text_model, MARKS.sub("", made.text)
    if model is None:
        return None
    key = ("needs", reading, text, made.prompt.text)
    if key not in run.kept:
        told = model.needs(text, after=made.prompt.text, reading=reading)
        if told is not None:
            run.tokens += run.count(made.prompt.text) + run.count(text)
        run.kept[key] = told
    told = run.kept[key]
    if told is None:
        return None
    edge = -math.log(least) if least else math.inf
    best: tuple[str, float, tuple[str, ...]] = ("", 0.0, ())
    for start, end, nats, need, words in told:
        if nats > edge and need > best[1]:
            word = whole_word(text, start, end)
            if word and not word.isdigit() and content_words(word):
                best = (word, need, words)
    return best
