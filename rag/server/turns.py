"""Work that waits for a thread: one queue for each tenant, and a free thread takes from the tenants in turn."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

__all__ = ["Job", "Turns"]


class Job:
    """One request's work. `leave` is called once, when it has run or was given up."""

    def __init__(self, work: Callable[[], Any], leave: Callable[[], None]) -> None:
        self.future: Future[Any] = Future()
        self._work, self._leave = work, leave

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            self._leave()
            return
        try:
            made = self._work()
        except BaseException as error:
            self._leave()  # first, so that whoever waits finds the place free
            self.future.set_exception(error)
        else:
            self._leave()
            self.future.set_result(made)

    def give_up(self) -> None:
        """Nobody will run it any more."""
        self.future.cancel()
        self._leave()


class Turns:
    """Jobs of one tenant stay in their order; a tenant with many waits behind itself alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: OrderedDict[str, deque[Job]] = OrderedDict()

    def put(self, tenant: str, job: Job) -> None:
        """At the end of this tenant's queue."""
        with self._lock:
            self._queues.setdefault(tenant, deque()).append(job)

    def run_next(self) -> None:
        """The first job of the tenant whose turn it is; nothing when all are done."""
        if job := self._take():
            job.run()

    def clear(self) -> None:
        """Give up what still waits."""
        while job := self._take():
            job.give_up()

    def _take(self) -> Job | None:
        with self._lock:
            if not self._queues:
                return None
            tenant, queue = self._queues.popitem(last=False)
            job = queue.popleft()
            if queue:
                self._queues[tenant] = queue
            return job
