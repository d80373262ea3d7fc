"""The comparison: ours through `rag eval run`, the peers in their own processes, one reader, one set of measures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.bench._children import Contender, find_pythons
from eval.bench._report import load_average
from eval.chunks.data import Half, digest
from eval.datasets import Dataset
from eval.peers.measuring import PEERS, Measured, contenders, measure
from eval.peers.reading import read_all
from eval.runs.results import results_of
from eval.runs.run import Bar, Done, SetRun, Tell
from eval.runs.run import run as run_ours
from eval.runs.settings import RunSettings
from rag.config import PipelineConfig
from rag.errors import UsageError

__all__ = ["OURS", "PLAIN", "Compared", "PeerSettings", "run"]

OURS, PLAIN = "chunkwise", "chunkwise, top-k"
"""The default pipeline, and the same that takes whole chunks by rank as the peers' reader does."""


@dataclass(frozen=True, kw_only=True)
class PeerSettings:
    """`upkeep`: sets on which ingesting again and a kill are measured as well. `peer_pythons` are tried in order."""

    datasets: tuple[Dataset, ...]
    cache: Path
    peers: tuple[str, ...] = PEERS
    peer_pythons: tuple[str, ...] = ()
    budgets: tuple[int, ...] = (800, 1600)
    upkeep: tuple[str, ...] = ()
    half: Half = "all"
    threads: int = 1
    workers: int = 0
    resamples: int = 2000
    seed: int = 0
    field_of: Callable[[Sequence[str]], list[Contender]] = field(default=contenders)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.peers) - set(PEERS))
        if unknown and self.field_of is contenders:
            raise UsageError(f"--peer {unknown[0]}: expected one of {', '.join(PEERS)}")
        without = [one.name for one in self.datasets if not one.texts]
        if without:
            raise UsageError(f"--dataset {without[0]}: its documents are files; the peers read sets with texts only")
        strange = sorted(set(self.upkeep) - {one.name for one in self.datasets})
        if strange:
            raise UsageError(f"--upkeep {strange[0]}: not one of the sets {', '.join(o.name for o in self.datasets)}")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """`results`: budget -> results as of `rag eval run`. `measured`: (set, framework) -> what it stored and cost.

    `absent`: framework -> why it could not be measured.
    """

    settings: PeerSettings
    results: Mapping[int, Mapping[str, Any]]
    measured: Mapping[tuple[str, str], Measured]
    absent: Mapping[str, str]
    load: tuple[float | None, float | None]
    seconds: float


def run(settings: PeerSettings, tell: Tell, bar: Bar) -> Compared:
    """Measure every framework on every set, then read and score once for each budget."""
    from rag.embedders._files import find_folder

    began, load = time.perf_counter(), load_average()
    model = str(find_folder(""))
    tell("looking for the peers")
    present, missing = find_pythons(settings.field_of(settings.peers), settings.peer_pythons, settings.threads)
    absent = {name: str(outcome["reason"]) for name, outcome in missing.items()}
    measured: dict[tuple[str, str], Measured] = {}
    for dataset in settings.datasets:
        for contender in present:
            measured[dataset.name, contender.name] = one = measure(
                contender, dataset, model=model, cache=settings.cache, threads=settings.threads,
                upkeep=dataset.name in settings.upkeep, tell=tell,
            )  # fmt: skip
            if one.failed:
                tell(f"{dataset.name}, {contender.name} failed: {one.failed}")
    results = {budget: _results(settings, budget, measured, tell, bar) for budget in settings.budgets}
    return Compared(
        settings=settings, results=results, measured=measured, absent=absent, load=(load, load_average()),
        seconds=time.perf_counter() - began,
    )  # fmt: skip


def _results(
    settings: PeerSettings, budget: int, measured: Mapping[tuple[str, str], Measured], tell: Tell, bar: Bar
) -> dict[str, Any]:
    default = PipelineConfig.default()
    reader = default.merged({"selector": {"use": "top-k", "budget": budget}}, where="peers")
    ours = {OURS: default.merged({"selector": {"use": "bubble", "budget": budget}}, where="peers"), PLAIN: reader}
    peers = list(dict.fromkeys(name for _, name in measured if name != OURS))
    shared = RunSettings(
        datasets=settings.datasets, configs=ours, cache=settings.cache, half=settings.half, workers=settings.workers,
        resamples=settings.resamples, seed=settings.seed,
    )  # fmt: skip
    own = run_ours(shared, tell, bar)
    runs: list[SetRun] = []
    for dataset in settings.datasets:
        runs += [one for one in own.runs if one.dataset.name == dataset.name]
        for name in peers:
            tell(f"{dataset.name}, {name}: reading with {budget} tokens")
            runs.append(read_all(measured[dataset.name, name], dataset, reader, settings.cache))
    everybody = RunSettings(
        datasets=settings.datasets, configs={**ours, **dict.fromkeys(peers, reader)}, cache=settings.cache,
        half=settings.half, workers=settings.workers, resamples=settings.resamples, seed=settings.seed,
    )  # fmt: skip
    results = results_of(Done(settings=everybody, runs=tuple(runs), seconds=0.0))
    for name in peers:
        found = next(one for (_, label), one in measured.items() if label == name)
        about = {"settings": found.settings, "versions": dict(found.versions or {}), "reader": reader.for_index()}
        results["configs"][name] = {"config": about, "hash": digest([repr(about)])}
    return results
