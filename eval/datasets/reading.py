"""One door for all formats: found by looking at the files, or named with --format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from eval.datasets import files, layouts
from eval.datasets.model import Dataset, unique_ids
from rag.errors import UsageError

__all__ = ["FORMATS", "read_dataset"]


FORMATS: Mapping[str, tuple[Callable[[Path], bool], Callable[[Path], Dataset], str]] = {
    "spans": (layouts.is_spans, layouts.read_spans, "corpus.jsonl, queries.jsonl, evidence.jsonl"),
    "beir": (layouts.is_beir, layouts.read_beir, "corpus.jsonl, queries.jsonl, qrels/test.tsv"),
    "trec": (layouts.is_trec, layouts.read_trec, "topics*, qrels* and docs/ or corpus.jsonl"),
    "chroma": (files.is_chroma, files.read_chroma, "questions_df.csv and corpora/"),
    "squad": (files.is_squad, files.read_squad, "a SQuAD JSON file, version 1 or 2"),
    "table": (files.is_table, files.read_table, "a CSV or JSONL file of questions, documents in docs/ beside it"),
}
"""Name -> (does it look like that, reader, what it is made of). The first that fits is taken."""


def read_dataset(path: Path, format: str | None = None, *, documents: Path | None = None) -> Dataset:
    """The set at `path`, a folder or a file. `documents`: folder of the documents of a table of questions.

    UsageError that names what is missing: the path, a known format, a part of a file.
    """
    if not path.exists():
        raise UsageError(f"--dataset {path}: there is no such folder or file; give a path, or a name under --data")
    if format is not None and format not in FORMATS:
        raise UsageError(f"--format {format}: expected one of {', '.join(FORMATS)}")
    chosen = format or next((name for name, (fits, _, _) in FORMATS.items() if fits(path)), None)
    if chosen is None:
        known = "; ".join(f"{name}: {parts}" for name, (_, _, parts) in FORMATS.items())
        raise UsageError(f"--dataset {path}: not a known format. Known are {known}")
    try:
        found = files.read_table(path, documents) if chosen == "table" else FORMATS[chosen][1](path)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UsageError(
            f"--dataset {path}: read as {chosen} ({FORMATS[chosen][2]}), something is not as it should be: "
            f"{type(error).__name__} {error}. Name another format with --format, or mend the file"
        ) from error
    if not found.questions:
        raise UsageError(f"--dataset {path}: read as {chosen}, it has no questions")
    return replace(found, questions=unique_ids(found.name, found.questions))
