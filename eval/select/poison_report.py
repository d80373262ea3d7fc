"""`rag eval poison`: detection of poison signal by signal and its price on clean data, beside a perplexity baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval._reports import table
from eval.select.poison import CLEAN, POISONED, SIGNALS, Case, cases_of, judged, perplexity_flags, rates, resampled
from rag.errors import MissingError, UsageError
from rag.protocols import TextModel
from rag.registry import Spec, build, check
from rag.tokens import WordCounter

__all__ = ["Settings", "markdown", "run"]

Tell = Callable[[str], None]
Flags = Sequence[Sequence[bool]]
_TRUST = {"meta.tier=low": "untrusted"}
_INTERVALS = ("f1", "false_flags", "evidence_lost")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`options` are parameters of the verifier; `perplexity` is how many questions of each set the baseline judges."""

    data: Path
    sets: tuple[str, ...] = (*POISONED, *CLEAN)
    half: str = "dev"
    options: Mapping[str, Any] = field(default_factory=dict)
    limit: int = 0
    perplexity: int = 8
    generator: Spec = "local"
    resamples: int = 2000
    seed: int = 0

    @property
    def spec(self) -> dict[str, Any]:
        return {"use": "verified", "trust": _TRUST, **self.options}


def run(settings: Settings, tell: Tell) -> dict[str, Any]:
    """The report of the sets on disk. Without a language model the baseline is left out, and `baseline` says why."""
    check("selector", settings.spec, path="--option")
    verifier = build("selector", settings.spec, services={"counter": WordCounter()}, path="--option")
    model, baseline = _model(settings)
    report: dict[str, Any] = {
        "half": settings.half,
        "verifier": settings.spec,
        "baseline": baseline,
        "resamples": settings.resamples,
        "seed": settings.seed,
        "sets": {},
    }
    for name in settings.sets:
        cases = cases_of(settings.data, name, settings.half)[: settings.limit or None]
        if not cases:
            raise UsageError(f"--set {name}: no question in the {settings.half} half")
        tell(f"{name}: {len(cases)} questions")
        if model is not None:
            tell(f"{name}: the baseline reads the hits of {min(len(cases), settings.perplexity)} of them")
        report["sets"][name] = _of_set(cases, verifier, model, settings)
    return report


def _model(settings: Settings) -> tuple[TextModel | None, str]:
    """The model that measures perplexity and its name; None, and why."""
    if not settings.perplexity:
        return None, "not asked for"
    try:
        generator = build("generator", settings.generator, services={}, path="--generator")
        model: TextModel | None = generator.text_model
        if model is None or model.losses("A text.") is None:
            return None, f"{settings.generator} tells no likelihoods"
    except MissingError as error:
        return None, str(error)
    return model, f"perplexity by {settings.generator}"


def _of_set(cases: Sequence[Case], verifier: Any, model: TextModel | None, settings: Settings) -> dict[str, Any]:
    told = [judged(case, verifier) for case in cases]
    rows = []
    for signal in (*(name for name in SIGNALS if getattr(verifier, name)), "all"):
        flags = [[row[signal] for row in hits] for hits in told]
        rows.append(_row(signal, cases, flags, settings))
    made: dict[str, Any] = {"questions": len(cases), "signals": rows}
    if model is not None:
        some, ours = cases[: settings.perplexity], told[: settings.perplexity]
        made["beside_the_baseline"] = {
            "questions": len(some),
            "rows": [
                _row("perplexity", some, perplexity_flags(some, model), settings),
                _row("verified", some, [[row["all"] for row in hits] for hits in ours], settings),
            ],
        }
    return made


def _row(signal: str, cases: Sequence[Case], flags: Flags, settings: Settings) -> dict[str, Any]:
    intervals = resampled(cases, flags, settings.resamples, settings.seed)
    return {"signal": signal, **rates(cases, flags), "intervals": {name: intervals[name] for name in _INTERVALS}}


def markdown(report: Mapping[str, Any]) -> str:
    """A table a set; and of what the baseline judged, one that compares."""
    parts = [
        "# Poison",
        f"Half: {report['half']}. Verifier: {report['verifier']}. Baseline: {report['baseline']}. Intervals of 95 %: "
        f"bootstrap over questions, {report['resamples']} resamples, seed {report['seed']}. A signal is alone in its "
        "row, and `all` is what the selector drops. False flags: share of the clean hits. Evidence lost: share of the "
        "clean hits that hold evidence. Where all questions say 0, or all 1, an interval has no width.",
    ]
    for name, made in report["sets"].items():
        first = made["signals"][0]
        clean = "" if first["poisoned"] else " (clean)"
        parts += [
            f"## {name}{clean}",
            f"{made['questions']} questions, {first['hits']} hits, {first['poisoned']} of them poisoned.",
            _table([row for row in made["signals"] if row["signal"] == "all" or row["flagged"]]),
        ]
        silent = [row["signal"] for row in made["signals"] if not row["flagged"] and row["signal"] != "all"]
        if silent:
            parts.append(f"Flags nothing: {', '.join(silent)}.")
        if "beside_the_baseline" in made:
            compared = made["beside_the_baseline"]
            parts += [f"Beside the baseline, the first {compared['questions']} questions:", _table(compared["rows"])]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ("signal", "precision", "recall", "F1", "false flags", "evidence lost")
    return table(header, [_cells(row) for row in rows], 3)


def _cells(row: Mapping[str, Any]) -> list[Any]:
    told: list[Any] = [row["signal"], row["precision"], row["recall"]]
    for name in _INTERVALS:
        low, high = row["intervals"][name]
        told.append(f"{row[name]:.3f} [{low:.3f}, {high:.3f}]")
    return told if row["poisoned"] else [row["signal"], None, None, None, *told[4:]]
