"""Places where a test may kill the process or make a step fail, to prove that neither loses what was acknowledged.

`CHUNKWISE_FAILPOINT=name[:nth][=ENOSPC|EIO|...]`: at the nth time (default: the first) that the process gets to this
place it dies (SIGKILL: no cleanup of any kind), or the step raises that OSError. Without the variable a failpoint is
one comparison with None. A failpoint stands after each write, fsync, rename and commit:

    create    a new index file            commit   a transaction; done = durable, not yet acknowledged
    derived   a derived file              lock     the writer lock and the file that names its owner
"""

from __future__ import annotations

import errno
import os
import signal

__all__ = ["POINTS", "SENTENCE_POINTS", "UPKEEP_POINTS", "arm", "hit", "reached"]

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
    "lock.acquired",
    "lock.written",
    "lock.named",
    "lock.unnamed",
    "lock.released",
)

UPKEEP_POINTS = (
    *("snapshot.copied", "snapshot.synced", "snapshot.renamed"),
    *("restore.copied", "swap.begin", "swap.half", "swap.done", "restore.done"),
    *("compact.pruned", "compact.merged", "compact.copied"),
    *("migrate.kept", "migrate.runs", "migrate.step", "migrate.written", "migrate.done"),
    *("repair.salvaged", "replace.ready", "replace.aside", "replace.done", "repair.done"),
    *("rebuild.batch", "rebuild.built", "rebuild.done"),
)
"""Points inside the verbs that work on a whole index."""

SENTENCE_POINTS = ("sentences.written", "sentences.done")
"""Points where vectors of sentences are kept, by whoever asks or ingests."""

TRACE = "trace"

_armed: str | None = os.environ.get("CHUNKWISE_FAILPOINT")
_hits: dict[str, int] = {}


def hit(name: str) -> None:
    """Die or fail here when the environment says so. OSError as armed."""
    if _armed is not None:
        _act_at(name, _armed)


def arm(text: str | None) -> None:
    """As the variable would have done at the start, counting from now; "trace" only notes what is `reached`."""
    global _armed
    _hits.clear()
    _armed = text


def reached() -> dict[str, int]:
    """How often each point was hit since it was armed."""
    return dict(_hits)


def _act_at(name: str, armed: str) -> None:
    _hits[name] = _hits.get(name, 0) + 1
    place, _, failure = armed.partition("=")
    wanted, _, nth = place.partition(":")
    if name != wanted or _hits[name] != int(nth or 1):
        return
    if failure:
        number = getattr(errno, failure)
        raise OSError(number, os.strerror(number), name)
    if hasattr(signal, "SIGKILL"):
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(137)
