"""Looks at a Chroma directory from another process: damaged files may crash the one that reads them.

A directory that nobody has written to since it was last closed in order is not probed again: the seal beside it holds
the size and the time of change of every file.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rag.protocols import Corpus

_SECONDS = 60
_SAMPLE = 100
_OPEN = """
import json
import sys
import chromadb
from chromadb.config import Settings
client = chromadb.PersistentClient(sys.argv[1], settings=Settings(anonymized_telemetry=False))
"""
_PROBE = (
    _OPEN
    + """
for collection in client.list_collections():
    for sixth in range(6):
        found = collection.get(limit=1, offset=sixth * collection.count() // 6, include=["embeddings"])
        if found["ids"]:
            near = collection.query(query_embeddings=found["embeddings"], n_results=1, include=["distances"])
            assert near["distances"][0][0] < 0.001, "a stored vector does not find itself"
"""
)
_LOOK = (
    _OPEN
    + """
known = {collection.name for collection in client.list_collections()}
if sys.argv[2] not in known:
    print(json.dumps(None))
    sys.exit()
collection = client.get_collection(sys.argv[2], embedding_function=None)
ids = collection.get(include=[])["ids"]
sample = collection.get(ids=ids[:: max(1, len(ids) // int(sys.argv[3]))], include=["embeddings"])
vectors = [[float(number) for number in vector] for vector in sample["embeddings"]]
found = {"metadata": collection.metadata, "ids": ids, "sample": dict(zip(sample["ids"], vectors))}
print(json.dumps(found))
"""
)


def is_sound(path: Path) -> bool:
    """True when the directory is as it was when it was sealed, or another process can open and query it."""
    seal = _seal_path(path)
    try:
        if seal.read_text(encoding="ascii") == _state(path):
            return True
    except (OSError, ValueError):
        pass
    return probe(path)


def seal(path: Path) -> None:
    """Remember the state of a directory that was just closed in order."""
    _seal_path(path).write_text(_state(path), encoding="ascii")


def probe(path: Path) -> bool:
    """True when another process can open and query the mirror."""
    return _child(_PROBE, str(path)) is not None


def look(path: Path, collection: str) -> Mapping[str, Any] | None:
    """Metadata, record ids and a sample of vectors of the collection, {} when it is not there; None when the process
    that looked could not read it."""
    printed = _child(_LOOK, str(path), collection, str(_SAMPLE))
    if printed is None:
        return None
    found: Mapping[str, Any] | None = json.loads(printed.splitlines()[-1])
    return found or {}


def disagreements(corpus: Corpus, ids: list[str], wanted: list[str], sample: Mapping[str, list[float]]) -> list[str]:
    """What is wrong with a mirror that claims to be of this generation, in words that follow "the mirror"."""
    import numpy as np

    missing, foreign = set(wanted).difference(ids), set(ids).difference(wanted)
    found = []
    if missing or foreign:
        found.append(f"lacks {len(missing)} chunks and has {len(foreign)} that are not in the index")
    known = sorted(set(sample).difference(foreign))
    if known:
        _, ours = corpus.vectors([int(name.partition(":")[0]) for name in known])
        theirs = np.array([sample[name] for name in known], dtype=np.float32)
        wrong = int(((ours * theirs).sum(axis=1) < 0.9999 * np.linalg.norm(ours, axis=1)).sum())
        if wrong:
            found.append(f"has other vectors than the index for {wrong} of {len(known)} sampled chunks")
    return found


def _child(code: str, *arguments: str) -> str | None:
    """What another process printed; None when it failed, crashed or hung."""
    try:
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None


def _seal_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.seal")


def _state(path: Path) -> str:
    """One name for the sizes and times of all files."""
    stats = [(str(file.relative_to(path)), file.stat()) for file in sorted(path.rglob("*")) if file.is_file()]
    facts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
