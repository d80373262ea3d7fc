"""Generation that reuses key-value caches. Speaks token ids and tensors, and knows nothing else of rag.

Its modules import torch and transformers, so they are imported when they are used:

    model     a causal language model with what reuse must know of it
    cache     the preallocated key-value cache that models write to in place
    prefill   prompts in interruptible chunks, and greedy decoding after them
    prefix    exact reuse: the longest known prefix of a prompt is copied, the rest is computed
    blocks    the keys and values of one chunk, kept as if it stood at position 0
    layout    where the prefix, the blocks and the new tokens of a prompt stand
    chunks    chunk reuse: blocks moved to their places and one sparse pass over what must be computed
    donor     blocks averaged over what may stand before a chunk
    repair/   policies that name the reused tokens to compute again
"""

from rag.engine.errors import EngineError, InterruptedPrefillError

__all__ = ["EngineError", "InterruptedPrefillError"]
