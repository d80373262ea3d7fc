"""Kills `rag ingest` with SIGKILL, again and again, and compares what is left with a run that was never interrupted.

Run as `python -m tests.crash.supervisor --kills 500 --seed 1 [--json]`.

A scenario is a folder of files that changes from phase to phase (tests/crash/papers.py). In each phase the same files
are ingested twice: in this process without interruption, noting the state of the index after every commit; and by
commands that are killed at a named failpoint, at their n-th change of the disk (before it or half way through it),
after an acknowledged batch, or at any moment. After a kill the index must be, byte for byte, in one of the noted
states, and in none from before the last batch that was acknowledged. After the last resumption it is in the last one.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from rag.errors import RagError
from rag.files import find_files
from rag.ingest import Progress
from rag.pipeline import Pipeline
from rag.store import Store, failpoints, verify
from tests.crash.entries import dump
from tests.crash.papers import PHASES, Papers
from tests.crash.victim import Faults, Outcome, Runner, compiled

State = dict[str, list[tuple[Any, ...]]]
ABSENT: State = {}
"""No index yet."""
CONFIGS: dict[str, dict[str, Any]] = {
    "faiss": {"use": "faiss-dense", "index": "hnsw"},
    "hybrid": {"use": "hybrid", "parts": ["bm25", {"use": "faiss-dense", "index": "hnsw"}]},
    "chroma": {"use": "chroma-dense"},
}
QUESTIONS = ("travel policy of the harbour", "北京 résumé")
CREATE = tuple(f"create.{step}" for step in ("written", "synced", "renamed"))
POINTS = (
    *(f"commit.{step}:{nth}" for step in ("begin", "written", "done") for nth in (1, 2, 3)),
    *(f"derived.{step}" for step in ("written", "synced", "renamed", "recorded", "swept")),
    *(f"lock.{step}" for step in ("acquired", "written", "named", "unnamed", "released")),
)
REPEATS = 8
"""Kills within a phase before the command may finish."""


@dataclass
class Summary:
    """What the suite found. `real` are kills of `python -m rag`; the others, of the same code in a forked process."""

    kills: int = 0
    real: int = 0
    by_failpoint: Counter[str] = field(default_factory=Counter)
    scenarios: int = 0
    comparisons: int = 0
    lost: int = 0
    failed_to_open: int = 0
    differences: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "by_failpoint": dict(sorted(self.by_failpoint.items())), "ok": self.ok}


@dataclass
class Steps:
    """The states of the uninterrupted run: `states[at[n]]` is the one in which n files were acknowledged."""

    states: list[State]
    at: dict[int, int]
    failed: int

    @property
    def code(self) -> int:
        """The exit code of a command that gets to the end."""
        return 4 if self.failed else 0

    def after(self, acknowledged: int) -> list[State]:
        """The states that may be found when so many files were acknowledged and the next batch was not."""
        later = sorted(done for done in self.at if done > acknowledged)
        last = self.at[later[0]] if later else len(self.states) - 1  # durable, but the death came before the line
        return self.states[self.at[acknowledged] : last + 1]


def undisturbed(files: Path, index: Path, config_file: Path) -> Steps:
    """Ingest in this process, noting the state after every commit."""
    before = state(index)
    states, at = [before], {0: 0}

    def note(progress: Progress) -> None:
        at[progress.done] = len(states) - 1

    def look(name: str, _armed: str) -> None:
        if name in ("create.renamed", "commit.done"):
            states.append(state(index))

    with mock.patch.multiple(failpoints, _armed=failpoints.TRACE, _act_at=look):
        pipeline = Pipeline.from_yaml(config_file)
        opened = pipeline.index(files, index, delete_missing=True, on_progress=note)
    with opened:
        assert opened.report is not None
        failed = len(opened.report.failed)
    assert verify(index).problems == []
    assert max(at) == len(find_files([files]).files)
    return Steps(states=states, at=at, failed=failed)


def state(directory: Path) -> State:
    """Everything that the index holds."""
    return dump(directory) if (directory / "index.sqlite").exists() else ABSENT


def difference(now: State, wanted: State) -> str:
    """The first rows that differ, table by table."""
    parts = []
    for table in sorted(now.keys() | wanted.keys()):
        left, right = (set(side.get(table, [])) for side in (now, wanted))
        if left != right:
            parts.append(f"{table}: {sorted(left - right, key=repr)[:2]} for {sorted(right - left, key=repr)[:2]}")
    return "; ".join(parts)[:2000]


@dataclass
class Scenario:
    """One corpus and two indexes of it: `calm` is never interrupted, `rough` is."""

    folder: Path
    runner: Runner
    chances: random.Random
    config: str
    summary: Summary
    real_share: float

    def __post_init__(self) -> None:
        self.calm, self.rough = self.folder / "calm", self.folder / "rough"
        html = bool(self.summary.scenarios % 2)
        self.papers = Papers(self.folder / "papers", self.chances.randrange(1 << 30), html=html)
        self.settings = {
            "embedder": {"use": "hashing", "buckets": 32},
            "retriever": CONFIGS[self.config],
            "chunker": {"use": "recursive", "max_tokens": 40},
            "selector": "top-k",
            "compressor": "none",
            "generator": "extractive",
        }
        self.config_file = self.folder / "rag.yaml"
        self.config_file.write_text(yaml.safe_dump(self.settings), encoding="utf-8")

    def play(self, wanted: int) -> None:
        """Every phase, until `wanted` kills are counted."""
        for phase in range(PHASES):
            self.papers.advance(phase)
            steps = undisturbed(self.papers.folder, self.calm, self.config_file)
            acknowledged = 0
            for _ in range(REPEATS):
                if self.summary.kills >= wanted:
                    break
                label, outcome = self._run(self._plan())
                if not outcome.killed:
                    self._check_end(outcome, steps, label)
                    break
                self.summary.kills += 1
                self.summary.by_failpoint[label] += 1
                acknowledged = max(acknowledged, outcome.done)
                if self.chances.random() < 0.8:  # else the next writer is the first to open what is left
                    self._check_remains(steps, acknowledged, f"phase {phase}, {label}")
            self._check_end(self._ingest(self.runner.warm), steps, f"phase {phase}, the last run")
        self._compare_searches()
        self.summary.scenarios += 1

    # -- killing ---------------------------------------------------------------------------------------------

    def _plan(self) -> tuple[str, dict[str, Any]]:
        """(name for the summary, options of the run): where this command is to die."""
        way = self.chances.random()
        if way < 0.4 and self.runner.shim is not None:
            at, half = 1 + int(self.chances.expovariate(1 / 90)), self.chances.random() < 0.5
            faults = Faults(at=at, kill=True, half=half)
            return ("disk, half written" if half else "disk"), {"faults": faults, "below": self.rough}
        if way < 0.7:
            point = self.chances.choice(POINTS if (self.rough / "index.sqlite").exists() else CREATE)
            return point.partition(":")[0], {"failpoint": point}
        if way < 0.85:
            batches = self.chances.randrange(1, 5)
            return "after a batch", {"watch": _killer(batches)}
        return "any moment", {"seconds": self.chances.random()}

    def _run(self, plan: tuple[str, dict[str, Any]]) -> tuple[str, Outcome]:
        label, options = plan
        real = self.chances.random() < self.real_share
        if label == "any moment":
            options = {"seconds": options["seconds"] * (0.9 if real else 0.2)}
        outcome = self._ingest(self.runner.command if real else self.runner.warm, **options)
        self.summary.real += int(real and outcome.killed)
        return label, outcome

    def _ingest(self, run: Callable[..., Outcome], **options: Any) -> Outcome:
        names = ("--index", str(self.rough), "--config", str(self.config_file))
        return run("ingest", str(self.papers.folder), "--delete-missing", "--events", "-q", *names, **options)

    # -- checking --------------------------------------------------------------------------------------------

    def _check_remains(self, steps: Steps, acknowledged: int, where: str) -> None:
        """What a dead command left is one of the states that the uninterrupted run went through, and none too old."""
        self.summary.comparisons += 1
        if (self.rough / "index.sqlite").exists():
            try:
                with Store.open(self.rough) as store:
                    store.stats()
                problems = verify(self.rough).problems
            except RagError as error:
                self.summary.failed_to_open += 1
                self.summary.problems.append(f"{where}: cannot be opened: {error}")
                return
            if problems:
                self._difference(f"{where}: verify says {problems}")
        now = state(self.rough)
        allowed = steps.after(acknowledged)
        if now in allowed:
            return
        if now in steps.states[: steps.at[acknowledged]]:
            self.summary.lost += 1
            self.summary.problems.append(f"{where}: {acknowledged} files were acknowledged and are not all there")
        else:
            nearest = min((difference(now, wanted) for wanted in allowed), key=len)
            self._difference(f"{where}: a state that an uninterrupted run never has: {nearest}")

    def _check_end(self, outcome: Outcome, steps: Steps, where: str) -> None:
        """A command that could finish made the very index that the uninterrupted run made."""
        self.summary.comparisons += 1
        if outcome.code != steps.code:
            self.summary.failed_to_open += 1
            self.summary.problems.append(f"{where}: exit code {outcome.code}: {outcome.output}")
            return
        rough, calm, problems = dump(self.rough), dump(self.calm), verify(self.rough).problems
        if rough != calm or problems:
            self._difference(f"{where}: {difference(rough, calm)}; verify says {problems}")
        if _names(self.calm) != _names(self.rough):
            self._difference(f"{where}: files left: {_names(self.rough)} instead of {_names(self.calm)}")

    def _compare_searches(self) -> None:
        for question in QUESTIONS:
            found = [
                self.runner.warm("search", question, "--json", "--index", str(index), "--config", str(self.config_file))
                for index in (self.calm, self.rough)
            ]
            if found[0].code or _hits(found[0]) != _hits(found[1]) or not _hits(found[0]):
                self._difference(f"searching {question!r}: {found[0].output} and {found[1].output}")

    def _difference(self, text: str) -> None:
        self.summary.differences += 1
        self.summary.problems.append(text)


def _killer(batches: int) -> Callable[[dict[str, Any], Callable[[], None]], None]:
    """Kills when the n-th batch is acknowledged."""
    seen = 0

    def watch(_event: dict[str, Any], kill: Callable[[], None]) -> None:
        nonlocal seen
        seen += 1
        if seen == batches:
            kill()

    return watch


def _names(directory: Path) -> list[str]:
    """Files of an index, but for SQLite's own and Chroma's, whose names are random."""
    found = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
    return sorted(name for name in found if not name.startswith(("index.sqlite-", "chroma/")))


def _hits(outcome: Outcome) -> Any:
    """The hits of `rag search --json`, without the time that it took."""
    try:
        found = json.loads(outcome.output.splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return [(hit["chunk_id"], hit["score"]) for hit in found["hits"]]


def supervise(kills: int, seed: int, folder: Path, *, real_share: float, configs: tuple[str, ...]) -> Summary:
    """Play scenarios in `folder` until there were so many kills."""
    summary, chances, started = Summary(), random.Random(seed), time.monotonic()
    modules = ("chromadb",) if "chroma" in configs else ()
    with Runner(folder, compiled(folder), modules) as runner:
        while summary.kills < kills and summary.scenarios < 10 + kills:
            here = folder / f"scenario-{summary.scenarios}"
            here.mkdir()
            config = configs[summary.scenarios % len(configs)]
            Scenario(here, runner, chances, config, summary, real_share).play(kills)
    summary.seconds = round(time.monotonic() - started, 1)
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--real", type=float, default=0.5, help="share of kills of the real command")
    parser.add_argument("--folder", type=Path, help="where to work (default: the folder for temporary files)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    configs = ("faiss", "hybrid", "faiss", "chroma")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        here = Path(folder).resolve()
        summary = supervise(options.kills, options.seed, here, real_share=options.real, configs=configs)
    if options.json:
        print(json.dumps(summary.to_dict()))
    else:
        for name, value in summary.to_dict().items():
            print(f"{name:16} {value}")
    return 0 if summary.ok else 1


if __name__ == "__main__":
    sys.exit(main())
