"""Prompts that start alike, put together: which share a prefix that is worth computing once, and in what order to run.

BatchLLM, arXiv 2412.03594: prefixes are found over all prompts before the first one runs.

Deviations: the trie over token ids is not built, since prompts in the order of their ids are its leaves in order, and
the common prefix of neighbours its inner nodes; groups are run in that order, not by their share of decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from rag.engine.errors import EngineError

__all__ = ["PromptGroup", "group_prompts", "lots"]


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """The prompts `members`, by their number, start with the same `prefix` tokens, of which each has at least one more.

    A group of one shares nothing: its prefix is 0.
    """

    members: tuple[int, ...]
    prefix: int

    @property
    def saved(self) -> int:
        """Tokens that need not be computed."""
        return (len(self.members) - 1) * self.prefix


def group_prompts(prompts: Sequence[Sequence[int]], *, least: int = 16) -> list[PromptGroup]:
    """Every prompt in exactly one group, so that no other grouping saves more tokens, where a group shares one prefix.

    Groups are in the order of their ids: what two of them share, neighbours share. Prefixes shorter than `least`
    tokens are not shared.
    """
    if least < 1:
        raise EngineError(f"least must be >= 1, not {least}")
    if not all(prompts):
        raise EngineError(f"prompt {[bool(one) for one in prompts].index(False)} is empty")
    order = sorted(range(len(prompts)), key=lambda number: (tuple(prompts[number]), number))
    nodes = _trie([_common(prompts[a], prompts[b]) for a, b in pairwise(order)], len(order))
    for node in reversed(nodes):
        node.value = {depth: max(_joined(nodes, node, depth), _opened(nodes, node, least)) for depth in node.above}
    return _groups(nodes, order, least)


def lots(
    group: PromptGroup, prompts: Sequence[Sequence[int]], *, rows: int, tokens: int, room: int = 0
) -> list[tuple[int, ...]]:
    """The members of `group` in lots that run together, those with the shortest rest first: at most `rows` of them, and
    at most `tokens` slots behind the shared prefix, where each has as many as the longest, and `room` more. One that
    needs more than that runs alone.
    """
    found: list[list[int]] = []
    for number in sorted(group.members, key=lambda one: (len(prompts[one]), one)):
        width = len(prompts[number]) - group.prefix + room
        if found and len(found[-1]) < rows and (len(found[-1]) + 1) * width <= tokens:
            found[-1].append(number)
        else:
            found.append([number])
    return [tuple(lot) for lot in found]


@dataclass(eq=False, slots=True)
class _Node:
    """The prompts [first, last] in order share `depth` tokens. `above` are the depths of the nodes around it, and 0;
    `value` tells, for each as the prefix of a group that is open there, how many tokens can be saved in this node."""

    first: int
    last: int
    depth: int
    above: tuple[int, ...]
    children: list[int] = field(default_factory=list)
    value: dict[int, int] = field(default_factory=dict)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common prefix, less than either length: something must be left to compute."""
    most = min(len(first), len(second)) - 1
    return next((at for at in range(most) if first[at] != second[at]), most)


def _trie(common: Sequence[int], prompts: int) -> list[_Node]:
    """The inner nodes and leaves of the trie, parents before children; `common[i]` is what i and i + 1 share."""
    nodes = [_Node(0, prompts - 1, 0, (0,))] if prompts else []
    for number, node in enumerate(nodes):  # which grows meanwhile
        if node.first == node.last:
            continue
        node.depth = min(common[node.first : node.last])
        above = (*node.above, node.depth) if node.depth else node.above
        cuts = [at for at in range(node.first, node.last) if common[at] == node.depth]
        for first, last in zip([node.first, *(at + 1 for at in cuts)], [*cuts, node.last], strict=True):
            nodes[number].children.append(len(nodes))
            nodes.append(_Node(first, last, 0, above))
    return nodes


def _joined(nodes: Sequence[_Node], node: _Node, depth: int) -> int:
    """Tokens saved in `node` when its prompts may join a group that is open at `depth`."""
    return sum(nodes[child].value[depth] for child in node.children) if node.children else depth


def _opened(nodes: Sequence[_Node], node: _Node, least: int) -> int:
    """Tokens saved in `node` when a group opens here: its prefix has to be computed once."""
    return _joined(nodes, node, node.depth) - node.depth if node.children and node.depth >= least else 0


def _groups(nodes: Sequence[_Node], order: Sequence[int], least: int) -> list[PromptGroup]:
    """The choice behind the values."""
    members: list[list[int]] = []
    prefixes: list[int] = []
    todo = [(0, 0, -1)] if nodes else []
    while todo:
        number, depth, group = todo.pop()
        node = nodes[number]
        if node.children:
            if _opened(nodes, node, least) > _joined(nodes, node, depth):
                depth, group = node.depth, len(members)
                members.append([])
                prefixes.append(depth)
            todo += [(child, depth, group) for child in reversed(node.children)]
        elif group >= 0 and depth >= least:
            members[group].append(order[node.first])
        else:
            members.append([order[node.first]])
            prefixes.append(0)
    place = {number: at for at, number in enumerate(order)}
    found = [PromptGroup(tuple(one), prefix) for one, prefix in zip(members, prefixes, strict=True)]
    return sorted(found, key=lambda group: place[group.members[0]])
