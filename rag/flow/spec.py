"""Flows as plain values and back, and the check that a flow can run before it does."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from rag.errors import ConfigError
from rag.flow import feedback, judges, queries, steps, timing
from rag.flow.nodes import Branch, Judge, Loop, Node, Route
from rag.flow.tree import Tree
from rag.registry import check

__all__ = ["JUDGES", "NODES", "check_nodes", "from_spec", "to_spec"]

NODES: Mapping[str, type[Node]] = {
    kind.use: kind
    for kind in (
        steps.Retrieve, steps.Select, steps.Compress, steps.Generate, steps.Refine, steps.Widen, steps.Adjust,
        steps.Abstain, queries.Expand, queries.Rewrite, queries.Narrow, Route, Branch, Loop, Tree,
    )
}  # fmt: skip
JUDGES: Mapping[str, type[Judge]] = {
    kind.use: kind
    for kind in (
        judges.Topic, judges.Parts, judges.Asked, judges.Grade, judges.Answered, judges.Settled, judges.Confident,
        feedback.Feedback, timing.Needs,
    )
}  # fmt: skip
_SLOTS = ("retriever", "selector", "compressor", "generator")


def to_spec(one: Node | Judge) -> Any:
    """A name, or a mapping with `use` and what differs from the defaults."""
    given: dict[str, Any] = {}
    for item in dataclasses.fields(one):
        value = getattr(one, item.name)
        default = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
        if value != default:
            given[item.name] = _plain(value)
    return {"use": one.use, **given} if given else one.use


def _plain(value: Any) -> Any:
    if isinstance(value, Node | Judge):
        return to_spec(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def from_spec(spec: Any, path: str, known: Mapping[str, type[Any]] = NODES) -> Any:
    """The node (or judge) that a spec describes; ConfigError names its place, the wrong word and the right ones."""
    kind = "judge" if known is JUDGES else "node"
    name = spec if isinstance(spec, str) else spec.get("use") if isinstance(spec, Mapping) else None
    if not isinstance(name, str):
        raise ConfigError(f"{path}: expected the name of a {kind} or a mapping with 'use', not {spec!r}")
    if name not in known:
        raise ConfigError(f"{path}: unknown {kind} {name!r}{_near(name, known)}; {kind}s: {', '.join(known)}")
    cls = known[name]
    given = {} if isinstance(spec, str) else {key: value for key, value in spec.items() if key != "use"}
    fields = {item.name: item for item in dataclasses.fields(cls)}
    hints = get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, value in given.items():
        if key not in fields:
            raise ConfigError(f"{path}: {name} has no {key!r}{_near(str(key), fields)}; it has: {', '.join(fields)}")
        what = fields[key].metadata.get("flow", "")
        arguments[key] = _value(what, value, hints[key], f"{path}.{key}")
    absent = [
        key
        for key, item in fields.items()
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING and key not in arguments
    ]
    if absent:
        hint = " (a loop without it has no end)" if "max_rounds" in absent else ""
        raise ConfigError(f"{path}: {name} needs {', '.join(absent)}{hint}")
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _value(what: str, value: Any, hint: Any, path: str) -> Any:
    if what == "judge":
        return from_spec(value, path, JUDGES)
    if what == "nodes":
        return nodes_from(value, path)
    if what == "cases":
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: expected a mapping of labels to nodes, not {value!r}")
        return {str(label): nodes_from(nodes, f"{path}.{label}") for label, nodes in value.items()}
    return _checked(value, hint, path)


def nodes_from(value: Any, path: str) -> tuple[Node, ...]:
    """The nodes of a list of specs."""
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise ConfigError(f"{path}: expected a list of nodes, not {value!r}")
    return tuple(from_spec(item, f"{path}[{at}]") for at, item in enumerate(value))


def _checked(value: Any, hint: Any, path: str) -> Any:
    from pydantic import TypeAdapter, ValidationError

    if isinstance(value, bool) and hint is not bool:
        raise ConfigError(f"{path}: expected {hint}, not {value!r}")
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        raise ConfigError(f"{path}: expected {hint}, not {value!r} ({error.errors()[0]['msg']})") from error


def _near(name: str, known: Any) -> str:
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""


def check_nodes(nodes: Sequence[Node], path: str, have: frozenset[str]) -> tuple[frozenset[str], int]:
    """(ports filled after the nodes, node runs in the worst case); ConfigError when a node reads an empty port."""
    total = 0
    for at, node in enumerate(nodes):
        place = f"{path}[{at}]"
        _want(node.use, node.needs, have, place)
        have, cost = _check_node(node, place, have)
        total += cost
    return have, total


def _check_node(node: Node, place: str, have: frozenset[str]) -> tuple[frozenset[str], int]:
    _check_plugins(node, place)
    after, cost = have | set(node.gives), 1
    if isinstance(node, Route):
        _want(node.by.use, node.by.needs, have, f"{place}.by")
        ends = [check_nodes(case, f"{place}.cases.{label}", have) for label, case in node.cases.items()]
        if set(node.by.labels) - set(node.cases):
            ends.append(check_nodes(node.otherwise, f"{place}.otherwise", have))
        after, cost = frozenset.intersection(*(end for end, _ in ends)), 2 + max(runs for _, runs in ends)
    elif isinstance(node, Branch):
        _want(node.use, (node.over,), have, place)
        inside, runs = check_nodes(node.do, f"{place}.do", have - {"hits"} if node.over == "queries" else have)
        _want(f"branch, merge {node.merge}", ("generation" if node.merge == "ensemble" else "hits",), inside, place)
        after, cost = have | (inside if node.merge == "ensemble" else {"hits"}), 1 + node.limit * runs
    elif isinstance(node, Loop):
        after, runs = check_nodes(node.do, f"{place}.do", have)
        _want(node.until.use, node.until.needs, after, f"{place}.until")
        cost = 1 + node.max_rounds * (runs + 1)
    elif isinstance(node, Tree):
        inside, runs = check_nodes(node.do, f"{place}.do", have - {"hits"})
        _want(node.use, ("hits",), inside, place)
        cost = 1 + node.max_queries * runs
    if node.on_error == "skip":
        after = have
    elif node.on_error == "fallback":
        other, runs = check_nodes(node.fallback, f"{place}.fallback", have)
        after, cost = after & other, cost + runs
    return after, cost


def _check_plugins(node: Node, place: str) -> None:
    for slot in _SLOTS:
        spec = getattr(node, slot, None)
        if spec is not None:
            check(slot, spec, path=f"{place}.{slot}")
    if isinstance(node, queries.Expand | Tree):
        check("retriever", node.by, path=f"{place}.by")


def _want(who: str, ports: Sequence[str], have: frozenset[str], place: str) -> None:
    for port in ports:
        if port not in have:
            makers = ", ".join(name for name, kind in NODES.items() if port in kind.gives) or "no node"
            raise ConfigError(f"{place}: {who} reads {port}, which no node before it gives; given by: {makers}")
