"""Margin sampling: ask a language model at each sentence whether to cut, and compare with its last answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chunkers._likelihood import Likelihood, LikelihoodChunker
from chunkers._segment import Atoms

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PROMPT = """\
This is a text chunking task. Judge by the logical structure and the meaning of two passages that follow each other.
First passage: {before}
Second passage: {after}
Question: Should the text be split between the two passages? Answer yes or no.
Answer:"""

_YES, _NO = " yes", " no"


@dataclass(frozen=True, kw_only=True)
class MarginChunker(LikelihoodChunker):
    """Asks at each sentence whether to split the text before it, and cuts when the margin is above the usual one.

    The margin is P(" yes") - P(" no") right after the prompt: the likelihoods of the two labels, so nothing is written.
    The threshold is the mean of the last `window` margins before this one, and 0 as long as there are fewer. The
    prompt holds the sentence and the last `context_sentences` sentences of the chunk before it. Where that chunk has no
    room for the sentence a cut is forced and nothing is asked. Two likelihoods of one short prompt a sentence: about
    four times the work of perplexity, whose one pass reads each sentence once.

    With SmolLM2-135M the cuts lie no better than chance (2026-11-22, 142 places between sentences of joined CLAPnq
    paragraphs: 12 of 27 ends of paragraphs found with 71 cuts, 13 expected at random): it needs a model that follows
    such a question.

    Source: margin sampling of Meta-Chunking (arXiv 2410.12788) and its code.
    Deviations: the labels are yes and no, where the code numbers two options 1 and 2, and the prompt has no chat
    template; a bounded context, where the code gives the whole chunk so far; no cut at a margin equal to the
    threshold; hard limits, and chunks below `min_tokens` join a neighbour. The code cuts English sentences short that
    have more than 512 words; here nothing is lost, such a sentence is several atoms.
    """

    context_sentences: int = 3
    window: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least("context_sentences", self.context_sentences, 1)
        self._check_at_least("window", self.window, 1)

    def segment(
        self, atoms: Atoms, low: NDArray[np.int64], asked: Likelihood
    ) -> tuple[list[int], str, Sequence[Mapping[str, Any]]]:
        cuts: list[int] = []
        margins: list[float] = []
        places: list[dict[str, Any]] = []
        start = 0
        for at in range(1, len(atoms)):
            if low[at + 1] > start:
                places.append({"margin": None, "forced": True})
            else:
                threshold = self._threshold(margins)
                margin = self._margin(atoms, max(start, at - self.context_sentences), at, asked)
                margins.append(margin)
                places.append({"margin": round(margin, 6), "threshold": round(threshold, 6), "forced": False})
                if margin <= threshold:
                    continue
            cuts.append(at)
            start = at
        forced = len(places) - len(margins)
        reason = f"{len(cuts) - forced} of {len(margins)} margins lie above the moving threshold, {forced} cuts forced"
        return [*cuts, len(atoms)], reason, places

    def _threshold(self, margins: Sequence[float]) -> float:
        last = margins[-self.window :]
        return math.fsum(last) / self.window if len(last) == self.window else 0.0

    def _margin(self, atoms: Atoms, start: int, at: int, asked: Likelihood) -> float:
        """P(yes) - P(no) for a cut before atom `at`, after the atoms from `start`."""
        before = atoms.document.text[atoms.starts[start] : atoms.ends[at - 1]]
        prompt = _PROMPT.format(before=before.strip(), after=atoms.texts[at].strip())
        yes, no = (math.exp(-asked.total(label, after=prompt)) for label in (_YES, _NO))
        return yes - no
