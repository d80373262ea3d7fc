"""Source code by its syntax: functions and classes stay whole where they fit, else cuts are between statements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from chunkers._base import SizedChunker, tiles_of
from chunkers._code_tree import CodeTree, Unit, code_spans, parsed
from chunkers._cuts import STRUCTURE, CutLevels
from chunkers._pack import Ruler, join_small, split
from rag.types import Chunk, Document

_DEPTH = 40
"""Trees are descended so far; below that come lines."""


@dataclass(frozen=True, kw_only=True)
class CodeChunker(SizedChunker):
    """Cuts code between the largest syntactic units that fit, and packs neighbours of one level up to the limit.

    Comments and decorators stay with what follows, the head of a class with its first member. A unit over the limit is
    cut between its inner statements, then at lines. Code is a source file, known by the language in its metadata or by
    its suffix, and a fenced block that names its language; everything else is split recursively, and so is code that
    the parser gives up on.
    `min_tokens`: a chunk below it joins a neighbour when both fit together.

    Source: cAST, arXiv 2506.15655.
    Deviations: sizes are tokens, not characters that are no white space; cuts are moved to line starts, comments and
    heads of blocks stay with what they belong to; pieces of one level are merged before they are refined, small ones
    afterwards across levels.
    """

    min_tokens: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least("min_tokens", self.min_tokens, 0)

    def chunk(self, document: Document) -> list[Chunk]:
        return self.decide(document)[0]

    def decide(self, document: Document) -> tuple[list[Chunk], Mapping[str, Any] | None]:
        if not document.text.strip():
            return [], None
        ruler = self.ruler(document)
        found = code_spans(document)
        trees = [tree for span, language in found if (tree := parsed(document.text, span, language))]
        cuts = _CodeCuts(document, ruler, trees) if trees else CutLevels(document, STRUCTURE)
        ends = join_small(ruler, 0, split(ruler, cuts, 0, len(document.text)), self.min_tokens)
        return self.cut(document, tiles_of(ends), ruler.tokens), self._record([name for _, name in found], len(trees))

    def _record(self, languages: list[str], trees: int) -> dict[str, Any]:
        if not languages:
            return {"chunker": self.plugin, "reason": "no code in a known language: split recursively"}
        reason = "cut by syntax" if trees == len(languages) else "code that the parser gave up on is split recursively"
        return {"chunker": self.plugin, "reason": reason, "languages": dict(Counter(languages)), "parsed": trees}


class _CodeCuts(CutLevels):
    """The levels of prose, and between blocks and blank lines those of the syntax trees, from the root inwards."""

    def __init__(self, document: Document, ruler: Ruler, trees: list[CodeTree]) -> None:
        coarse, fine = ("headings", "blocks", "parts"), ("blank-lines", "lines", "sentences")
        super().__init__(document, (*coarse, *fine))
        levels = _merged([_levels(tree, ruler) for tree in trees])
        place = len(self._makers) - len(fine)
        self._makers[place:place] = [partial(iter, level) for level in levels]


def _merged(levels: list[list[list[int]]]) -> list[list[int]]:
    """Level n of every tree in one."""
    depth = max(map(len, levels))
    return [[at for one in levels if len(one) > number for at in one[number]] for number in range(depth)]


def _levels(tree: CodeTree, ruler: Ruler) -> list[list[int]]:
    """Starts of units, level by level; only what does not fit is looked into.

    The first unit of a node waits for one level: the head of a definition stays with it if it can.
    """
    levels: list[list[int]] = []
    waiting: list[int] = []
    large = [Unit(tree.span.start, tree.span.end, (tree.root,))]
    for _ in range(_DEPTH):
        points, units = list(waiting), list[Unit]()
        waiting = []
        for outer in large:
            inner = _inner(tree, outer)
            starts = [unit.start for unit in inner if unit.opens_line]
            waiting.extend(starts[:1])
            points.extend(starts[1:])
            units.extend(inner)
        if points:
            levels.append(sorted(points))
        large = [unit for unit in units if not ruler.fits(unit.start, unit.end)]
        if not large:
            break
    return [*levels, sorted(waiting)] if waiting else levels


def _inner(tree: CodeTree, unit: Unit) -> list[Unit]:
    """The parts of a unit: its nodes one by one, or what its only node consists of."""
    if len(unit.nodes) == 1:
        return list(tree.units(unit.nodes[0].named_children))
    return [part for node in unit.nodes for part in tree.units([node])]
