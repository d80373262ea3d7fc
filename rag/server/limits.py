"""What one request, one client and the whole server may take. Beyond it a request is refused with the reason."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, fields

from rag.errors import ConfigError

__all__ = ["Busy", "Gate", "ServerLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """All are positive; `waiting` may be 0.

    `threads` requests run at once, each in a thread of its own, and `waiting` more may wait for one; a further one is
    told to come again (429). One tenant has at most `tenant_share` of all these places: one that floods is told to
    come again while the others are served, and threads serve the tenants in turn. The operator has no such share.
    A request has `request_seconds` from its admission; a client has `receive_seconds` to send a request, and a
    connection that takes nothing of its answer for `send_seconds` is cut. At the end connections have `drain_seconds`
    to finish, and threads as long again. The generation of the index is looked at every `refresh_seconds`.
    """

    threads: int = 8
    waiting: int = 64
    tenant_share: float = 0.5
    max_body_bytes: int = 1_000_000
    max_question_chars: int = 8_000
    max_texts: int = 256
    max_k: int = 200
    max_connections: int = 1_000
    request_seconds: float = 120.0
    receive_seconds: float = 15.0
    send_seconds: float = 30.0
    drain_seconds: float = 20.0
    refresh_seconds: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "waiting" else None
            if not (value > 0 or value == least) or value > 1e12:
                raise ConfigError(f"rag serve: {field.name} must be a number > 0, not {value!r}")
        if self.tenant_share > 1:
            raise ConfigError(f"rag serve: tenant_share must be at most 1, not {self.tenant_share!r}")

    @property
    def places(self) -> int:
        """Requests that run or wait at once."""
        return self.threads + self.waiting

    @property
    def tenant_places(self) -> int:
        """Of one tenant; at least 1."""
        return max(1, int(self.places * self.tenant_share))


class Busy(Exception):  # noqa: N818 (a state of the server, no failure of the request)
    """No room for one more request; `retry_seconds` is when to come again."""

    def __init__(self, retry_seconds: int, who: str = "the server is at its limit") -> None:
        super().__init__(f"{who}; come again in {retry_seconds} s")
        self.retry_seconds = retry_seconds


class Gate:
    """Counts who is inside. A request that has timed out stays inside until its thread is free again."""

    def __init__(self, limits: ServerLimits) -> None:
        self._room, self._share = limits.places, limits.tenant_places
        self._of: Counter[str] = Counter()
        self._threads = limits.threads
        self._lock = threading.Lock()
        self._inside = 0
        self._seconds = 0.1

    @property
    def inside(self) -> int:
        """Requests that run or wait."""
        return self._inside

    def enter(self, tenant: str = "") -> None:
        """Busy when there is no room, or none for this tenant; "" is the operator, who has all of it."""
        with self._lock:
            if self._inside >= self._room:
                raise Busy(self._retry_seconds(self._inside))
            if tenant and self._of[tenant] >= self._share:
                count = self._of[tenant]
                raise Busy(self._retry_seconds(count), f"{count} of your requests run or wait, which is your share")
            self._inside += 1
            self._of[tenant] += 1

    def leave(self, seconds: float, tenant: str = "") -> None:
        """One is done, after so many seconds of work."""
        with self._lock:
            self._inside -= 1
            self._of[tenant] -= 1
            if not self._of[tenant]:
                del self._of[tenant]
            self._seconds += 0.1 * (seconds - self._seconds)

    def _retry_seconds(self, ahead: int) -> int:
        """When those ahead should be done: a whole number from 1 to 60, as clients read it."""
        return max(1, min(60, round(self._seconds * ahead / self._threads)))
