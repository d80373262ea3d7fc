"""What the keep head knows of each token beside its state: how near its sentence and passage are to the question.

Nearness is measured by cosines of states, by late interaction, and by the question's words, each weighed by how rare
it is in the text that the head was trained on. Nothing depends on the other passages, so that a pair has one result.
"""

from __future__ import annotations

import re
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rag.spans.features import question_words, stems_of
from rag.spans.keep_input import Joint
from rag.text import sentence_spans
from rag.types import Document

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["BUCKETS", "STATES", "WORDS", "Asked", "bucket", "sentence_rows", "state_features", "word_features"]

BUCKETS = 8192
WORDS, STATES = 31, 20
"""Columns of `word_features` and of `state_features`."""

_WORD = re.compile(r"\w+")
_NEAR = (1.0, 0.8, 0.6, 0.4, 0.2)
_KINDS = (
    r"\b(?:when|what year|which year|what date|how old)\b",
    r"\b(?:how (?:many|much|long|far|often|large|big|high|tall)|what (?:percent\w*|number|amount))\b",
    r"\b(?:who|whose|whom)\b",
    r"\b(?:where|which (?:country|city|state)|what (?:country|city|state))\b",
    r"\b(?:why|how)\b",
)
_ASKS = tuple(re.compile(pattern, re.IGNORECASE) for pattern in _KINDS)
_CAPITAL = re.compile(r"(?<=[a-z0-9,;] )[A-Z]\w+")
_LEANS = re.compile(r"\s*(?:he|she|it|they|his|her|its|their|this|that|these|those|such)\b", re.IGNORECASE)


def bucket(word: str) -> int:
    """Where the rarity of a lower-case word is kept: words share buckets."""
    return zlib.crc32(word.encode("utf-8", "surrogatepass")) % BUCKETS


class Asked:
    """A question: its words by stem with their shares of all rarity, and what it asks for.

    `rarity` (BUCKETS,) has the IDF of each bucket.
    """

    def __init__(self, question: str, rarity: Floats) -> None:
        import numpy as np

        terms = question_words(question)
        self._stems = stems_of(terms)
        self._known = dict(self._stems)
        self._starts = {term[:2] for term in terms}
        self.columns = {stem: at for at, stem in enumerate(dict.fromkeys(self._stems[term] for term in terms))}
        weights = np.zeros(max(1, len(self.columns)), dtype=np.float32)
        for term in terms:
            at = self.columns[self._stems[term]]
            weights[at] = max(weights[at], rarity[bucket(term)])
        self.shares = weights / max(float(weights.sum()), 1e-6)
        self.kinds = np.array([bool(kind.search(question)) for kind in _ASKS], dtype=np.float32)

    def learn(self, passages: Sequence[str]) -> None:
        """Look up the stems of all words that may meet one of the question, in one go."""
        words = {found.group().lower() for text in passages for found in _WORD.finditer(text)}
        near = sorted(word for word in words if word[:2] in self._starts and word not in self._known)
        if near:
            self._known.update(stems_of(near))

    def column(self, word: str) -> int:
        """Which word of the question this one is, -1 for none."""
        stem = self._known.get(word)
        return -1 if stem is None else self.columns.get(stem, -1)


def sentence_rows(joint: Joint) -> tuple[NDArray[np.int64], list[str]]:
    """(n,) for each token the number of its sentence, and the sentences."""
    import numpy as np

    text = joint.passage
    spans = sentence_spans(Document(text=text, source="passage")) if text else []
    starts = [span.start for span in spans]
    rows = [max(0, bisect_right(starts, start) - 1) for start, _ in joint.places]
    return np.array(rows, dtype=np.int64), [text[span.start : span.end] for span in spans]


def word_features(joint: Joint, asked: Asked, rows: NDArray[np.int64], sentences: Sequence[str]) -> Floats:
    """(n, WORDS): the question's words in the token, its sentence, those near it and the passage; what stands there."""
    import numpy as np

    matches = [(found.start(), asked.column(found.group().lower())) for found in _WORD.finditer(joint.passage)]
    starts = [start for start, _ in matches]
    share = np.append(asked.shares, np.float32(0.0))
    hits = np.zeros(len(joint.places), dtype=np.int64) - 1
    for at, (start, _) in enumerate(joint.places):
        word = bisect_right(starts, start) - 1
        hits[at] = matches[word][1] if word >= 0 else -1
    said = np.zeros((len(sentences), len(asked.shares)), dtype=np.float32)
    counts = np.zeros_like(said)
    for row, column in zip(rows, hits, strict=True):
        if column >= 0:
            said[row, column] = 1.0
            counts[row, column] += 1.0
    own = said @ asked.shares
    near = _near(said) @ asked.shares
    whole = float(said.max(axis=0, initial=0.0) @ asked.shares)
    dense = _density(share[hits], 12)
    facts = np.array([_facts(sentence) for sentence in sentences], dtype=np.float32).reshape(-1, 5)
    wide = facts[:, :3] * asked.kinds[:3] if len(facts) else facts[:, :3]
    of_sentence = np.column_stack(
        [own, near, own - own.max(initial=0.0), near - near.max(initial=0.0), own > 0.999, facts, wide]
    )
    first = np.arange(len(sentences), dtype=np.float32)
    of_sentence = np.column_stack([of_sentence, np.minimum(first, 8) / 8, np.minimum(first[::-1], 8) / 8])
    token = np.array([_token_facts(joint.passage[start:end]) for start, end in joint.places], dtype=np.float32)
    passage = np.array([whole, own.mean() if len(own) else 0.0, np.log1p(len(rows)) / 6, *asked.kinds])
    whole_rows = np.broadcast_to(passage.astype(np.float32), (len(rows), len(passage)))
    own_word = np.stack([share[hits], hits >= 0, dense, share[hits] > 0.3], axis=1)
    made: Floats = np.concatenate(
        [own_word, token.reshape(-1, 4), of_sentence.astype(np.float32)[rows], whole_rows], axis=1
    ).astype(np.float32)
    return made


def state_features(joint: Joint, asked: Floats, rows: NDArray[np.int64]) -> Floats:
    """(n, STATES): cosines with the question of the token, its neighbourhood, its sentence and the passage.

    `asked` (d,) is the vector that the question has alone; that of the joint pass is the mean of its tokens' states.
    """
    import numpy as np

    states, question = joint.states, joint.asked if len(joint.asked) else asked[None, :]
    mean = _unit(question.mean(axis=0, keepdims=True))[0]
    grid = states @ question.T  # (n, m)
    token = [grid.max(axis=1), grid.mean(axis=1), states @ mean, states @ asked]
    around = [_cosine(_window(states, size), one) for size in (6, 24) for one in (mean, asked)]
    count = int(rows.max(initial=-1)) + 1
    sums = np.zeros((count, states.shape[1]), dtype=np.float32)
    np.add.at(sums, rows, states)
    late = np.full((count, grid.shape[1]), -1.0, dtype=np.float32)
    np.maximum.at(late, rows, grid)
    best = late.max(axis=0) if count else np.zeros(grid.shape[1], dtype=np.float32)
    of_sentence = [_cosine(sums, mean), _cosine(sums, asked), late.mean(axis=1), (late > best - 1e-4).mean(axis=1)]
    whole = _unit(states.sum(axis=0, keepdims=True))
    passage = [float((whole @ mean)[0]), float((whole @ asked)[0]), float(best.mean()), float(mean @ asked)]
    relative = [one - one.max(initial=-1.0) for one in of_sentence[:3]] + [of_sentence[1] - of_sentence[1].mean()]
    columns = [*token, *around, *(one[rows] for one in (*of_sentence, *relative))]
    columns += [np.full(len(rows), value, dtype=np.float32) for value in passage]
    made: Floats = np.stack(columns, axis=1).astype(np.float32)
    return made


def _near(said: Floats) -> Floats:
    """(sentences, terms): 1 where a sentence has the word, less where one near it has."""
    import numpy as np

    near = np.zeros_like(said)
    for distance, weight in enumerate(_NEAR):
        if distance < len(said):
            near[distance:] = np.maximum(near[distance:], weight * said[: len(said) - distance])
            near[: len(said) - distance] = np.maximum(near[: len(said) - distance], weight * said[distance:])
    return near


def _density(values: Floats, size: int) -> Floats:
    """(n,) sums over `size` tokens on either side."""
    import numpy as np

    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    at = np.arange(len(values))
    found: Floats = (sums[np.minimum(at + size + 1, len(values))] - sums[np.maximum(at - size, 0)]).astype(np.float32)
    return found


def _window(states: Floats, size: int) -> Floats:
    import numpy as np

    sums = np.concatenate([np.zeros((1, states.shape[1])), np.cumsum(states, axis=0, dtype=np.float64)])
    at = np.arange(len(states))
    found: Floats = (sums[np.minimum(at + size + 1, len(at))] - sums[np.maximum(at - size, 0)]).astype(np.float32)
    return found


def _unit(rows: Floats) -> Floats:
    import numpy as np

    made: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return made


def _cosine(rows: Floats, vector: Floats) -> Floats:
    return _unit(rows) @ vector


def _facts(sentence: str) -> tuple[float, ...]:
    """What a sentence has: digits, a name, several digits, a leaning start, its length."""
    digits = sum(char.isdigit() for char in sentence)
    names = len(_CAPITAL.findall(sentence))
    return (
        float(digits >= 3),
        float(digits > 0),
        min(names, 3) / 3,
        float(bool(_LEANS.match(sentence))),
        len(sentence) / 300,
    )


def _token_facts(token: str) -> tuple[float, ...]:
    return (
        float(any(char.isdigit() for char in token)),
        float(token[:1].isupper()),
        float(not any(char.isalnum() for char in token)),
        min(len(token), 10) / 10,
    )
