"""kill -9 in the middle of a verb that works on the whole index leaves the old state or the new one."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rag.errors import IndexDamagedError
from rag.store import Store, verify
from rag.store.failpoints import UPKEEP_POINTS
from rag.store.schema import FILE_NAME, FORMAT
from rag.store.swap import read_counters
from tests.crash.entries import dump, failed_record, fill, make_entry
from tests.crash.verbs import pipeline

ROOT = Path(__file__).resolve().parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "index-format-1.sqlite.gz"
VERBS = {
    "snapshot": ("snapshot.copied", "snapshot.synced", "snapshot.renamed"),
    "restore": ("restore.copied", "swap.begin", "swap.half", "swap.done", "restore.done"),
    "compact": ("compact.pruned", "compact.merged", "compact.copied", "swap.begin", "swap.half", "swap.done"),
    "migrate": ("snapshot.copied", "migrate.kept", "migrate.runs", "migrate.step", "migrate.written", "migrate.done"),
    "repair": ("repair.salvaged", "replace.ready", "replace.aside", "replace.done", "repair.done"),
    "rebuild": ("rebuild.batch", "rebuild.built", "swap.begin", "swap.half", "swap.done", "rebuild.done"),
}
CASES = [(verb, point) for verb, points in VERBS.items() for point in points]


def run(verb: str, directory: Path, failpoint: str = "") -> int:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if failpoint:
        environment["CHUNKWISE_FAILPOINT"] = failpoint
    command = [sys.executable, "-m", "tests.crash.verbs", verb, str(directory)]
    return subprocess.run(command, env=environment, cwd=ROOT, timeout=120, check=False).returncode


def state(directory: Path) -> dict[str, list[tuple[Any, ...]]]:
    """What the index says, without counters that never run backwards."""
    held = dump(directory)
    held.pop("sqlite_sequence", None)
    held["state"] = [row for row in held["state"] if row[0] == "manifest" and '"ready"' not in row[1]]
    return held


def prepare(verb: str, directory: Path) -> None:
    if verb == "migrate":
        directory.mkdir()
        (directory / FILE_NAME).write_bytes(gzip.decompress(FIXTURE.read_bytes()))
        return
    if verb == "rebuild":
        docs = directory.parent / "docs"
        docs.mkdir()
        for at in range(130):
            (docs / f"{at}.txt").write_text(f"document {at} says this and that.\n" * 12)
        pipeline(40).index(docs, directory).close()
        return
    fill(directory, *(make_entry(f"document number {at} says this and that " * 30, f"{at}.md") for at in range(9)))
    with Store.create_or_open(directory) as store:
        store.snapshot_create("first")
        store.commit(removed=["/docs/3.md"], failed=[failed_record("bad.pdf")], entries=[make_entry("new " * 99)])
    if verb == "repair":
        path = directory / FILE_NAME
        path.write_bytes(path.read_bytes()[:-4096])


def looks_whole(verb: str, directory: Path) -> bool:
    """Whether the verb took effect; the state must be a whole one either way."""
    if verb == "migrate" and read_format(directory) == 1:
        with pytest.raises(IndexDamagedError, match="rag migrate"):
            Store.open(directory)
        return False
    if verb == "repair" and not verify(directory).ok:
        return False
    problems = [problem for problem in verify(directory).problems if verb != "migrate" or "derived" not in problem]
    assert problems == []
    return True


def read_format(directory: Path) -> int:
    import sqlite3

    connection = sqlite3.connect(directory / FILE_NAME)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    connection.close()
    assert version in (1, FORMAT)
    return int(version)


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "point"), CASES)
def test_a_death_leaves_the_old_state_or_the_new_one(tmp_path: Path, verb: str, point: str) -> None:
    one, two = tmp_path / "one" / "idx", tmp_path / "two" / "idx"
    for directory in (one, two):
        directory.parent.mkdir()
        prepare(verb, directory)
    assert run(verb, two) == 0
    aim = state(two)
    old = state(one) if verb not in ("migrate", "repair") else None
    before = read_counters(one / FILE_NAME) if verb != "repair" else None
    assert run(verb, one, point) == -9
    if looks_whole(verb, one) and old is not None:
        now = state(one)
        assert now == old or comparable(verb, now) == comparable(verb, aim)
    with_snapshot_name = verb == "snapshot" and point == "snapshot.renamed"
    assert run(verb, one) == (1 if with_snapshot_name else 0), "the same call again ends what was begun"
    assert comparable(verb, state(one)) == comparable(verb, aim)
    after = read_counters(one / FILE_NAME)
    assert before is None or after.generation >= before.generation
    assert looks_whole(verb, one)
    assert not [path.name for path in one.iterdir() if "tmp" in path.name or path.name.endswith(".ready")]
    assert not (one / "salvage").exists()


def comparable(verb: str, held: dict[str, list[tuple[Any, ...]]]) -> Any:
    """Row ids of a rebuild differ with the number of attempts, since none is given out twice."""
    if verb != "rebuild":
        return held
    ids = [sorted(row[2:] for row in held[table]) for table in ("chunks", "vectors", "documents")]
    files = sorted((row[1], *row[2:4], row[5], row[7]) for row in held["files"])
    return [*ids, files, sorted({row[0] for row in held["lexical"]})]


def test_every_point_is_tried() -> None:
    assert set(UPKEEP_POINTS) == {point for _, point in CASES}
