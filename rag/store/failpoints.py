"""Places where a test may kill the process, to prove that no such death loses what was acknowledged.

`CHUNKWISE_FAILPOINT=commit.written` kills the process (SIGKILL: no cleanup of any kind) the first time it gets
there; `commit.written:3` the third time. Without the variable a failpoint is one comparison with None.

    create.written  create.synced  create.renamed              a new index file
    commit.begin    commit.written commit.done                 a transaction; done = durable, not yet acknowledged
    derived.written derived.synced derived.renamed derived.recorded derived.swept
"""

from __future__ import annotations

import os
import signal

__all__ = ["POINTS", "hit"]

POINTS = (
    "create.written",
    "create.synced",
    "create.renamed",
    "commit.begin",
    "commit.written",
    "commit.done",
    "derived.written",
    "derived.synced",
    "derived.renamed",
    "derived.recorded",
    "derived.swept",
)

_ARMED = os.environ.get("CHUNKWISE_FAILPOINT")
_hits = 0


def hit(name: str) -> None:
    """Die here when the environment says so."""
    if _ARMED is not None:
        _die_at(name, _ARMED)


def _die_at(name: str, armed: str) -> None:
    global _hits
    wanted, _, times = armed.partition(":")
    if name != wanted:
        return
    _hits += 1
    if _hits >= int(times or 1):
        if hasattr(signal, "SIGKILL"):
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(137)
