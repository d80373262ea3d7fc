# ruff: noqa: S608 (only constants are put into SQL; values travel as parameters)
"""`rag.protocols.Filter` -> a condition on the mirror's columns, where PostgreSQL can answer it as the store would.

The mirror holds what never changes for a row: source, doc_id, title and headings. Metadata may change while the
chunks stay, so a filter on `meta.NAME` is the store's to answer, and so is every filter that is wrong: it names the
error. Texts compare by code point (COLLATE "C"), as in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["NO_NUL", "compile_filter", "stored_text"]

Condition = tuple[str, list[Any]]

NO_NUL = "\ufffd"
_COMPARE = {"eq": "=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_PLAIN = ("source", "doc_id", "title")
_MAX_DEPTH = 20
_MAX_VALUES = 10_000


class _NotOursError(Exception):
    """The store has to answer this one."""


def compile_filter(where: Mapping[str, Any]) -> Condition | None:
    """(condition, parameters) with `%s` for every parameter; None when the store has to answer."""
    try:
        sql, values = _all_of(where, 0)
    except _NotOursError:
        return None
    return (sql, values) if len(values) <= _MAX_VALUES else None


def stored_text(text: str) -> str:
    """The text as PostgreSQL can hold it: without NUL characters."""
    return text.replace("\0", NO_NUL)


def _all_of(where: Any, depth: int) -> Condition:
    if not isinstance(where, Mapping) or depth > _MAX_DEPTH:
        raise _NotOursError
    return _join(" AND ", "TRUE", [_part(name, rule, depth) for name, rule in where.items()])


def _part(name: Any, rule: Any, depth: int) -> Condition:
    if name in ("and", "or"):
        if not isinstance(rule, Sequence) or isinstance(rule, str):
            raise _NotOursError
        parts = [_all_of(part, depth + 1) for part in rule]
        return _join(" AND ", "TRUE", parts) if name == "and" else _join(" OR ", "FALSE", parts)
    if name == "not":
        sql, values = _all_of(rule, depth + 1)
        return f"(NOT {sql})", values
    rules = rule if isinstance(rule, Mapping) else {"eq": rule}
    if not rules:
        raise _NotOursError
    place = _place(name)
    return _join(" AND ", "TRUE", [_operator(place, operator, value) for operator, value in rules.items()])


def _place(name: Any) -> Callable[[str], str]:
    """A function that turns a condition on `{x}`, a text, into one on the row."""
    if name in _PLAIN:
        return lambda test: f"({test.format(x=f'c.{name}')})"
    if name == "section":
        return lambda test: f"EXISTS (SELECT 1 FROM unnest(c.section) AS h(x) WHERE {test.format(x='h.x')})"
    raise _NotOursError


def _operator(place: Callable[[str], str], operator: Any, value: Any) -> Condition:
    if operator == "ne":
        sql, values = _operator(place, "eq", value)
        return f"(NOT {sql})", values
    if operator == "exists" and isinstance(value, bool):
        return (place("TRUE") if value else f"(NOT {place('TRUE')})"), []
    if operator == "in" and isinstance(value, Sequence | set | frozenset) and not isinstance(value, str):
        return place('{x} COLLATE "C" = ANY(%s::text[])'), [[_value(one) for one in value]]
    if operator == "contains":
        return place('strpos({x} COLLATE "C", %s) > 0'), [_value(value)]
    if operator not in _COMPARE:
        raise _NotOursError
    return place(f'{{x}} COLLATE "C" {_COMPARE[operator]} %s'), [_value(value)]


def _value(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise _NotOursError
    return value


def _join(word: str, empty: str, parts: list[Condition]) -> Condition:
    sql = word.join(part for part, _ in parts) if parts else empty
    return f"({sql})", [value for _, values in parts for value in values]
