"""The recursive pattern: a queue of queries, each answered by retrieval, each asking for more."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

from rag.errors import ConfigError
from rag.flow.judges import Variants, variants_plugin
from rag.flow.merges import fused
from rag.flow.nodes import MOST_ROUNDS, Node, Notes, nodes_field, run_all
from rag.flow.queries import keywords
from rag.flow.relevance import strips_of
from rag.flow.state import Run, State
from rag.registry import Spec
from rag.types import Hit

__all__ = ["Tree"]

_NAME = re.compile(r"(?<![.!?]\s)(?<!^)\b[A-Z][\w'’&-]*\w(?:\s+[A-Z][\w'’&-]*\w)*")


@dataclass(frozen=True, kw_only=True)
class Tree(Node):
    """Runs `do` for the question, then for the queries that follow from it, level by level (tree of clarifications:
    Kim et al., arXiv 2310.14696), and fuses all hits: those of the question, and beside them
    the highest rank that a chunk has for any other query, a level counting 1 / (1 + depth).

    A query's children are its parts (double questions, comparisons), else hops: a name that its best sentences bring
    up and that nobody asked for yet, with the question's other words. Queries of the same words are asked once.

    Deviations: the paper's clarifications are written and pruned by a language model; these are found by rules.
    """

    use: ClassVar[str] = "tree"
    gives: ClassVar[tuple[str, ...]] = ("hits",)

    do: tuple[Node, ...] = nodes_field()
    by: Spec = "multi-query"
    max_depth: int = 2
    max_queries: int = 6
    children: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.do or self.max_depth < 1 or self.children < 1 or not 1 <= self.max_queries <= MOST_ROUNDS:
            raise ConfigError(
                f"tree: needs `do`, max_depth and children >= 1, max_queries of 1 to {MOST_ROUNDS}, not "
                f"max_depth={self.max_depth}, children={self.children}, max_queries={self.max_queries}"
            )

    def run(self, state: State, run: Run, path: str) -> tuple[State, Notes]:
        plugin = variants_plugin(self.by, run)
        queue, seen = [(state.query, 0)], {_key(state.query)}
        lists: list[tuple[Hit, ...]] = []
        weights: list[float] = []
        asked: list[str] = []
        stopped = ""
        while queue and len(asked) < self.max_queries:
            stopped = run.spent() if asked else ""
            if stopped:
                break
            query, depth = queue.pop(0)
            end = run_all(self.do, replace(state, query=query, hits=()), run, f"{path}#{len(asked) + 1}/")
            asked.append(query)
            run.rounds += 1
            lists.append(end.hits)
            weights.append(1.0 / (1 + depth))
            for child in self._children(end, plugin, run) if depth < self.max_depth else []:
                if _key(child) not in seen:
                    seen.add(_key(child))
                    queue.append((child, depth + 1))
        hits = fused(lists, weights, run, best=True)
        return replace(state, hits=hits), {"queries": asked, "left": len(queue), "budget": stopped or "within"}

    def _children(self, state: State, plugin: Variants, run: Run) -> list[str]:
        parts = list(plugin.parts(state.query))
        if parts:
            return parts[: self.children]
        strips = sorted(strips_of(state.query, state.hits[:3], run), key=lambda strip: -strip.support)[:3]
        known = state.question.casefold() + " " + state.query.casefold()
        names = [one.group() for strip in strips for one in _NAME.finditer(strip.text)]
        fresh = [name for name in dict.fromkeys(names) if name.casefold() not in known]
        rest = " ".join(keywords(state.question))
        return [f"{name} {rest}" for name in fresh[: self.children]]


def _key(query: str) -> frozenset[str]:
    return frozenset(keywords(query)) or frozenset([query])
