"""Each framework in fresh processes: what it stores and finds, and what that costs. Outcomes are kept by content."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.bench._children import Contender, Outcome, run_child
from eval.bench._corpus import write_documents
from eval.chunks.data import digest
from eval.datasets import Dataset
from eval.runs.settings import code_digest
from rag.embedders._cpu import cpu_has_bf16

__all__ = ["DEPTH", "DRIVER", "PEERS", "Measured", "contenders", "measure"]

DEPTH = 40
"""Chunks asked for; as many as our retrievers give by default."""
PEERS = ("langchain", "llama-index", "haystack", "txtai", "chonkie")
_FOLDER = Path(__file__).parent.parent / "bench" / "peers"
DRIVER = _FOLDER / "_rag.py"

Tell = Callable[[str], None]


def contenders(wanted: Sequence[str] = PEERS) -> list[Contender]:
    """Ours first. Batch sizes are the fastest ones that `rag bench ingest` found; the weights are in bfloat16 where
    the processor multiplies it, as ours are: a public setting of every peer.
    """
    bf16 = {"dtype": "bfloat16", "batch_size": 4} if cpu_has_bf16() else {"batch_size": 2}
    options = {**bf16, "unsorted_batch_size": 1}
    ours = Contender(name="chunkwise", role="ours", module=Path(__file__).parent / "_ours.py")
    return [ours] + [
        Contender(name=name, role="peer", module=_FOLDER / f"rag_{name.replace('-', '_')}.py", options=options)
        for name in wanted
    ]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A framework on a set. `failed` says why there is nothing else. `entries` and `hits` as the driver has them."""

    name: str
    failed: str | None = None
    versions: Mapping[str, str | None] | None = None
    settings: str = ""
    entries: Sequence[Sequence[Any]] = ()
    hits: Sequence[Sequence[tuple[int, float]]] = ()
    costs: Mapping[str, float | None] | None = None


def measure(
    contender: Contender,
    dataset: Dataset,
    *,
    model: str,
    cache: Path,
    threads: int,
    upkeep: bool,
    tell: Tell,
) -> Measured:
    """Ingest, search; with `upkeep` also ingest again unchanged, and a new ingest that is killed half-way.

    What is kept below `cache` is read; failures are not kept.
    """
    code = [contender.module.read_text(encoding="utf-8"), DRIVER.read_text(encoding="utf-8")]
    code += [code_digest()] if contender.role == "ours" else [contender.python]
    job = {"options": dict(contender.options), "threads": threads, "upkeep": upkeep, "k": DEPTH}
    named = [*code, json.dumps(job, sort_keys=True), dataset.documents_digest, dataset.questions_digest]
    kept = cache / "peers" / f"{digest(named)}.json"
    if kept.is_file():
        return Measured(**json.loads(kept.read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory(prefix="rag-peers-") as folder:
        steps = _Steps(contender, dataset, Path(folder), model, threads, tell)
        try:
            made = steps.all(upkeep)
        except _StepError as error:
            return Measured(name=contender.name, failed=str(error))
    kept.parent.mkdir(parents=True, exist_ok=True)
    aside = kept.with_suffix(".part")
    aside.write_text(json.dumps(made), encoding="utf-8")
    aside.replace(kept)
    return Measured(**made)


class _StepError(Exception):
    """A child that did not do its step."""


class _Steps:
    """The processes of one framework on one set."""

    def __init__(
        self, contender: Contender, dataset: Dataset, folder: Path, model: str, threads: int, tell: Tell
    ) -> None:
        self._contender = contender
        self._threads = threads
        self._folder = folder
        self._tell_all, self._title = tell, f"{dataset.name}, {contender.name}"
        self._documents = len(dataset.texts)
        write_documents(dataset.texts, folder / "documents")
        questions = folder / "questions.json"
        questions.write_text(json.dumps([one.text for one in dataset.questions]), encoding="utf-8")
        self._job = {"model": model, "documents": str(folder / "documents"), "questions": str(questions), "k": DEPTH}

    def _tell(self, step: str) -> None:
        self._tell_all(f"{self._title}: {step}")

    def all(self, upkeep: bool) -> dict[str, Any]:
        store = self._folder / "store"
        first = self._run("ingest", store)
        disk = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
        found = self._run("search", store)
        entries = found["found"]["entries"]
        if not entries:  # a mistake of this comparison sooner than of the framework
            raise _StepError(f"ingest: none of {self._documents} documents is in the store")
        costs: dict[str, float | None] = {
            "start_cpu_seconds": first["imports"]["cpu_seconds"] + first["load"]["cpu_seconds"],
            "ingest_cpu_seconds": first["work"]["cpu_seconds"],
            "ingest_wall_seconds": first["work"]["wall_seconds"],
            "peak_rss_mb": first["peak_rss_mb"],
            "disk_mb": disk / 2**20,
            "question_cpu_ms": 1000 * found["question_cpu_seconds"],
            "entries": float(len(entries)),
        }
        if upkeep:
            costs |= self._again(store) | self._killed(entries, first["work"]["cpu_seconds"] / 2)
        return {
            "name": self._contender.name, "versions": first["versions"], "settings": first["settings"],
            "entries": entries, "hits": found["found"]["hits"], "costs": costs,
        }  # fmt: skip

    def _again(self, store: Path) -> dict[str, float | None]:
        again = self._run("ingest", store, then_rows=True)
        return {"again_cpu_seconds": again["work"]["cpu_seconds"], "again_entries": float(len(again["rows"]))}

    def _killed(self, entries: Sequence[Sequence[Any]], seconds: float) -> dict[str, float | None]:
        """Share of the documents whose entries are all there; a store that cannot be opened has none."""
        store = self._folder / "killed"
        self._tell("ingest, killed half-way")
        job = {**self._job, "task": "ingest", "store": str(store), "kill_after": seconds}
        outcome = run_child(self._contender, job, self._threads, DRIVER)
        if outcome["status"] == "ok":
            return {"kept_share": None}  # it was done before the kill came
        rows: list[str] = []
        if store.exists():
            try:
                rows = self._run("rows", store)["rows"]
            except _StepError as error:
                self._tell(f"the killed store cannot be read: {error}")
        right, there = Counter(entry[0] for entry in entries), Counter(rows)
        whole = sum(there[name] >= count for name, count in right.items())
        return {"kept_share": whole / len(right) if right else 0.0}

    def _run(self, task: str, store: Path, *, then_rows: bool = False) -> Outcome:
        self._tell(task)
        job = {**self._job, "task": task, "store": str(store), "then_rows": then_rows}
        outcome = run_child(self._contender, job, self._threads, DRIVER)
        if outcome["status"] != "ok":
            raise _StepError(f"{task}: {outcome['reason']}")
        return outcome
