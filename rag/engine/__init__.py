"""Generation that reuses key-value caches. Speaks token ids and tensors, and knows nothing else of rag.

Its modules import torch and transformers, so they are imported when they are used:

    model     a causal language model with what reuse must know of it
    cache     the preallocated key-value cache that models write to in place
    prefill   prompts in interruptible chunks, and greedy decoding after them
    decode    decoding with a temperature, stops and drafts; the tokens are those without drafts
    draft     guesses from the prompt and the answer so far; `automaton` finds and counts what repeats
    share     batches behind one context; `grouping` finds what prompts share
    prefix    exact reuse: the longest known prefix of a prompt is copied, the rest is computed
    blocks    the keys and values of one chunk, kept as if it stood at position 0
    layout    where the prefix, the blocks and the new tokens of a prompt stand
    chunks    chunk reuse: blocks moved to their places and one sparse pass over what must be computed
    donor     blocks averaged over what may stand before a chunk
    observed  blocks that remember what they attended to
    store     blocks on disk, with a ledger and a byte cap; `blobs` is the format of a file
    tiers     blocks in memory over blocks on disk, with bounds of attention from abstracts
    prune     a part of a block: the tokens that a compressor left
    attend    attention with a temperature and a scale for some slots, with its weights summed, or to a shared context
    attention/  which units of the context each block of queries reads, and how that is run
    layers    a sparse pass that drops tokens from layer to layer
    repair/   policies: what is computed again of what is reused, and how
    budget/   what of a prompt stays in the cache when its bytes are limited
    measure   the cost of loading, and the divergence from full prefill
"""

from rag.engine.errors import EngineError, InterruptedPrefillError

__all__ = ["EngineError", "InterruptedPrefillError"]
