"""A grid of configs: all on all questions, or by successive halving on ever more of them.

Successive halving (Jamieson and Talwalkar, arXiv 1502.07943): the first round asks few questions of every config, each
further one keeps the best third and asks three times as many; the last asks all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import yaml

from eval.datasets import Dataset
from eval.runs.run import Bar, Done, run
from eval.runs.scoring import BETTER
from eval.runs.settings import RunSettings
from rag.config import PipelineConfig
from rag.errors import UsageError
from rag.registry import spec_name

__all__ = ["Round", "grid", "sweep"]

Tell = Callable[[str], None]
_KEEP = 3
"""One of so many configs stays, and so many times the questions are asked in the next round."""
_FEWEST = 20
"""Questions of a set that the first round asks at least."""
_MOST = 200
"""Configs of a grid."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """`means`: config -> mean of the measure over the sets, best first; `questions`: how many of each set."""

    questions: int
    means: Mapping[str, float]


def grid(base: PipelineConfig, settings: Sequence[str]) -> dict[str, PipelineConfig]:
    """Label -> config for every combination of `slot=name,name` and `slot.parameter=value,value`, checked.

    A parameter that the plugin of a combination does not have is a ConfigError that names it.
    """
    axes: list[list[tuple[str, Any]]] = []
    for text in settings:
        key, equals, values = text.partition("=")
        found = yaml.safe_load(f"[{values}]") if equals else []
        if not key.strip() or not found:
            raise UsageError(f"--grid {text!r}: expected SLOT=NAME,NAME or SLOT.PARAMETER=VALUE,VALUE")
        axes.append([(key.strip(), value) for value in found])
    combinations = list(product(*axes))
    if not axes or len(combinations) > _MOST:
        raise UsageError(f"--grid gives {len(combinations)} configs; expected 1 to {_MOST}")
    return {", ".join(f"{key}={value}" for key, value in one): _with(base, one) for one in combinations}


def sweep(settings: RunSettings, tell: Tell, bar: Bar, *, measure: str, halving: bool) -> tuple[Done, list[Round]]:
    """The last round in full, and every round; UsageError for a measure that the sets do not have."""
    labels, rounds = list(settings.configs), []
    most = max(len(one.questions) for one in settings.datasets)
    steps = _steps(len(labels), most) if halving else [most]
    for number, size in enumerate(steps, start=1):
        tell(f"round {number} of {len(steps)}: {len(labels)} configs, {min(size, most)} questions of a set")
        part = replace(
            settings,
            datasets=tuple(_first(one, size) for one in settings.datasets),
            configs={label: settings.configs[label] for label in labels},
        )
        done = run(part, tell, bar)
        means = _means(done, measure)
        rounds.append(Round(questions=min(size, most), means=means))
        labels = list(means)[: max(1, -(-len(means) // _KEEP))]
    return done, rounds


def _steps(configs: int, questions: int) -> list[int]:
    """How many questions each round asks; rounds until one config would be left, the last with all questions."""
    rounds = 1
    while _KEEP**rounds < configs and questions // _KEEP**rounds >= _FEWEST:
        rounds += 1
    return [-(-questions // _KEEP ** (rounds - 1 - at)) for at in range(rounds)]


def _first(dataset: Dataset, size: int) -> Dataset:
    return replace(dataset, questions=dataset.questions[:size], every=dataset.every or dataset.questions)


def _means(done: Done, measure: str) -> dict[str, float]:
    """Macro average over sets, best first; ties in the order of the grid."""
    totals: dict[str, list[float]] = {}
    for one in done.runs:
        scores = [question.scores[measure] for question in one.questions if measure in question.scores]
        if not scores:
            known = sorted({name for question in one.questions for name in question.scores})
            raise UsageError(f"--measure {measure}: {one.dataset.name} has none such; it has {', '.join(known)}")
        totals.setdefault(one.label, []).append(sum(scores) / len(scores))
    sign = 1 if BETTER.get(measure) == "lower" else -1
    means = {label: sum(values) / len(values) for label, values in totals.items()}
    return dict(sorted(means.items(), key=lambda pair: sign * pair[1]))


def _with(base: PipelineConfig, settings: Sequence[tuple[str, Any]]) -> PipelineConfig:
    config = base
    for key, value in sorted(settings, key=lambda pair: "." in pair[0]):  # slots first, then their parameters
        slot, dot, parameter = key.partition(".")
        if dot:
            before = config.to_dict().get(slot)
            if not isinstance(before, str | Mapping):
                raise UsageError(f"--grid {key}: {slot!r} is no slot with parameters")
            given = {"use": spec_name(before)} if isinstance(before, str) else dict(before)
            value = {**given, parameter: value}
        config = config.merged({slot: value}, where=f"--grid {key}")
    config.check()
    return config
