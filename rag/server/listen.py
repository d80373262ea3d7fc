"""uvicorn with a watch on every connection, a port that may be 0, and an end in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from rag.errors import UsageError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from rag.server.limits import ServerLimits

__all__ = ["listen", "listening_socket"]

_GRACE_SECONDS = 2.0
_TICK_SECONDS = 1.0
_log = logging.getLogger("rag.server")


def watched(limits: ServerLimits) -> type[H11Protocol]:
    """The protocol of a connection that is cut when its client neither sends nor takes what it should.

    The guard answers a slow body with 408; this cuts what no answer reaches: headers that come byte by byte, a
    connection that never says anything, and one that does not read.
    """
    receive_seconds = limits.receive_seconds + _GRACE_SECONDS

    class WatchedProtocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._message_since: float | None = self.loop.time()
            self._stuck_since, self._left = self.loop.time(), 0
            self._watch: asyncio.TimerHandle | None = self.loop.call_later(_TICK_SECONDS, self._look)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._watch:
                self._watch.cancel()
                self._watch = None
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED, h11.ERROR):
                self._message_since = None
            elif self._message_since is None:
                self._message_since = self.loop.time()

        def _look(self) -> None:
            now, left = self.loop.time(), self.transport.get_write_buffer_size()
            if not left or left < self._left:
                self._stuck_since = now
            self._left = left
            since = self._message_since
            if now - self._stuck_since > limits.send_seconds or (since is not None and now - since > receive_seconds):
                self.transport.abort()
                return
            self._watch = self.loop.call_later(_TICK_SECONDS, self._look)

    return WatchedProtocol


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket on this address; UsageError when it cannot be had. Port 0: one that is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {host}, port {port}: {error}. Choose another --port or --host") from error


def listen(app: FastAPI, bound: socket.socket, limits: ServerLimits, *, access_log: bool) -> None:
    """Serve until SIGTERM or Ctrl-C; then take no more, finish what runs within `drain_seconds`, and return.

    Raises why the models or the index could not be loaded. A second Ctrl-C waits for nothing. What still runs after
    that time ends with the process.
    """
    config = uvicorn.Config(
        app,
        http=watched(limits),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=access_log,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.max_connections,
        timeout_keep_alive=int(max(1.0, limits.receive_seconds)),
        timeout_graceful_shutdown=int(max(1.0, limits.drain_seconds)),
        h11_max_incomplete_event_size=65_536,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ended)  # what uvicorn raises again at its end; the end is in order
    server = uvicorn.Server(config)
    app.state.stop = lambda: setattr(server, "should_exit", True)
    server.run(sockets=[bound])
    if app.state.broken is not None:
        raise app.state.broken
    if not getattr(app.state, "is_drained", True):
        print("some requests did not end in time and were given up", file=sys.stderr, flush=True)
        os._exit(0)  # their threads cannot be ended otherwise; nothing of theirs is half written


def _ended(_number: int, _frame: object) -> None:
    """The signal has been heard."""
