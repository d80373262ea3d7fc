"""Sparse attention: a selection says which units of the context each block of queries reads, an executor reads them.

One file for each selection, named like it:

    dense         everything
    sink_recent   the first and the last tokens
    quest         pages by a bound on their scores
    tokenselect   tokens by a vote of the heads
    chunk_block   the prompt's chunks, the retriever's scores as a prior

`units` are pages or the chunks of a prompt, `executors/` run what was kept, and `sparse` puts both into a model.
"""

from rag.engine.attention._base import Kept, Memory, Selection, Step
from rag.engine.attention.sparse import AttentionStats, Sparse, read_sparsely
from rag.engine.attention.units import Units

__all__ = ["AttentionStats", "Kept", "Memory", "Selection", "Sparse", "Step", "Units", "read_sparsely"]
