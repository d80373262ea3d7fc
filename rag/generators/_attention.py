"""Where a causal language model looks while it reads its own draft: when to retrieve, and what to ask.

ATLAS (arXiv 2504.01281) scores a token by MLAG = G * D: how much attention changes from layer to layer, times how
unsure the model was of the token, times how much of the last layer's attention it has. Three readings of "its
attention", since the printed one is nothing:

- `printed`: attention that the token receives from tokens before it. A causal model has none: every score is 0.
- `from`: attention that the token gives to those before it. G = sum_j eta_j |a_{j+1} - a_j|_1 / (2 sum_j eta_j), with
  a_j the mean over heads in layer j; in D each head of the last layer counts with what it does not give to the token
  itself. Known while a draft is written.
- `received`: the largest attention that a later token of the draft gives to it, as in DRAGIN (arXiv 2403.10081), in G
  as a share of the largest in the draft. Needs the whole draft; its last token has 0.

In all, eta_j = j / (L - 1), and phi_h is the entropy of head h as a share of that of all heads. G is divided by the
sum of eta, so it lies in [0, 1] whatever the number of layers.

Deviations: alpha is 1, else answers would depend on the memory that is in use; the filter of stop words, numbers and
punctuation is the caller's; entropies are of the draft's rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rag.generators._support import content_words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Values = NDArray[np.float64]
    Singles = NDArray[np.float32]

__all__ = ["READINGS", "Attention", "leaned_on", "needs", "read_attention", "relevance", "whole_word", "words_of"]

READINGS = ("from", "received", "printed")
_BLOCK, _ROWS = 256, 32
"""Tokens read at a time before the draft, and in it, where the attention of every layer and head is held: 57 MB for 30
layers, 9 heads and 1,600 tokens."""
_BETA, _DEPTH, _MOST_WORDS = 0.7, 2.0, 6


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Of a draft of t tokens behind `given` others, n in all, in L layers of H heads.

    `nats` (t,) losses; `mean` (L, t, n) attention of the draft's tokens, mean over heads; `last` (H, t, n) that of the
    last layer; `states` (n, d) hidden states, later layers with more weight.
    """

    given: int
    nats: Values
    mean: Singles
    last: Singles
    states: Singles


def read_attention(model: Any, ids: Sequence[int], given: int) -> Attention:
    """One pass over `ids`, of which the first `given` >= 1 are no part of the draft."""
    import numpy as np
    import torch

    tokens, cache = torch.tensor([ids], device=model.device), None
    logits, mean, last, states = [], [], [], []
    weights = _depths(model.config.num_hidden_layers)
    for begin, end in _blocks(given, len(ids)):
        wanted = begin >= given
        with _eager(model, wanted), torch.inference_mode():
            out = model(
                input_ids=tokens[:, begin:end],
                past_key_values=cache,
                use_cache=True,
                output_attentions=wanted,
                output_hidden_states=True,
                logits_to_keep=0 if wanted else 1,
            )
        cache = out.past_key_values
        logits.append(out.logits[0].float().cpu())
        layers = zip(weights, out.hidden_states[1:], strict=True)
        states.append(sum(float(weight) * layer[0].float().cpu() for weight, layer in layers).numpy())
        if wanted:
            wide = (0, len(ids) - end)
            mean.append([torch.nn.functional.pad(one[0].float().mean(0).cpu(), wide).numpy() for one in out.attentions])
            last.append(torch.nn.functional.pad(out.attentions[-1][0].float().cpu(), wide).numpy())
    before = torch.cat(logits)[-(len(ids) - given) - 1 : -1]
    nats = torch.nn.functional.cross_entropy(before, tokens[0, given:].cpu(), reduction="none")
    return Attention(
        given=given,
        nats=nats.double().numpy(),
        mean=np.concatenate([np.stack(block) for block in mean], axis=1),
        last=np.concatenate(last, axis=1),
        states=np.concatenate(states),
    )


def _blocks(given: int, size: int) -> Iterator[tuple[int, int]]:
    """Borders of the passes; one lies at `given`."""
    for start, stop, step in ((0, given, _BLOCK), (given, size, _ROWS)):
        for begin in range(start, stop, step):
            yield begin, min(begin + step, stop)


@contextmanager
def _eager(model: Any, on: bool) -> Iterator[None]:
    """The model with the attention that shows its weights, for as long as this lasts; the sums are the same."""
    usual = model.config._attn_implementation
    if not on or usual == "eager":
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def needs(read: Attention, reading: str) -> Values:
    """(t,) MLAG of every token of the draft, in [0, 1]."""
    import numpy as np

    layers, size = len(read.mean), len(read.nats)
    eta = np.arange(1, layers) / max(layers - 1, 1)
    phi = _head_weights(read)
    own = np.arange(size), read.given + np.arange(size)
    if reading == "from":
        earlier = read.mean.astype(np.float64)
        earlier[:, own[0], own[1]] = 0.0
        steps = np.abs(np.diff(earlier, axis=0)).sum(axis=2) / 2
        held = 1.0 - read.last[:, own[0], own[1]]
    else:
        inside = read.mean[:, :, read.given :].astype(np.float64), read.last[:, :, read.given :]
        later = np.tri(size, k=-1, dtype=bool) if reading == "received" else np.tri(size, k=-1, dtype=bool).T
        fold = np.max if reading == "received" else np.sum
        got = fold(np.where(later, inside[0], 0.0), axis=1)
        peak = got.max(axis=1, keepdims=True) if reading == "received" else np.maximum.accumulate(got, axis=1)
        steps = np.abs(np.diff(np.divide(got, peak, out=np.zeros_like(got), where=peak > 0), axis=0))
        held = fold(np.where(later, inside[1], 0.0), axis=1)
    gradient = (eta @ steps) / (eta.sum() or 1.0)
    unsure = (1.0 - np.exp(-read.nats)) * (phi @ held)
    scores: Values = np.round(gradient * unsure, 6)
    return scores


def _head_weights(read: Attention) -> Values:
    """(H,) the entropies of the last layer's heads, as shares of their sum."""
    import numpy as np

    rows = read.last.astype(np.float64)
    entropy = -(rows * np.log(np.maximum(rows, 1e-12))).sum(axis=2).mean(axis=1)
    total = float(entropy.sum())
    shares: Values = entropy / total if total > 0 else np.full(len(entropy), 1 / len(entropy))
    return shares


def relevance(read: Attention, at: int) -> Values:
    """(given + at,) LRP: how much each token before draft token `at` matters to it, in [0, 1].

    .7 * attention, weighted over layers, + .3 * cosine of the hidden states; both min-max scaled, since attention is of
    the order of 1 / n and would not count beside cosines.
    """
    import numpy as np

    place = read.given + at
    looked = _layer_weights(len(read.mean)) @ read.mean[:, at, :place]
    states = read.states[: place + 1].astype(np.float64)
    states /= np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-12)
    found: Values = _BETA * _scaled(looked) + (1 - _BETA) * _scaled(states[:-1] @ states[-1])
    return found


def _scaled(values: Values) -> Values:
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else values * 0.0


def _layer_weights(layers: int) -> Values:
    """(L,) psi as printed (.2, .5 and .3 for the thirds of the layers, rising, rising, falling), scaled to sum 1."""
    import numpy as np

    third, each = layers / 3, np.arange(1, layers + 1)
    middle = np.where(each < 2 * third, 0.5 * (each - third) / third, 0.3 * (layers - each) / third)
    psi = np.where(each < third, 0.2 * each / third, middle)
    total = float(psi.sum())
    return psi / total if total > 0 else np.full(layers, 1 / layers)


def _depths(layers: int) -> Values:
    """(L,) softmax of layer / 2: the last few layers have nearly all of the weight."""
    import numpy as np

    raw = np.exp((np.arange(layers) - layers + 1) / _DEPTH)
    return np.asarray(raw / raw.sum())


def words_of(text: str, places: Sequence[tuple[int, int] | None]) -> list[str]:
    """For every token the word that it is a part of, when that carries meaning; "" for all others and for None."""
    words = [whole_word(text, *place) if place else "" for place in places]
    return [word if word and content_words(word) else "" for word in words]


def leaned_on(words: Sequence[str], values: Values) -> tuple[str, ...]:
    """The six words with the largest values, each once, in the order of the text."""
    order = sorted(range(len(values)), key=lambda at: (-round(float(values[at]), 6), at))
    kept: dict[str, int] = {}
    for at in order:
        if len(kept) == _MOST_WORDS:
            break
        if words[at]:
            kept.setdefault(words[at].casefold(), at)
    return tuple(words[at] for at in sorted(kept.values()))


def whole_word(text: str, start: int, end: int) -> str:
    """The word that a token is a part of; "" for a token without a letter or digit."""
    while start < end and not text[start].isalnum():
        start += 1
    while start > 0 and start < end and text[start - 1].isalnum():
        start -= 1
    while start < end < len(text) and text[end].isalnum():
        end += 1
    return text[start:end].strip() if any(char.isalnum() for char in text[start:end]) else ""
