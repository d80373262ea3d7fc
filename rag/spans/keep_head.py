"""One pass over [question; passage], two results: a keep probability for each token, a score for the passage.

After Provence (Chirkova et al., ICLR 2025, arXiv 2501.16214), with a small trained head on the frozen bundled MiniLM.
`keep_head.md` is its card, `eval.train_keep_head` trains it. Inference is NumPy only. With an embedder that is not the
one it was trained on, or none, a second head decides by words alone.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from rag.errors import MissingError
from rag.protocols import Embedder
from rag.spans.keep_features import Asked, sentence_rows, state_features, word_features
from rag.spans.keep_input import Joint, Place, joint_states, worded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Arrays = Mapping[str, Floats]

__all__ = ["KEPT_PAIRS", "SHA256", "KeepWeights", "Reading", "logits", "passage_features", "read", "read_weights",
           "weights"]  # fmt: skip

SHA256 = "568cfde92238dd179d39b8123537ec4cfcf289675c5417931ce949ce37a2172e"
"""Of keep_head.npz. Weights that were trained anew need it anew; the training script prints it."""

KEPT_PAIRS = 512
"""Readings that an embedder keeps: a token takes some 130 bytes, so 17 MB with 250 tokens a passage."""


class Reading(NamedTuple):
    """What one pass says: `keep` (n,) probabilities of the tokens at `places`, in [0, 1] as the `score` that the
    passage holds evidence; `words` when no token states were read.
    """

    places: Sequence[Place]
    keep: Floats
    score: float
    words: bool


@dataclass(frozen=True)
class KeepWeights:
    """`model`: fingerprint of the encoder; `rarity` (buckets,) IDF of words; `states` and `words`: arrays of a head.

    token logit = relu(relu(x a + a0) b + b0) c + c0, x from `word_features` and, of the first, `state_features`;
    passage logit = relu(f r + r0) s + s0, f from `passage_features`; both inputs centred and scaled.
    """

    model: str
    rarity: Floats
    states: Arrays
    words: Arrays


def read(question: str, passages: Sequence[str], embedder: Embedder | None) -> list[Reading]:
    """One reading a passage, the same whatever else is read; what this embedder has read lately is not read again."""
    head = weights()
    fits = embedder is not None and embedder.reads_within and embedder.agrees_with(head.model)
    memo = _memo_of(embedder) if embedder is not None and fits else _Memo()
    found = [memo.get((question, passage)) for passage in passages]
    missing = list(dict.fromkeys(p for p, one in zip(passages, found, strict=True) if one is None))
    if not missing:
        return [one for one in found if one is not None]
    asked = Asked(question, head.rarity)
    asked.learn(missing)
    vector = embedder.embed_question(question) if embedder is not None and fits else None
    made: dict[str, Reading] = {}
    for passage in missing:
        # each alone: the bytes of a batch may depend on what is in it
        joint = joint_states(question, [passage], embedder)[0] if embedder is not None and fits else worded(passage)
        made[passage] = _reading(joint, asked, vector, head)
        memo.put((question, passage), made[passage])
    return [made[passage] if one is None else one for passage, one in zip(passages, found, strict=True)]


def _reading(joint: Joint, asked: Asked, vector: Floats | None, head: KeepWeights) -> Reading:
    import numpy as np

    arrays = head.words if vector is None else head.states
    if not joint.places:
        return Reading((), np.zeros(0, dtype=np.float32), 0.0, vector is None)
    rows, sentences = sentence_rows(joint)
    plain = _plain(joint, asked, rows, sentences, vector)
    told = logits(arrays, plain)
    facts = (passage_features(told, plain, rows) - arrays["passage_mean"]) * arrays["passage_scale"]
    hidden = np.maximum(facts @ arrays["r"] + arrays["r0"], 0.0)
    raw = float(hidden @ arrays["s"] + arrays["s0"])
    keep = np.round(_logistic(told), 5)
    score = 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, raw))))
    return Reading(tuple(joint.places), keep, round(score, 6), vector is None)


def _plain(
    joint: Joint, asked: Asked, rows: NDArray[np.int64], sentences: Sequence[str], vector: Floats | None
) -> Floats:
    import numpy as np

    said = word_features(joint, asked, rows, sentences)
    return said if vector is None else np.concatenate([said, state_features(joint, vector, rows)], axis=1)


def logits(arrays: Arrays, plain: Floats) -> Floats:
    """(n,) natural log-odds that a token is kept, from its features (n, f)."""
    import numpy as np

    inputs = (plain - arrays["mean"]) * arrays["scale"]
    hidden = np.maximum(inputs @ arrays["a"] + arrays["a0"], 0.0)
    hidden = np.maximum(hidden @ arrays["b"] + arrays["b0"], 0.0)
    told: Floats = hidden @ arrays["c"] + arrays["c0"]
    return told


def passage_features(told: Floats, plain: Floats, rows: NDArray[np.int64]) -> Floats:
    """What the score is made of: the log-odds of the tokens, of the best sentences, and what is said of all tokens."""
    import numpy as np

    counts = np.bincount(rows)
    means = np.bincount(rows, weights=told)[counts > 0] / counts[counts > 0]
    best = np.sort(means)[::-1]
    second = best[1] if len(best) > 1 else best[0] - 2.0
    made: Floats = np.array(
        [best[0], second, told.max(), told.mean(), *plain[0, 23:31], *plain[0, 47:]], dtype=np.float32
    )
    return made


def _logistic(values: Floats) -> Floats:
    import numpy as np

    told: Floats = (1.0 / (1.0 + np.exp(-np.clip(values, -30.0, 30.0)))).astype(np.float32)
    return told


class _Memo:
    """The last `KEPT_PAIRS` readings, by question and passage."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], Reading] = OrderedDict()
        self._lock = Lock()

    def get(self, pair: tuple[str, str]) -> Reading | None:
        with self._lock:
            found = self._kept.get(pair)
            if found is not None:
                self._kept.move_to_end(pair)
            return found

    def put(self, pair: tuple[str, str], reading: Reading) -> None:
        with self._lock:
            self._kept[pair] = reading
            while len(self._kept) > KEPT_PAIRS:
                self._kept.popitem(last=False)


def _memo_of(embedder: Embedder) -> _Memo:
    """The readings of an embedder are kept with it: reranker and compressor of a pipeline have the same one."""
    memo: _Memo = vars(embedder).setdefault("_keep_readings", _Memo())
    return memo


@cache
def weights() -> KeepWeights:
    """The weights beside this file, read once per process."""
    return read_weights(resources.files("rag.spans").joinpath("keep_head.npz").read_bytes(), SHA256)


def read_weights(data: bytes, sha256: str) -> KeepWeights:
    """The weights in the bytes of an .npz; MissingError when their hash is not `sha256`."""
    import numpy as np

    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise MissingError(
            f"rag/spans/keep_head.npz has the SHA-256 {found}, not {sha256}: it is damaged or was replaced; install "
            f"chunkwise again, or put the hash of your own weights into rag/spans/keep_head.py"
        )
    with np.load(io.BytesIO(data), allow_pickle=False) as held:
        arrays = {name: held[name].astype(np.float32) for name in held.files if name != "model"}
        heads = {
            kind: {name.partition(".")[2]: value for name, value in arrays.items() if name.startswith(f"{kind}.")}
            for kind in ("states", "words")
        }
        return KeepWeights(str(held["model"]), arrays["rarity"], heads["states"], heads["words"])
