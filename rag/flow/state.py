"""What flows from node to node, and the account of one run: its trace and what of its budget is spent."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rag.answer import Generation, StageTrace
from rag.errors import ConfigError
from rag.registry import Spec
from rag.types import Bubble, CompressedContext, Hit

if TYPE_CHECKING:
    from rag.index import Index
    from rag.pipeline import Pipeline
    from rag.protocols import Filter, TextModel

__all__ = ["Budget", "Run", "State", "Verdict"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When a flow starts no further round or branch; nodes after it still run, so that there is an answer.

    `steps`: node runs in the worst case, checked before the first. `rounds`: of all loops together. `tokens`: read and
    written by language models, in the generator's tokens. `seconds`: of the clock that the run is given. 0: no limit.
    """

    steps: int = 500
    rounds: int = 12
    tokens: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rounds < 1 or self.tokens < 0 or self.seconds < 0:
            raise ConfigError(
                "flow budget: steps and rounds must be >= 1, tokens and seconds >= 0, not "
                f"steps={self.steps}, rounds={self.rounds}, tokens={self.tokens}, seconds={self.seconds}"
            )


@dataclass(frozen=True, kw_only=True)
class State:
    """The ports between nodes. `question` never changes, `query` is what the next search asks for.

    `k` is how many hits a search takes, `min_k` how many a selector keeps in any case (0: their own defaults);
    `previous` is the answer of the round before.
    """

    question: str
    query: str
    where: Filter | None = None
    queries: tuple[str, ...] = ()
    hits: tuple[Hit, ...] = ()
    k: int = 0
    min_k: int = 0
    bubble: Bubble | None = None
    context: CompressedContext | None = None
    generation: Generation | None = None
    previous: str = ""
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a judge says of a state. A higher score is better; `keep: best` of a loop compares them."""

    label: str
    score: float = 0.0
    notes: Mapping[str, Any] = field(default_factory=dict)


class Run:
    """One run of a flow over an open index. Not shared, not reused."""

    def __init__(
        self, pipeline: Pipeline, index: Index, budget: Budget, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.pipeline, self.index, self.budget, self.clock = pipeline, index, budget, clock
        self.trace: list[StageTrace] = []
        self.rounds = 0
        self.tokens = 0
        self.kept: dict[tuple[str, ...], Any] = {}
        """What a node found out that another may ask for; gone with the run."""
        self._started = clock()
        self._variants: dict[str, Pipeline] = {}

    def spent(self) -> str:
        """Which part of the budget is used up; "" when none is."""
        budget = self.budget
        if self.rounds >= budget.rounds:
            return f"rounds: {self.rounds} of {budget.rounds}"
        if budget.tokens and self.tokens >= budget.tokens:
            return f"tokens: {self.tokens} of {budget.tokens}"
        if budget.seconds and self.clock() - self._started >= budget.seconds:
            return f"seconds: {budget.seconds:g} are over"
        return ""

    def note(self, stage: str, plugin: str, started: float, sizes: tuple[int, int], notes: Mapping[str, Any]) -> None:
        """One line of the trace."""
        seconds, (items_in, items_out) = self.clock() - started, sizes
        self.trace.append(
            StageTrace(
                stage=stage, plugin=plugin, seconds=seconds, items_in=items_in, items_out=items_out, notes=dict(notes)
            )
        )

    def with_slot(self, slot: str, spec: Spec | None) -> Pipeline:
        """The pipeline, or one with another plugin in a slot that shares its models."""
        if spec is None:
            return self.pipeline
        key = f"{slot}={spec!r}"
        if key not in self._variants:
            other = type(self.pipeline)(self.pipeline.config.merged({slot: spec}, where="flow"))
            other.embedder = self.pipeline.embedder
            if slot != "generator":
                other.generator = self.pipeline.generator
            self._variants[key] = other
        return self._variants[key]

    @property
    def text_model(self) -> TextModel | None:
        return self.pipeline.generator.text_model

    def count(self, text: str) -> int:
        """Generator tokens of a text."""
        return self.pipeline.generator.counter.count(text)

    def complete(self, prompt: str, max_tokens: int, who: str) -> str:
        """What the model writes after a prompt, charged to the budget; ConfigError when there is no model."""
        model = self.text_model
        if model is None:
            raise ConfigError(
                f"{who} needs a language model, and this pipeline's generator has none: set generator: local or "
                "openai, or give the node `on_error: skip`"
            )
        text = model.complete(prompt, max_tokens=max_tokens)
        self.tokens += self.count(prompt) + self.count(text)
        return text
