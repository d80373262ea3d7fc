"""Runs contenders in fresh child processes, interleaved, all with the same number of threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

__all__ = ["Contender", "Outcome", "child_environment", "find_pythons", "interleave", "run_child"]

DRIVER = Path(__file__).parent / "peers" / "_drive.py"
_SECONDS = 3600
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "ANONYMIZED_TELEMETRY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Nothing leaves the machine while measuring, and no tokenizer starts threads of its own."""

Outcome = dict[str, Any]
"""What the driver printed, or {"status": "absent" or "failed", "reason": ..}."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A file for the driver and the interpreter to run it with. Extras are shown, and never the peer to beat."""

    name: str
    role: Literal["ours", "peer", "extra"]
    module: Path
    python: str = sys.executable
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


def child_environment(threads: int) -> dict[str, str]:
    """The environment of every contender: so many threads, no network, no telemetry."""
    return {**os.environ, **_ENVIRONMENT, **dict.fromkeys(_THREADS, str(threads))}


def run_child(contender: Contender, job: Mapping[str, Any], threads: int, driver: Path = DRIVER) -> Outcome:
    """One job in one fresh process that runs `driver`. Never raises: a crash is an outcome too."""
    whole = {**job, "options": dict(contender.options)}
    command = [contender.python, str(driver), str(contender.module), json.dumps(whole)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
            env=child_environment(threads),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"status": "failed", "reason": str(error)}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"status": "failed", "reason": lines[-1]}
    outcome: Outcome = json.loads(done.stdout.splitlines()[-1])
    return outcome


def find_pythons(
    contenders: Iterable[Contender], pythons: Sequence[str], threads: int
) -> tuple[list[Contender], dict[str, Outcome]]:
    """The contenders that can be imported, each with the first interpreter that can, and why the others cannot.

    The imports also warm the file cache, so that the first round is like the others.
    """
    probed: dict[Path, tuple[str, Outcome]] = {}
    present, missing = [], {}
    for contender in contenders:
        candidates = [sys.executable] if contender.role == "ours" else pythons
        if contender.module not in probed:
            for python in candidates:
                outcome = run_child(replace(contender, python=python), {"task": "probe"}, threads)
                probed[contender.module] = (python, outcome)
                if outcome["status"] == "ok":
                    break
        python, outcome = probed[contender.module]
        if outcome["status"] == "ok":
            present.append(replace(contender, python=python))
        else:
            missing[contender.name] = outcome
    return present, missing


def interleave(
    contenders: Sequence[Contender],
    job: Mapping[str, Any],
    *,
    rounds: int,
    threads: int,
    tell: Callable[[str], None],
) -> dict[str, list[Outcome]]:
    """Every contender once a round, in order (A B C A B C), each into an empty store; outcomes by name."""
    outcomes: dict[str, list[Outcome]] = {contender.name: [] for contender in contenders}
    for number in range(1, rounds + 1):
        for contender in contenders:
            tell(f"round {number} of {rounds}: {contender.name}")
            with tempfile.TemporaryDirectory(prefix="rag-bench-") as folder:
                store = Path(folder) / "store"
                outcome = run_child(contender, {**job, "store": str(store)}, threads)
                outcome["disk_bytes"] = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
            outcomes[contender.name].append(outcome)
    return outcomes
