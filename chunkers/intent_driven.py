"""Intent-driven chunks: the segmentation whose chunks answer best what readers may ask of the document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from chunkers._base import tiles_of
from chunkers._embedded import EmbeddedChunker
from chunkers._headers import Headers
from chunkers._intents import gathered, intent_count
from chunkers._intents_score import TERMS, Score, Weights
from chunkers._intents_sources import ModelQuestions, QueryLog, Source, headings, heuristic
from chunkers._segment import Atoms, best_cuts, checked, joined, reach_back
from rag.errors import ConfigError
from rag.protocols import Generator, service
from rag.types import Chunk, Document

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SOURCES = ("headings", "heuristic", "query-log", "generator", "centroids")
_SHOWN = 200
"""Chunks that a record lists."""
_SHORT, _LONG = 2, 10
"""Sentences of a chunk that `refine` calls short or overlong (below, above)."""
_WEIGHTS = ("lam", "w_intent", "w_coherence", "w_size", "w_paragraph", "w_section")


@dataclass(frozen=True, kw_only=True)
class IntentDrivenChunker(EmbeddedChunker):
    """Cuts where a global optimum over all segmentations lies, which rewards chunks that serve one reader's intent.

    R(C) is the largest cosine of the mean sentence vector of chunk C with an intent. `objective`:
    - "length-weighted": sum of w (w_intent R + w_coherence (coh - mu)) - w_size (w - 1)^2 over the chunks, where w =
      characters / target_chars, coh is the mean cosine of pairs in the chunk and mu that in the document; w_paragraph
      for a cut where a paragraph begins, w_section more where a section does, and -beta for any cut.
    - "paper": sum of R - lam |C|^2 - beta (k - 1), |C| in sentences, k chunks. More chunks are more reward, so that it
      falls apart into single sentences unless beta is near the mean R (0.3 to 0.55 for MiniLM and heuristic intents).
    `beta` None is 0 and 0.5. `max_atoms`: sentences in a chunk at most (the paper's L, 10 to 15; None: no such limit).

    `sources`: where intents come from: "headings", "heuristic" (questions of the rarest words of every fourth
    sentence), "query-log" (the file `questions`, a question a line or JSONL), "generator" (questions that the language
    model of the pipeline writes; heuristic where there is none or it writes none), "centroids" (of the sentences:
    self-intents). `intents`: how many, None for 10 to 50 by length; always so few that their tokens are at most 15 %
    of the sentences'. `refine`: join neighbours of which one is a single sentence where both serve one intent, and
    split chunks over ten sentences at the paragraph nearest to their middle.

    `line_paragraphs`: in a text whose lines are paragraphs (most long lines end like a sentence), a line opens a
    paragraph, and a short line without a stop is a title: a section that no cut parts from its text. `split_long`: a
    sentence over `target_chars` is cut at the stops inside, since all that stands in brackets or quotes may be one.
    Both are for the length-weighted objective only. They and the weights were chosen on the development halves of
    Chroma's corpora, SQuAD articles and COVID-QA. Recall at 200, 400 and 800 tokens there, chunks of 500 characters,
    less that of sentence packing: Chroma +1.5, +1.4, +1.4 points (no difference that can be told from chance), SQuAD
    +9.6, +7.6, +4.0 (beyond it), COVID-QA +4.0, +3.3, +1.9 (not); Chroma with chunks of 800: +2.7, +7.0, +7.2.

    Source: IDC (arXiv 2602.14784).
    Deviations: intents need no language model (the paper's come from Gemini 2.5 Flash); the length-weighted objective
    and its sizes in characters; a chunk vector is the plain mean of its sentences'; hard limits; exact spans.
    """

    generator: Generator | None = service(default=None)
    objective: Literal["length-weighted", "paper"] = "length-weighted"
    sources: tuple[str, ...] = ("headings", "heuristic")
    intents: int | None = None
    questions: str = ""
    target_chars: int = 400
    w_intent: float = 1.0
    w_coherence: float = 1.0
    w_size: float = 1.0
    w_paragraph: float = 0.3
    w_section: float = 0.3
    lam: float = 0.0005
    beta: float | None = None
    max_atoms: int | None = None
    refine: bool = False
    line_paragraphs: bool = True
    split_long: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective not in ("length-weighted", "paper"):
            raise ConfigError(f"intent-driven: objective is length-weighted or paper, not {self.objective!r}")
        for source in self.sources:
            if source not in _SOURCES:
                raise ConfigError(f"intent-driven: sources are {', '.join(_SOURCES)}, not {source!r}")
        if "query-log" in self.sources and not self.questions:
            raise ConfigError("intent-driven: the source query-log needs questions, the path of a file with them")
        for name in _WEIGHTS:
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"intent-driven: {name} must be >= 0, not {getattr(self, name)}")
        self._check_at_least("intents", self.intents, 0)
        self._check_at_least("target_chars", self.target_chars, 1)
        self._check_at_least("max_atoms", self.max_atoms, 1)

    def group(self, atoms: Atoms) -> list[Chunk]:
        return self._chunks(atoms, self._planned(atoms)[1])

    def atoms(self, document: Document) -> Atoms:
        header = Headers(self, document, path=True, title=True, rows=False).at if self.heading_header else None
        long_chars = self.target_chars if self.split_long and self.objective == "length-weighted" else None
        return Atoms.of(document, self.ruler(document, header=header), self.embedder, long_chars)

    def segment(self, atoms: Atoms, low: NDArray[np.int64]) -> list[int]:
        return self._best(self.score(atoms), low)

    def decide(self, document: Document) -> tuple[list[Chunk], Mapping[str, Any] | None]:
        """The record has the intents, and in `chunks` a list per column: the first 200 chunks' start and terms.

        A chunk's `structure` is that of the cut before it, `margin` what the objective gains by that cut with all
        others in place (less than 0: a limit forces it), `serves` the place of its best intent. Terms are rounded to
        four digits; `totals` over all chunks are not, and add up to `value`, the objective.
        """
        if not document.text.strip():
            return [], None
        atoms = self.atoms(document)
        score, cuts = self._planned(atoms)
        return self._chunks(atoms, cuts), self._record(score, cuts)

    @property
    def shaped_by(self) -> str:
        """The language model that writes intents, and the questions of the log."""
        made = [repr(self.generator)] if "generator" in self.sources and self.generator else []
        logs = [source for source in self._makers.values() if isinstance(source, QueryLog)]
        return " ".join([*made, *(log.digest for log in logs)])

    def score(self, atoms: Atoms) -> Score:
        """The objective over these atoms; embeds them and the intents, in one call where they are new."""
        count = intent_count(len(atoms)) if self.intents is None else self.intents
        found = gathered(atoms, self._makers, count, self.counter)
        beta = self.beta if self.beta is not None else (0.5 if self.objective == "paper" else 0.0)
        values = {name: getattr(self, name) for name in _WEIGHTS}
        return Score(
            atoms,
            found,
            Weights(
                objective=self.objective,
                target_chars=self.target_chars,
                beta=beta,
                line_paragraphs=self.line_paragraphs,
                **values,
            ),
        )

    @cached_property
    def _makers(self) -> dict[str, Source | None]:
        """The sources by name, their files read; without a language model heuristic stands in for generator."""
        model = self.generator.text_model if self.generator else None
        makers: dict[str, Source | None] = {}
        for source in self.sources:
            if source == "query-log":
                makers[source] = QueryLog(Path(self.questions))
            elif source == "generator" and model:
                makers[source] = ModelQuestions(model)
            elif source == "headings":
                makers[source] = headings
            elif source == "centroids":
                makers[source] = None
            else:
                makers["heuristic"] = heuristic
        return makers

    def _best(self, score: Score, low: NDArray[np.int64]) -> list[int]:
        """The best cuts, refined if asked for."""
        import numpy as np

        if self.max_atoms is not None:
            low = np.maximum(low, np.arange(len(low)) - self.max_atoms)
        cuts = best_cuts(low, score.gain, score.prior)
        return _split_overlong(_merged_short(cuts, score, low), score.atoms) if self.refine else cuts

    def _planned(self, atoms: Atoms) -> tuple[Score, list[int]]:
        score, low = self.score(atoms), reach_back(atoms, self.max_atoms)
        return score, checked(atoms, joined(atoms, self._best(score, low), low, self.min_tokens))

    def _chunks(self, atoms: Atoms, cuts: Sequence[int]) -> list[Chunk]:
        ranges = tiles_of(atoms.ends[cut - 1] for cut in cuts)
        return self.cut(atoms.document, ranges, atoms.ruler.tokens, atoms.ruler.header)

    def _record(self, score: Score, cuts: list[int]) -> dict[str, Any]:
        atoms, intents, terms = score.atoms, score.intents, score.terms(cuts)
        totals = {name: float(value) for name, value in zip(TERMS, terms.sum(axis=0), strict=True)}
        counts = intents.counts()
        named = ", ".join(f"{count} from {source}" for source, count in counts.items()) or "none"
        spans = list(pairwise((0, *cuts)))[:_SHOWN]
        margins = [score.margin(before, cut, after) for (before, cut), (_, after) in pairwise(spans)]
        chunks: dict[str, Any] = {
            name: [round(float(value), 4) for value in terms[:_SHOWN, at]] for at, name in enumerate(TERMS)
        }
        chunks["margin"] = [None, *(round(margin, 4) for margin in margins)]
        chunks["start"] = [atoms.starts[j] for j, _ in spans]
        chunks["serves"] = [score.serves(j, i) for j, i in spans]
        return {
            "chunker": self.plugin,
            "reason": f"best {self.objective} objective over {len(atoms)} sentences; intents: {named}",
            "objective": self.objective,
            "value": sum(totals.values()),
            "totals": totals,
            "sources": counts,
            "intents": list(intents.texts),
            "sentences": len(atoms),
            "count": len(cuts),
            "chunks": chunks,
        }


def _merged_short(cuts: Sequence[int], score: Score, low: NDArray[np.int64]) -> list[int]:
    """Without the cuts between neighbours that serve one intent, of which one is short, and that fit together."""
    kept: list[int] = []
    for cut in cuts:
        before, middle = (kept[-2] if len(kept) > 1 else 0), (kept[-1] if kept else 0)
        short = kept and min(middle - before, cut - middle) < _SHORT and low[cut] <= before
        if short and score.serves(before, middle) == score.serves(middle, cut):
            kept[-1] = cut
        else:
            kept.append(cut)
    return kept


def _split_overlong(cuts: Sequence[int], atoms: Atoms) -> list[int]:
    """With a cut at the paragraph nearest to the middle of every overlong chunk that has one inside."""
    import numpy as np

    opens = np.flatnonzero(atoms.paragraphs)
    done: list[int] = []
    left = [(j, i) for j, i in pairwise((0, *cuts))][::-1]
    while left:
        j, i = left.pop()
        inside = opens[(opens > j) & (opens < i)]
        if i - j <= _LONG or not len(inside):
            done.append(i)
            continue
        at = int(inside[np.argmin(np.abs(2 * inside - i - j))])
        left.extend([(at, i), (j, at)])
    return done
