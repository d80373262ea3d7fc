"""`rag eval calibrate`: recall of `budget-auto` at rising thresholds on one set, and the spec of the one that holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import yaml

from eval._reports import table
from eval.chunks.vectors import CachedEmbedder
from eval.select.calibrate import Calibrated, calibrated_theta, slack_of
from eval.select.counting import counters_of
from eval.select.indexes import Indexed, opened
from eval.select.rows import Asking, Row, selected
from eval.select.sets import read_asked
from eval.select.settings import HYBRID, label_of
from rag.errors import MissingError
from rag.protocols import Embedder, TokenCounter
from rag.registry import Spec, build

__all__ = ["Settings", "markdown", "run"]

Tell = Callable[[str], None]
_ENDLESS = -1e6
"""A threshold that never ends a choice: what the budget alone gives."""
_GRIDS: Mapping[str, tuple[float, ...]] = {
    "sentence": (0.0, 0.5, *(round(0.2 * step, 1) for step in range(5, 21))),
    "token": (0.0, *(round(0.01 * step, 2) for step in range(1, 13))),
}
"""Few steps where the budget ends a choice anyway; what is after the first that fails is never tried."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`thetas` (): a grid that fits `per`. `chunker` None: the one of the set."""

    data: Path
    name: str = "chroma_chunking"
    target: float = 0.8
    alpha: float = 0.1
    budget: int = 1200
    per: Literal["sentence", "token"] = "sentence"
    thetas: tuple[float, ...] = ()
    retriever: Spec = field(default_factory=lambda: HYBRID)
    chunker: Spec | None = None
    embedder: Spec = "minilm"
    counter: str = "generator"
    cache: Path | None = None

    def spec(self, theta: float) -> dict[str, Any]:
        return {"use": "budget-auto", "budget": self.budget, "theta": theta, "per": self.per}


def run(settings: Settings, tell: Tell) -> dict[str, Any]:
    """The report of one set's dev half; UsageError for numbers outside of their range, before anything is read."""
    slack_of(1, settings.target, settings.alpha)
    asked = read_asked(settings.data, settings.name, "dev")
    inner: Embedder = build("embedder", settings.embedder, services={}, path="--embedder")
    embedder = CachedEmbedder(inner=inner, folder=settings.cache / "vectors" if settings.cache else None)
    counters, absent = counters_of((settings.counter,), embedder)
    if settings.counter not in counters:
        raise MissingError(f"--counter {settings.counter}: {absent[settings.counter]}")
    counter = counters[settings.counter]
    tell(f"{asked.name}: {len(asked.texts)} documents, {len(asked.questions)} questions; indexing")
    with opened(asked, embedder, settings.chunker or asked.chunker, settings.cache) as indexed:
        runs = _Runs(settings, _asking(indexed, settings.retriever), counter, embedder, tell)
        names = [question.id for question in asked.questions]
        numbers = {name: at for at, name in enumerate(names)}
        found = calibrated_theta(
            lambda theta, name: runs.row(theta).scores("recall")[numbers[name]],
            names,
            settings.thetas or _GRIDS[settings.per],
            target=settings.target,
            alpha=settings.alpha,
        )
        runs.row(_ENDLESS)
        chunks = indexed.chunks
    return _report(settings, found, runs, counter, embedder, {"documents": len(asked.texts), "chunks": chunks})


class _Runs:
    """A row of `budget-auto` for each threshold that is asked for."""

    def __init__(
        self, settings: Settings, asking: Asking, counter: TokenCounter, embedder: Embedder, tell: Tell
    ) -> None:
        self.rows: dict[float, Row] = {}
        self._settings, self._asking = settings, asking
        self._counter, self._embedder, self._tell = counter, embedder, tell

    def row(self, theta: float) -> Row:
        if theta not in self.rows:
            self._tell("no threshold" if theta == _ENDLESS else f"theta {theta:g}")
            spec, given = self._settings.spec(theta), self._settings
            self.rows[theta] = selected(
                self._asking, label_of(spec), spec, given.counter, self._counter, given.budget, self._embedder
            )
        return self.rows[theta]

    def means(self, theta: float) -> dict[str, float]:
        row = self.rows[theta]
        return {name: round(fmean(row.scores(name)), 4) for name in ("recall", "all", "tokens")}


def _asking(indexed: Indexed, retriever: Spec) -> Asking:
    questions = indexed.asked.questions
    return Asking(
        indexed=indexed,
        retriever=label_of(retriever),
        hits=[indexed.hits(retriever, question.text) for question in questions],
        gold=[indexed.evidence(question.evidence) for question in questions],
        poisoned=frozenset(),
    )


def _report(
    settings: Settings,
    found: Calibrated,
    runs: _Runs,
    counter: TokenCounter,
    embedder: Embedder,
    sizes: Mapping[str, int],
) -> dict[str, Any]:
    holds = next((one for one in found.tested if one.theta == found.theta), None)
    return {
        "set": settings.name,
        "half": "dev",
        "questions": found.questions,
        **sizes,
        "embedder": embedder.fingerprint,
        "counter": counter.name,
        "retriever": label_of(settings.retriever),
        "budget": settings.budget,
        "per": settings.per,
        "target": found.target,
        "alpha": found.alpha,
        "slack": round(found.slack, 4),
        "theta": found.theta,
        "bound": round(holds.bound, 4) if holds else None,
        "tokens": runs.means(holds.theta)["tokens"] if holds else None,
        "spec": settings.spec(holds.theta) if holds else None,
        "without_threshold": runs.means(_ENDLESS),
        "tested": [{"theta": one.theta, "bound": round(one.bound, 4), **runs.means(one.theta)} for one in found.tested],
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The verdict, the spec to paste, and every threshold that was tried."""
    most = report["without_threshold"]
    parts = [
        f"# Threshold of budget-auto, {report['set']}",
        f"{report['questions']} questions of the dev half over {report['documents']} documents, {report['chunks']} "
        f"chunks; {report['retriever']}; vectors {report['embedder']}; at most {report['budget']} tokens of "
        f"{report['counter']}. It holds for questions like these only: the same kind of documents, embedder and "
        "retriever.",
        _verdict(report),
        table(
            ("theta", "recall", "at least", "all evidence", "tokens"),
            [[one["theta"], one["recall"], one["bound"], one["all"], one["tokens"]] for one in report["tested"]],
            3,
        ),
        f"Without a threshold: recall {most['recall']:.3f} with {most['tokens']:.0f} tokens.",
    ]
    return "\n\n".join(parts) + "\n"


def _verdict(report: Mapping[str, Any]) -> str:
    promise = f"a mean recall of at least {report['target']:g} with probability {1 - report['alpha']:g}"
    slack = f"The slack of {report['slack']:.3f} comes from the number of questions."
    if report["theta"] is None:
        first = report["tested"][0]
        return (
            f"No threshold holds {promise}: the safest, {first['theta']:g}, has a recall of {first['recall']:.3f}, "
            f"which promises {first['bound']:.3f}. {slack} A smaller target, a larger budget or more questions may do."
        )
    spec = yaml.safe_dump({"selector": report["spec"]}, sort_keys=False, default_flow_style=None, width=200).strip()
    return (
        f"Largest threshold that holds {promise} (bound {report['bound']:.3f}); {report['tokens']:.0f} tokens a "
        f"question. {slack}\n\n```yaml\n{spec}\n```"
    )
