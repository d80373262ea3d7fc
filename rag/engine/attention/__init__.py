"""Sparse attention: a selection says which units of the context each block of queries reads, an executor reads them.

One file for each selection, named like it:

    dense         everything
    sink_recent   the first and the last tokens
    quest         pages by a bound on their scores
    tokenselect   tokens by a vote of the heads
    chunk_block   the prompt's chunks, the retriever's scores as a prior
    dhsa          the prompt's chunks by pooled keys, cut to a budget of tokens
    flexprefill   as many blocks, columns or diagonals as hold a share of the attention
    hip           a tree search for the best chunks
    hisa          blocks first, then tokens in them
    longheads     chunks by a key that attention pools
    dma           tokens by a gate on their values
    chunkllm      the prompt's chunks by adapted queries and keys, anew where a chunk ends
    sparda        pages by what the layer before forecasts
    token_skip    tokens by a probe's attention, fewer in deeper layers

of which dma, chunkllm and sparda can be trained (`python -m eval.train_attention`); and three around any of them:

    share         one choice for several layers
    compact       one choice for all rows of a chunk of the prompt
    mac           an earlier query's choice for one like it

`units` are pages or the chunks of a prompt, `executors/` run what was kept, and `sparse` puts both into a model.
"""

from rag.engine.attention._base import Kept, Memory, Selection, Step
from rag.engine.attention.sparse import AttentionStats, Sparse, read_sparsely
from rag.engine.attention.units import Units

__all__ = ["AttentionStats", "Kept", "Memory", "Selection", "Sparse", "Step", "Units", "read_sparsely"]
