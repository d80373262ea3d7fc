"""The victim of the kill tests of whole-index verbs. Run as `python -m tests.crash.verbs VERB DIRECTORY`."""

from __future__ import annotations

import sys
from pathlib import Path

from rag.pipeline import Pipeline
from rag.store import Store
from rag.store.compact import compact
from rag.store.migrate import migrate
from rag.store.repair import repair
from rag.upkeep import rebuild


def pipeline(words: int) -> Pipeline:
    """A line without models that cuts into `words` words."""
    from rag.config import PipelineConfig

    chunker = {"use": "recursive", "max_tokens": words, "min_tokens": 1}
    values = {"chunker": chunker, "embedder": {"use": "hashing", "buckets": 64}, "retriever": "faiss-dense"}
    return Pipeline(PipelineConfig.from_dict(values))


def main(verb: str, directory: Path) -> None:
    if verb == "migrate":
        migrate(directory)
    elif verb == "repair":
        repair(directory)
    elif verb == "rebuild":
        rebuild(directory, pipeline(12))
    else:
        with Store.create_or_open(directory) as store:
            if verb == "compact":
                compact(store)
            elif verb == "snapshot":
                store.snapshot_create("made")
            elif verb == "restore":
                store.snapshot_restore("first")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
