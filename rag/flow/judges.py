"""Judges for routes and loops. Each reads a state and gives one of its labels; rules first, a model where it can.

Retrieved text reaches a decision here: judges count words, probabilities and citations, so that a passage that says
"score 10, context sufficient" is a passage like others. No model is shown a passage: `asked` shows it the question, and
`feedback`, where it may ask one, the answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from rag.answer import Generation
from rag.errors import ConfigError
from rag.flow.nodes import Judge
from rag.flow.relevance import strips_of
from rag.flow.state import Run, State, Verdict
from rag.generators._attention import whole_word
from rag.generators._support import content_words
from rag.prompt import MARKS
from rag.registry import Spec, build

if TYPE_CHECKING:
    from rag.types import Span

__all__ = ["Answered", "Asked", "Confident", "Grade", "Parts", "Settled", "Topic", "Variants", "doubts"]


@runtime_checkable
class Variants(Protocol):
    """A retriever that tells how else to ask, as `multi-query` does."""

    def variants(self, question: str) -> tuple[str, ...]: ...

    def parts(self, question: str) -> tuple[str, ...]: ...


def variants_plugin(spec: Spec, run: Run) -> Variants:
    """The retriever of `spec`, which must tell variants."""
    services = {
        "embedder": lambda: run.pipeline.embedder,
        "counter": lambda: run.pipeline.embedder.counter,
        "generator": lambda: run.pipeline.generator,
    }
    plugin = build("retriever", spec, services=services, path="flow")
    if not isinstance(plugin, Variants):
        raise ConfigError(f"flow: retriever {spec!r} tells no variants of a question; use multi-query")
    return plugin


def _shares(judge: str, **values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"{judge}: {name} must lie in [0, 1], not {value}")


@dataclass(frozen=True, kw_only=True)
class Topic(Judge):
    """The route whose words the question shares most: |K_j and K'| / |K'| over its content words (Modular RAG 5.2).

    Under `least` it is "other". With `semantic` > 0 that share is (1 - semantic) of the score, the softmax of the
    cosines between the question and the words of each route the rest.
    """

    use: ClassVar[str] = "topic"

    routes: Mapping[str, tuple[str, ...]]
    least: float = 0.1
    semantic: float = 0.0

    def __post_init__(self) -> None:
        _shares("topic", least=self.least, semantic=self.semantic)
        if not self.routes or "other" in self.routes:
            raise ConfigError("topic: routes needs at least one name with its words; 'other' is what fits none")

    @property
    def labels(self) -> tuple[str, ...]:
        return (*self.routes, "other")

    def judge(self, state: State, run: Run) -> Verdict:
        asked = set(content_words(state.question))
        keys = {name: set(content_words(" ".join(words))) for name, words in self.routes.items()}
        scores = {name: len(asked & words) / (len(asked) or 1) for name, words in keys.items()}
        if self.semantic:
            embedder = run.pipeline.embedder
            vector = embedder.embed_question(state.question)
            near = embedder.embed([" ".join(words) for words in self.routes.values()]) @ vector
            raw = [math.exp(float(value)) for value in near]
            for name, value in zip(scores, raw, strict=True):
                scores[name] = (1 - self.semantic) * scores[name] + self.semantic * value / sum(raw)
        best = max(scores, key=lambda name: round(scores[name], 6))
        label = best if scores[best] >= self.least and scores[best] > 0 else "other"
        return Verdict(label=label, score=scores[best], notes={k: round(v, 4) for k, v in scores.items()})


@dataclass(frozen=True, kw_only=True)
class Parts(Judge):
    """`several` for a double question or a comparison, `one` for any other."""

    use: ClassVar[str] = "parts"

    by: Spec = "multi-query"

    @property
    def labels(self) -> tuple[str, ...]:
        return ("one", "several")

    def judge(self, state: State, run: Run) -> Verdict:
        parts = variants_plugin(self.by, run).parts(state.question)
        return Verdict(label="several" if len(parts) > 1 else "one", notes={"parts": list(parts)})


@dataclass(frozen=True, kw_only=True)
class Asked(Judge):
    """What the language model says when it is asked about the question: the first label that its answer starts with.

    `default` when it says none of them. For capable models only: small ones guess.
    """

    use: ClassVar[str] = "asked"

    prompt: str
    choices: tuple[str, ...]
    default: str

    def __post_init__(self) -> None:
        if self.default not in self.choices or len(self.choices) < 2 or "{question}" not in self.prompt:
            raise ConfigError("asked: at least two choices, the default among them, and {question} in the prompt")

    @property
    def labels(self) -> tuple[str, ...]:
        return self.choices

    def judge(self, state: State, run: Run) -> Verdict:
        prompt = self.prompt.replace("{question}", state.question)
        said = run.complete(prompt, 8, "judge asked").strip().casefold()
        label = next((one for one in self.choices if said.startswith(one.casefold())), self.default)
        return Verdict(label=label, notes={"said": said[:40]})


@dataclass(frozen=True, kw_only=True)
class Grade(Judge):
    """CRAG's evaluator (Yan et al., arXiv 2401.15884): `correct`, `ambiguous` or `incorrect`.

    The probability of a hit is that of its best sentence. Correct when the best of `top` hits has at least `high`,
    incorrect when all are under `low`.

    The defaults, on the 209 questions that the logistic was fitted on: the first five hits hold evidence for 96 % of
    those whose best has .3, and for 81 % of those between .15 and .3. .18 is the support of .38 under which the
    generator extractive abstains. It stops 16 of the 209, of which 13 have evidence there; how many questions about
    another corpus it stops was not measured.

    Deviations: a logistic over cosine and word coverage instead of a fine-tuned T5.
    """

    use: ClassVar[str] = "grade"
    needs: ClassVar[tuple[str, ...]] = ("hits",)

    high: float = 0.3
    low: float = 0.18
    top: int = 5

    def __post_init__(self) -> None:
        _shares("grade", high=self.high, low=self.low)
        if self.low > self.high or self.top < 1:
            raise ConfigError(f"grade: low <= high and top >= 1, not low={self.low}, high={self.high}, top={self.top}")

    @property
    def labels(self) -> tuple[str, ...]:
        return ("correct", "ambiguous", "incorrect")

    def judge(self, state: State, run: Run) -> Verdict:
        strips = strips_of(state.question, state.hits[: self.top], run)
        best = max((strip.relevance for strip in strips), default=0.0)
        label = "correct" if best >= self.high else "incorrect" if best < self.low else "ambiguous"
        return Verdict(label=label, score=best, notes={"high": self.high, "low": self.low})


@dataclass(frozen=True, kw_only=True)
class Answered(Judge):
    """`yes` when the answer has citations and every sentence of it is supported, else `no`."""

    use: ClassVar[str] = "answered"
    needs: ClassVar[tuple[str, ...]] = ("generation",)

    @property
    def labels(self) -> tuple[str, ...]:
        return ("yes", "no")

    def judge(self, state: State, run: Run) -> Verdict:
        made = state.generation or Generation(text="")
        share = sum(made.supported) / len(made.supported) if made.supported else 0.0
        return Verdict(label="yes" if made.citations and share == 1.0 else "no", score=share)


@dataclass(frozen=True, kw_only=True)
class Settled(Judge):
    """`yes` when the answer is that of the round before (ITER-RETGEN's rounds add nothing any more), else `no`."""

    use: ClassVar[str] = "settled"
    needs: ClassVar[tuple[str, ...]] = ("generation",)

    @property
    def labels(self) -> tuple[str, ...]:
        return ("yes", "no")

    def judge(self, state: State, run: Run) -> Verdict:
        text = state.generation.text if state.generation else ""
        same = bool(text) and text == state.previous
        return Verdict(label="yes" if same else "no", score=float(same))


@dataclass(frozen=True, kw_only=True)
class Confident(Judge):
    """FLARE's test (Jiang et al., arXiv 2305.06983) with ATLAS's gate (arXiv 2504.01281): is the draft sure of itself?

    `no` when the model gave a token that carries meaning (no stop word, number or punctuation) a probability under
    `least`. A model that does not tell is judged by its unsupported sentences instead.

    Deviations: the whole draft is judged, not sentence by sentence while it is written. ATLAS's layer-attention
    gradient is in the judge `needs`.
    """

    use: ClassVar[str] = "confident"
    needs: ClassVar[tuple[str, ...]] = ("generation",)

    least: float = 0.5

    def __post_init__(self) -> None:
        _shares("confident", least=self.least)

    @property
    def labels(self) -> tuple[str, ...]:
        return ("yes", "no")

    def judge(self, state: State, run: Run) -> Verdict:
        made = state.generation or Generation(text="")
        unsure, sure, how = doubts(made, self.least, run)
        abstains = not made.citations
        label = "no" if unsure or abstains else "yes"
        return Verdict(label=label, score=sure, notes={"how": how, "unsure": unsure[:8]})


def doubts(made: Generation, least: float, run: Run) -> tuple[list[str], float, str]:
    """(words of the answer that the model was unsure of, mean probability or supported share, how it was told)."""
    model = run.text_model
    text = MARKS.sub("", made.text)
    losses = model.losses(text, after=made.prompt.text) if model is not None else None
    if losses is None:
        bad = [span for span, good in zip(made.sentences, made.supported, strict=True) if not good]
        share = 1 - len(bad) / len(made.supported) if made.supported else 0.0
        return [word for span in bad for word in _words(made.text, span)], share, "supported sentences"
    run.tokens += run.count(made.prompt.text) + run.count(text)
    edge = -math.log(least) if least else math.inf
    unsure = []
    for start, end, nats in losses:
        if nats > edge:
            word = whole_word(text, start, end)
            if word and not word.isdigit() and content_words(word) and word not in unsure:
                unsure.append(word)
    mean = math.exp(-sum(nats for *_, nats in losses) / len(losses)) if losses else 0.0
    return unsure, mean, "token probabilities"


def _words(text: str, span: Span) -> list[str]:
    return MARKS.sub("", text[span.start : span.end]).split()
