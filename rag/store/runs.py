"""Traces of finished runs, for `rag explain`. They are written beside the ingest lock, in one short transaction."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rag.errors import IndexDamagedError, RagError, UsageError
from rag.store.database import Database

__all__ = ["KEPT_RUNS", "add_run", "read_run", "read_runs"]

KEPT_RUNS = 1000
_BUSY_SECONDS = 5.0


def add_run(directory: Path, run: Mapping[str, Any]) -> str:
    """Store a trace and return its id; "" when the index cannot be written (read-only, busy, full disk)."""
    text = json.dumps(dict(run))  # before the file is opened: a trace that is no JSON is the caller's mistake
    run_id = secrets.token_hex(4)
    try:
        db = Database(directory, writable=True, busy_seconds=_BUSY_SECONDS)
    except IndexDamagedError:
        raise
    except RagError:
        return ""
    try:
        with db.writing():
            while db.value("SELECT 1 FROM runs WHERE run_id = ?", (run_id,)):
                run_id = secrets.token_hex(4)
            db.run("INSERT INTO runs(run_id, run) VALUES (?, ?)", (run_id, text))
            db.run("DELETE FROM runs WHERE id <= (SELECT id FROM runs ORDER BY id DESC LIMIT 1 OFFSET ?)", (KEPT_RUNS,))
    except IndexDamagedError:
        raise
    except RagError:
        return ""
    finally:
        db.close()
    return run_id


def read_run(db: Database, run_id: str) -> dict[str, Any]:
    """The trace with its `run_id`; UsageError for an unknown id."""
    text = db.value("SELECT run FROM runs WHERE run_id = ?", (run_id,))
    if text is None:
        raise UsageError(
            f"no run {run_id!r} in {db.path.parent}; the newest {KEPT_RUNS} are kept, `rag explain` lists them"
        )
    return {**json.loads(text), "run_id": run_id}


def read_runs(db: Database, limit: int) -> list[dict[str, Any]]:
    """The newest traces, newest first."""
    rows = db.rows("SELECT run_id, run FROM runs ORDER BY id DESC LIMIT ?", (max(0, limit),))
    return [{**json.loads(text), "run_id": run_id} for run_id, text in rows]
