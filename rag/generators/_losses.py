"""How surprising a causal language model finds each token of a text: one pass over it, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["token_losses"]

BLOCK = 256
"""Tokens whose scores over the whole vocabulary are held at a time: 50 MB for a vocabulary of 49,152."""


def token_losses(
    model: Any, ids: Sequence[int], given: int, *, window: int, carry: int, block: int = BLOCK
) -> NDArray[np.float64]:
    """(len(ids) - given,) -ln P(ids[i] | what the model sees before it) for i >= given, in nats; `given` >= 1.

    The model sees at most `window` tokens: when they are full it starts anew after the last `carry` of them, so a
    token that is not near the start sees between `carry` and `window` tokens before it, or all there are.
    """
    import numpy as np

    if not 0 < carry < window:
        raise ValueError(f"carry must lie between 0 and window, not carry={carry}, window={window}")
    losses = np.empty(len(ids) - given)
    start, done = 0, given  # the window begins at `start`; ids before `done` have their losses
    while done < len(ids):
        end = min(len(ids), start + window)
        losses[done - given : end - given] = _one_window(model, ids[start:end], done - start, block)
        start, done = end - carry, end
    return losses


def _one_window(model: Any, ids: Sequence[int], given: int, block: int) -> NDArray[np.float64]:
    """The losses of ids[given:], with keys and values kept from block to block."""
    import torch

    tokens, cache = torch.tensor([ids], device=model.device), None
    parts = []
    for begin in range(0, len(ids) - 1, block):
        end = min(begin + block, len(ids) - 1)
        with torch.inference_mode():
            out = model(input_ids=tokens[:, begin:end], past_key_values=cache, use_cache=True)
            wanted = tokens[0, begin + 1 : end + 1]
            parts.append(torch.nn.functional.cross_entropy(out.logits[0].float(), wanted, reduction="none").cpu())
        cache = out.past_key_values
    values: NDArray[np.float64] = torch.cat(parts).double().numpy()
    return values[given - 1 :]
