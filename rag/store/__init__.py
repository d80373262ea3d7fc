"""The index on disk: one SQLite file is the truth, everything else beside it can be rebuilt."""

from rag.store.corpus import StoreCorpus
from rag.store.records import DocumentInfo, Entry, FileRecord
from rag.store.snapshots import SnapshotInfo
from rag.store.store import Store
from rag.store.verify import VerifyReport, verify

__all__ = ["DocumentInfo", "Entry", "FileRecord", "SnapshotInfo", "Store", "StoreCorpus", "VerifyReport", "verify"]
