"""Question sets as they are published, read into one form: `read_dataset`."""

from __future__ import annotations

from eval.datasets.model import Dataset, DatasetQuestion
from eval.datasets.reading import FORMATS, read_dataset

__all__ = ["FORMATS", "Dataset", "DatasetQuestion", "read_dataset"]
