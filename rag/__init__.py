"""Chunkwise: retrieval-augmented generation where the chunk is the unit of everything.

Importing this package loads no heavy library; plugins import theirs when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rag.answer import Answer, Citation
    from rag.builder import PipelineBuilder
    from rag.config import PipelineConfig
    from rag.errors import RagError
    from rag.index import Index
    from rag.pipeline import Pipeline
    from rag.types import Chunk, Document, Hit, Span

__version__ = "0.1.0"

_HOMES = {
    "Answer": "rag.answer",
    "Chunk": "rag.types",
    "Citation": "rag.answer",
    "Document": "rag.types",
    "Hit": "rag.types",
    "Index": "rag.index",
    "Pipeline": "rag.pipeline",
    "PipelineBuilder": "rag.builder",
    "PipelineConfig": "rag.config",
    "RagError": "rag.errors",
    "Span": "rag.types",
}

__all__ = [
    "Answer",
    "Chunk",
    "Citation",
    "Document",
    "Hit",
    "Index",
    "Pipeline",
    "PipelineBuilder",
    "PipelineConfig",
    "RagError",
    "Span",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rag' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
