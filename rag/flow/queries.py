"""Steps on the question: expand it into several, rewrite it, take a metadata filter out of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from rag.answer import Generation
from rag.errors import ConfigError
from rag.flow.filters import extract_filter
from rag.flow.judges import doubts, variants_plugin
from rag.flow.nodes import Node, Notes
from rag.flow.relevance import telling
from rag.flow.state import Run, State
from rag.flow.timing import Reading, trigger
from rag.generators._support import content_words
from rag.prompt import MARKS
from rag.registry import Spec
from rag.text import lexical_words

__all__ = ["Expand", "Narrow", "Rewrite", "keywords"]

_REWRITE = (
    "Write one short search query that finds the answer to the question. Write the query only.\n\n"
    "Question: {question}\n\nQuery:"
)
_LONGEST = 300
_ANSWER_WORDS = 60


def keywords(text: str) -> list[str]:
    """The words that carry meaning, once each, in order; endings are kept."""
    return [word for word in dict.fromkeys(lexical_words(text)) if content_words(word)]


@dataclass(frozen=True, kw_only=True)
class Expand(Node):
    """Several queries out of one: the variants that a retriever like `multi-query` tells, or with `parts` only the
    parts of a double question. The question itself comes first."""

    use: ClassVar[str] = "expand"
    gives: ClassVar[tuple[str, ...]] = ("queries",)

    by: Spec = "multi-query"
    parts: bool = False

    def run(self, state: State, run: Run, path: str) -> tuple[State, Notes]:
        plugin = variants_plugin(self.by, run)
        made = plugin.parts(state.query) if self.parts else plugin.variants(state.query)
        queries = (state.query, *(one for one in made if one != state.query))
        return replace(state, queries=queries), {"queries": list(queries)}


@dataclass(frozen=True, kw_only=True)
class Rewrite(Node):
    """The next query.

    `keywords`: the question's words that carry meaning, and from the second time on the most frequent words of the
    hits that are there. `answer`: question and last answer (ITER-RETGEN: Shao et al., arXiv 2305.15294). `masked`: the
    draft without the words that the model was unsure of, behind the question (FLARE). `attended`: the question and the
    words that the draft leans on where it needs most to look something up (ATLAS, arXiv 2504.01281; as `masked` where
    the model does not show its attention or no word is in doubt); words of passages may be among them. `uncovered`: the
    question's words that the hits do not hold. `model`: written by the language model (Rewrite-Retrieve-Read, arXiv
    2305.14283).
    """

    use: ClassVar[str] = "rewrite"

    by: Literal["keywords", "answer", "masked", "attended", "uncovered", "model"] = "keywords"
    least: float = 0.5
    reading: Reading = "from"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by not in ("keywords", "answer", "masked", "attended", "uncovered", "model"):
            raise ConfigError(f"rewrite: by keywords, answer, masked, attended, uncovered or model, not {self.by!r}")
        if self.reading not in ("from", "received", "printed"):
            raise ConfigError(f"rewrite: reading must be from, received or printed, not {self.reading!r}")
        if not 0 <= self.least <= 1:
            raise ConfigError(f"rewrite: least must lie in [0, 1], not {self.least}")

    def run(self, state: State, run: Run, path: str) -> tuple[State, Notes]:
        query = " ".join(self._rewritten(state, run).split()) or state.question
        return replace(state, query=query), {"by": self.by, "query": query}

    def _rewritten(self, state: State, run: Run) -> str:
        question, answer = state.question, _answer(state)
        texts = [hit.chunk.text for hit in state.hits]
        if self.by == "model":
            written = run.complete(_REWRITE.format(question=question), 32, "rewrite by model").strip()
            return written.splitlines()[0][:_LONGEST] if written else question
        if self.by == "answer":
            return f"{question} {' '.join(answer.split()[:_ANSWER_WORDS])}"
        if self.by == "attended":
            made = state.generation or Generation(text="")
            found = trigger(made, run, least=self.least, reading=self.reading)
            if found is not None and found[2]:
                return " ".join([question, *found[2]])
        if self.by in ("masked", "attended"):
            unsure = {word.casefold() for word in doubts(state.generation or Generation(text=""), self.least, run)[0]}
            kept = [word for word in answer.split() if word.casefold().strip(".,;:!?") not in unsure]
            return f"{question} {' '.join(kept[:_ANSWER_WORDS])}"
        if self.by == "uncovered":
            held = set(content_words("\n".join(texts[:5])))
            return " ".join(word for word in keywords(question) if not held & set(content_words(word)))
        words = keywords(question)
        if " ".join(words) == state.query and texts:
            words += telling(texts[:3], question, 5)
        return " ".join(words)


def _answer(state: State) -> str:
    """What the last round wrote, without marks; "" for an abstention, which says nothing to search for."""
    made = state.generation
    return MARKS.sub("", made.text) if made is not None and made.citations else ""


@dataclass(frozen=True, kw_only=True)
class Narrow(Node):
    """Adds the metadata filter that the question names to the one that the caller gave; never lifts the caller's."""

    use: ClassVar[str] = "narrow"

    def run(self, state: State, run: Run, path: str) -> tuple[State, Notes]:
        where, notes = extract_filter(state.question, run.index.corpus)
        if where is None:
            return state, notes
        both = {"and": [dict(state.where), where]} if state.where else where
        if not len(run.index.corpus.rows(both)):
            return state, {"dropped": notes["from"], "because": "nothing is left under the caller's filter"}
        return replace(state, where=both), notes
