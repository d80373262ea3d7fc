"""Decides, by what the index holds of a file, whether it is read again. Nothing is read or written here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rag.files import FileListing, FoundFile
from rag.jobs import Job
from rag.limits import Limits
from rag.registry import load
from rag.store.records import FileRecord
from rag.twins import Twin

if TYPE_CHECKING:
    from rag.protocols import Chunker
    from rag.store.store import Store

__all__ = ["Plan", "Planner", "batches", "cutting", "left_out", "missing", "recipe", "twin_of"]

BATCH_FILES = 16
BATCH_BYTES = 8_000_000

_RACY_NS = 2_000_000_000
"""A file that was changed less than this before it is read may be changed again without its time telling (FAT counts
in two seconds). Such a file is noted without a time, and so read again by the next run."""
_LEFT_OUT = re.compile(r"left out: \d+% like .* \[([0-9a-f]{16})\]", re.DOTALL)


@dataclass(slots=True)
class Plan:
    """What is to be done with one file. Without a `job` there is nothing to read: it is kept as it was, or failed."""

    found: FoundFile
    source: str
    recipe: str
    old: FileRecord | None = None
    job: Job | None = None
    error: str = ""
    moved_from: str | None = None
    ends_batch: bool = False


@dataclass
class Planner:
    """What shapes the chunks of a file, and so decides what is up to date.

    `started_ns` is when the run began (time.time_ns); `left_out_at` the threshold over which near-duplicates stay
    out, None when they do not.
    """

    store: Store
    chunker: Chunker
    counter: str
    fingerprint: str | None
    limits: Limits
    left_out_at: float | None
    started_ns: int

    def __post_init__(self) -> None:
        self._recipes: dict[str, str] = {}
        self._failed_mark = _short_hash(json.dumps(self.limits.to_dict(), sort_keys=True))

    def plans(self, group: Sequence[FoundFile], *, again: bool) -> list[Plan]:
        known = self.store.files_at([str(found.path) for found in group])
        names = {path: record.source for path, record in known.items()}
        owners = self.store.owners([names.get(str(found.path), found.source) for found in group])
        plans = [self._plan(found, known.get(str(found.path)), owners, again=again) for found in group]
        plans[-1].ends_batch = True
        return plans

    def _plan(self, found: FoundFile, old: FileRecord | None, owners: dict[str, str], *, again: bool) -> Plan:
        """`again`: a file that failed or was left out is read again, whatever it was."""
        origin = str(found.path)
        plan = Plan(found, old.source if old else found.source, self._recipe(found.parser), old)
        owner = owners.get(plan.source, origin)
        if owner != origin and Path(owner).exists():
            plan.error = (
                f"{origin}: the name {plan.source!r} stands for {owner} already; ingest their common parent folder"
            )
            return plan
        if owner != origin:
            plan.moved_from = owner  # the file has moved, and its name with it
        known_hash = ""
        if old and old.recipe == self.noted_recipe(plan.recipe, old.error) and not (again and old.error):
            if old.mtime_ns and (old.size_bytes, old.mtime_ns) == (found.size_bytes, found.mtime_ns):
                return plan
            known_hash = old.content_hash
        plan.job = Job(
            path=origin, source=plan.source, parser=found.parser, size_bytes=found.size_bytes, known_hash=known_hash
        )
        return plan

    def record(
        self, plan: Plan, content_hash: str, *, doc_id: str | None = None, error: str | None = None
    ) -> FileRecord:
        """The bookkeeping of a file that was read."""
        racy = plan.found.mtime_ns > self.started_ns - _RACY_NS
        return FileRecord(
            origin=str(plan.found.path),
            source=plan.source,
            content_hash=content_hash,
            size_bytes=plan.found.size_bytes,
            mtime_ns=0 if racy else plan.found.mtime_ns,
            recipe=self.noted_recipe(plan.recipe, error),
            doc_id=doc_id,
            error=error,
        )

    def noted_recipe(self, recipe: str, error: str | None) -> str:
        """What was refused is tried again under other limits; what was left out, when twins are looked for
        otherwise, or not at all."""
        if error is None:
            return recipe
        return f"{recipe}~{self.left_out_at}" if twin_of(error) else f"{recipe}+{self._failed_mark}"

    def _recipe(self, parser: str) -> str:
        if parser not in self._recipes:
            self._recipes[parser] = recipe(parser, self.chunker, self.counter, self.fingerprint)
        return self._recipes[parser]


def recipe(parser: str, chunker: Chunker, counter: str, fingerprint: str | None) -> str:
    """Names everything that shapes the chunks of a file: when it changes, the file is read again.

    Two digests, `READING-CUTTING`: how bytes become a document, and how a document becomes chunks and vectors.
    """
    version = load("parser", parser).version
    return f"{_short_hash(f'{parser}/{version}')}-{cutting(chunker, counter, fingerprint)}"


def cutting(chunker: Chunker, counter: str, fingerprint: str | None) -> str:
    """The second half of a recipe, the only one that a rebuild changes."""
    shaped_by = f"|{chunker.shaped_by}" if chunker.shaped_by else ""
    return _short_hash(f"{chunker!r}|{counter}|{fingerprint}{shaped_by}")


def _short_hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def left_out(twin: Twin) -> str:
    """The reason, with the id of the twin: when it goes, the file comes in."""
    return f"left out: {int(100 * twin.similarity)}% like {twin.source} [{twin.doc_id}]"


def twin_of(error: str) -> str | None:
    """The document id in a reason that `left_out` gave; None for every other error."""
    found = _LEFT_OUT.fullmatch(error)
    return found[1] if found else None


def batches(files: Sequence[FoundFile]) -> Iterator[list[FoundFile]]:
    """Consecutive files, at most BATCH_FILES and, but for a single large file, BATCH_BYTES together."""
    group: list[FoundFile] = []
    size = 0
    for found in files:
        if group and (len(group) == BATCH_FILES or size + found.size_bytes > BATCH_BYTES):
            yield group
            group, size = [], 0
        group.append(found)
        size += found.size_bytes
    if group:
        yield group


def missing(store: Store, listing: FileListing, roots: Sequence[Path]) -> list[str]:
    """Known origins below `roots` that exist no longer. A file that is there but was not listed is not missing."""
    present = {str(found.path) for found in listing.files}
    return [
        origin
        for origin in store.origins()
        if origin not in present
        and any(Path(origin).is_relative_to(root) for root in roots)
        and not Path(origin).exists()
    ]
