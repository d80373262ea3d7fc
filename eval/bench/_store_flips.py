"""One byte flipped in the largest files of a finished store, on a copy: does anybody notice?"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.bench._children import Contender
from eval.bench._store_children import Event, Server
from eval.bench._store_corpus import StoreCorpus

__all__ = ["flip_rows"]

_FILES = 3
_QUESTIONS = 50


def flip_rows(
    contenders: Sequence[Contender],
    corpus: StoreCorpus,
    folder: Path,
    *,
    flips: int,
    threads: int,
    seed: int,
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    """One row a contender: what a reader got of `flips` damaged copies, each with one flipped byte."""
    vectors = corpus.write_vectors(folder / "vectors")
    rows: list[dict[str, Any]] = []
    for number, contender in enumerate(contenders):
        tell(f"flipped bytes: {contender.name}")
        place = folder / f"flips-{number}"
        job: dict[str, Any] = {
            "store": str(place / "store"),
            "documents": str(corpus.write(place / "documents")),
            "vectors": str(vectors),
            "options": {**corpus.options(), **contender.options},
            "questions": corpus.questions(_QUESTIONS),
        }
        draw = random.Random(f"{seed}/flips/{contender.name}")  # noqa: S311
        with Server(contender, threads) as server:
            row = {"name": contender.name, "measure": "flips", "role": contender.role}
            sound = server.run({**job, "task": "resume"})
            if sound["event"] != "done":
                rows.append({**row, "status": sound["event"], "reason": sound["reason"]})
                continue
            records = [_one_flip(server, job, place, sound, draw) for _ in range(flips)]
            rows.append({**row, "status": "ok", **_summary(records)})
    return rows


def _one_flip(server: Server, job: dict[str, Any], place: Path, sound: Event, draw: random.Random) -> dict[str, Any]:
    damaged = place / "damaged"
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(place / "store", damaged)
    file, at, before, after = _flip(damaged, draw)
    here = {**job, "store": str(damaged)}
    # Its own check reads the copy before a reader has touched, and perhaps mended, it.
    check = server.run({**here, "task": "verify"})
    found = server.run({**here, "task": "inspect"})
    if found["event"] == "done":
        same = all(found[part] == sound[part] for part in ("rows", "answers"))
        result = "same answers" if same else "other answers"
    else:
        result = "crashed" if found["event"] == "crashed" else "refused"
    problems = check.get("problems") if check["event"] == "done" else [check["reason"]]
    return {
        "file": str(file.relative_to(damaged)),
        "at": at,
        "byte": [before, after],
        "result": result,
        "reason": found.get("reason", ""),
        "own_check": None if problems is None else problems[:3],
    }


def _flip(folder: Path, draw: random.Random) -> tuple[Path, int, int, int]:
    """Change one byte, drawn from the largest files by size; the file, place, old and new value."""
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: -path.stat().st_size)
    largest = files[:_FILES]
    file = draw.choices(largest, weights=[path.stat().st_size for path in largest])[0]
    at, mask = draw.randrange(file.stat().st_size), draw.randrange(1, 256)
    with file.open("r+b") as stream:
        stream.seek(at)
        before = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([before ^ mask]))
    return file, at, before, before ^ mask


def _summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    results = Counter(one["result"] for one in records)
    checked = [one for one in records if one["own_check"] is not None]
    return {
        "flips": len(records),
        "refused": results["refused"],
        "crashed": results["crashed"],
        "other_answers": results["other answers"],
        "same_answers": results["same answers"],
        "found_by_its_own_check": sum(bool(one["own_check"]) for one in checked) if checked else None,
        "other_answers_and_no_word": sum(one["result"] == "other answers" and not one["own_check"] for one in records),
        "files": dict(Counter(one["file"] for one in records)),
        "reasons": dict(Counter(one["reason"] for one in records if one["reason"]).most_common(5)),
        "records": records,
    }
