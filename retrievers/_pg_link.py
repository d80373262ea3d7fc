"""One connection to PostgreSQL with pgvector: where it leads, its errors, and who may use it when."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from typing import Any

from rag.errors import ConfigError, RagError, missing_extra

__all__ = ["Link", "check_dsn"]

_PASSWORD = re.compile(r"://[^/@]*:[^/@]+@|\bpassword\s*=", re.IGNORECASE)


def check_dsn(dsn: str) -> None:
    """ConfigError for a password in a config: configs are kept in indexes, printed and shared."""
    if _PASSWORD.search(dsn):
        raise ConfigError(
            "pgvector: dsn must not hold a password; put the whole address into the environment variable that "
            "`dsn_env` names, or the password into PGPASSWORD or ~/.pgpass"
        )


_OLDEST = (0, 8)
"""Before 0.8 a filter can starve the search of a graph."""


class Link:
    """A connection that is used by one thread at a time and made anew when the server has dropped it."""

    def __init__(self, dsn: str, dsn_env: str) -> None:
        try:
            import psycopg
            from pgvector.psycopg import register_vector
        except ImportError as error:
            raise missing_extra(error.name or "psycopg", "pgvector", "The retriever pgvector") from error
        self._psycopg: Any = psycopg
        self._register = register_vector
        self._from = f"the environment variable {dsn_env}" if os.environ.get(dsn_env) else "`dsn`"
        self._dsn = os.environ.get(dsn_env) or dsn
        if not self._dsn:
            raise ConfigError(
                f"pgvector: no database is named; set `dsn` or the environment variable {dsn_env}, "
                "such as postgresql://user@host:5432/database"
            )
        self._turn = threading.RLock()
        self._connection: Any = None
        with self.session():
            pass

    @contextlib.contextmanager
    def session(self) -> Iterator[Any]:
        """The connection, this thread's alone; autocommit. Database errors become RagErrors without the address."""
        with self._turn:
            if self._connection is None or self._connection.closed:
                self._connection = self._connect()
            try:
                yield self._connection
            except self._psycopg.Error as error:
                if self._connection.broken:
                    self._connection.close()
                raise RagError(f"pgvector: PostgreSQL says: {_first_line(error)}") from error

    def is_broken(self) -> bool:
        """True when the server has dropped the connection, so that the next session makes another."""
        return self._connection is None or bool(self._connection.closed)

    def close(self) -> None:
        with self._turn:
            if self._connection is not None:
                self._connection.close()

    def _connect(self) -> Any:
        psycopg = self._psycopg
        try:
            connection = psycopg.connect(
                self._dsn, autocommit=True, connect_timeout=10, application_name="chunkwise", client_encoding="utf8"
            )
        except psycopg.Error as error:
            # Not chained: psycopg's own account may repeat parts of the address.
            raise RagError(
                f"pgvector: the database of {self._from} cannot be opened ({type(error).__name__}); check that the "
                "server runs and that address, user, password and database are right (`psql` with the same address)"
            ) from None
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: Any) -> None:
        if connection.info.parameter_status("server_encoding") != "UTF8":
            raise ConfigError("pgvector: the database must be encoded in UTF8 (createdb --encoding=UTF8)")
        try:
            if (version := _version(connection)) is None:
                with connection.transaction():
                    connection.execute("SELECT pg_advisory_xact_lock(hashtext('chunkwise:extension'))")
                    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
                version = _version(connection)
        except self._psycopg.Error as error:
            raise ConfigError(
                f"pgvector: the extension `vector` cannot be used ({_first_line(error)}); install pgvector on the "
                "server and let its administrator run: CREATE EXTENSION vector"
            ) from error
        if version is None or tuple(map(int, version.split(".")[:2])) < _OLDEST:
            raise ConfigError(
                f"pgvector: the extension `vector` of this database is {version}; 0.8 or later is needed. Install it "
                "on the server and run: ALTER EXTENSION vector UPDATE"
            )
        self._register(connection)


def _version(connection: Any) -> str | None:
    found = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    return None if found is None else str(found[0])


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
