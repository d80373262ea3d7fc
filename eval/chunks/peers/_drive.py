"""Cuts texts with one chunker of one package in this fresh process: `python _drive.py PEER.py < JOB_AS_JSON`.

Standard library only, and nothing of ours, so that it runs in any environment. A peer is a file with `PACKAGES`
(whose versions are reported), `MODULES` (imported first; ImportError means that the peer is absent) and `CHUNKERS`:
name -> function(max_tokens, model folder) that returns a function text -> [(chunk text, start, end)]; start and end
are None where the package tells none.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import signal
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any


class _TooSlowError(Exception):
    """Raised inside of a chunker that exceeds the seconds given for one text."""


def run(peer: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    """The answer to a job: chunks of every text `rounds` times over, or {"error": ..} in place of them."""
    try:
        for name in peer.MODULES:
            importlib.import_module(name)
    except ImportError as error:
        return {"status": "absent", "reason": str(error)}
    answer: dict[str, Any] = {"status": "ok", "versions": {name: _version(name) for name in peer.PACKAGES}}
    if not job.get("chunker"):
        return {**answer, "chunkers": sorted(peer.CHUNKERS)}
    split = peer.CHUNKERS[job["chunker"]](job["max_tokens"], job["model"])
    begin = time.process_time()
    answer["rounds"] = [
        [_cut(split, text, job.get("seconds", 60)) for text in job["texts"]] for _ in range(job.get("rounds", 1))
    ]
    answer["cpu_seconds"] = time.process_time() - begin
    return answer


def _cut(split: Callable[[str], Any], text: str, seconds: int) -> Any:
    def stop(_number: int, _frame: Any) -> None:
        raise _TooSlowError(f"not done after {seconds} s")

    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, stop)
        signal.alarm(seconds)
    try:
        return [[str(part), start, end] for part, start, end in split(text)]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # Rust panics are no Exception
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"}
    finally:
        if hasattr(signal, "SIGALRM"):
            signal.alarm(0)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main(path: str) -> None:
    """Load the peer from its file, read the job, print the answer as the last line."""
    sys.path.pop(0)  # this folder: chonkie.py in it must not stand in for the package chonkie
    spec = importlib.util.spec_from_file_location("peer", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file")
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    job = json.loads(sys.stdin.buffer.read())
    sys.stdout.write("\n" + json.dumps(run(peer, job)) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
