"""Starting Ray on this machine, or joining a cluster; who started it ends it."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rag.errors import RagError, missing_extra

__all__ = ["Cluster", "join"]

_STORE_BYTES = 512_000_000
"""Shared memory for outcomes on their way; more than the window of waiting files, and Ray spills to disk beyond it."""
_KEPT = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")


@dataclass(frozen=True)
class Cluster:
    """The module `ray`, connected; how many workers it has room for; and what gives the connection back."""

    ray: Any
    cpus: int
    leave: Callable[[], None]


def join(address: str, cpus: int) -> Cluster:
    """The cluster at `address`; without one the Ray that the caller has started, else one of `cpus` on this machine.

    MissingError without the package, RagError when nothing answers at the address.
    """
    with _as_it_was():
        _prepare(local=not address)
        try:
            import ray
        except ImportError as error:
            raise missing_extra("ray", "ray", "The executor ray") from error
        if ray.is_initialized():
            return Cluster(ray, _cpus_of(ray), lambda: None)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
        if address:
            try:
                ray.init(address=address, **quiet)
            except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError and its own here
                raise RagError(
                    f"executor ray: no Ray cluster can be joined at {address!r} ({type(error).__name__}: {error}); "
                    "check `address`, that the versions of Ray and Python agree, or leave `address` out"
                ) from error
        else:
            _start_here(ray, cpus, quiet)
        return Cluster(ray, _cpus_of(ray), ray.shutdown)


def _prepare(*, local: bool) -> None:
    """What Ray reads from the environment when it is imported: no telemetry, and a token for a Ray of our own.

    Ray listens on every interface, and who speaks to it can run code: a token of this process alone keeps others out
    (Ray 2.52 and later). Ray reads it once, so it stays in the environment. A user's own setting stands, and so does
    that of a program that imported Ray before.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray prints the death of a worker on stdout, where `rag ingest --json` writes; the outcome tells of it.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    if local and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))


def _start_here(ray: Any, cpus: int, quiet: dict[str, Any]) -> None:
    store = {"object_store_memory": _STORE_BYTES, "include_dashboard": False}
    ray.init(address="local", num_cpus=cpus, **store, **quiet)


def _cpus_of(ray: Any) -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


@contextlib.contextmanager
def _as_it_was() -> Iterator[None]:
    """Puts back what Ray and we change of the process: its environment and its SIGTERM handler."""
    environment = dict(os.environ)
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    try:
        yield
    finally:
        for name in set(os.environ).difference(environment, _KEPT):
            del os.environ[name]
        os.environ.update(environment)
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)
