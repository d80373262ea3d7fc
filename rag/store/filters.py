# ruff: noqa: S608 (only constants and question marks are put into SQL; values travel as parameters)
"""`rag.protocols.Filter` -> an SQL condition over `chunks c JOIN documents d`. Values travel as parameters only.

What the operators mean, for every field alike:
- text compares with text (by code point), numbers and bools with numbers; unlike kinds are never equal or ordered;
- `ne` is the opposite of `eq`, and `not` of its filter: both hold where the field is absent;
- `contains` looks for a part of a text; `in` takes a list; `exists` takes true or false;
- `section` holds when any heading of the chunk's heading path fulfils the condition (`ne`: when none is equal);
- several conditions side by side must all hold; `{}` and `{"and": []}` hold always, `{"or": []}` never.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from rag.errors import ConfigError
from rag.protocols import Filter

__all__ = ["compile_filter", "names_documents_only"]

Condition = tuple[str, list[Any]]

_FIELDS = ("source", "doc_id", "title", "section", "meta.NAME")
_COMPARE = {"eq": "=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_OPERATORS = (*_COMPARE, "ne", "in", "contains", "exists")
_MAX_DEPTH = 20
_MAX_VALUES = 10_000


def compile_filter(where: Filter | None) -> Condition:
    """(condition, parameters); ConfigError says which field or operator is wrong and what is allowed."""
    sql, values = _all_of(where or {}, 0)
    if len(values) > _MAX_VALUES:
        raise ConfigError(f"filter: {len(values)} values are too many; allowed are {_MAX_VALUES}")
    return sql, values


def names_documents_only(where: Filter) -> bool:
    """True when a filter that compiles says the same of all chunks of a document, so that documents can be asked."""
    for name, rule in where.items():
        parts = rule if name in ("and", "or") else [rule] if name == "not" else []
        if name == "section" or not all(names_documents_only(part) for part in parts):
            return False
    return True


def _all_of(where: object, depth: int) -> Condition:
    if not isinstance(where, dict) and not hasattr(where, "items"):
        raise ConfigError(f"filter: {where!r} is not a mapping such as {{'source': 'a.md'}}")
    if depth > _MAX_DEPTH:
        raise ConfigError(f"filter: nested deeper than {_MAX_DEPTH} levels")
    return _join("AND", "1", [_part(name, rule, depth) for name, rule in where.items()])


def _part(name: object, rule: Any, depth: int) -> Condition:
    if name in ("and", "or"):
        if not isinstance(rule, Sequence) or isinstance(rule, str):
            raise ConfigError(f"filter: {name!r} takes a list of filters, not {rule!r}")
        parts = [_all_of(part, depth + 1) for part in rule]
        return _join("AND", "1", parts) if name == "and" else _join("OR", "0", parts)
    if name == "not":
        sql, values = _all_of(rule, depth + 1)
        return f"NOT {sql}", values
    return _field(name, rule)


def _field(name: object, rule: Any) -> Condition:
    place = _place(name)
    rules = rule if hasattr(rule, "items") else {"eq": rule}
    if not rules:
        raise ConfigError(f"filter: {name!r} has no operator; allowed are {', '.join(_OPERATORS)}")
    return _join("AND", "1", [_operator(str(name), place, operator, value) for operator, value in rules.items()])


def _place(name: object) -> Callable[[str, list[Any]], Condition]:
    """A function that turns a condition on `{x}`, the field's value, into one on the chunk."""
    if name in ("source", "doc_id", "title"):  # the bare column, so that SQLite can use its index
        return lambda test, values: (f"({test.format(x=f'd.{name}')})", values)
    if name == "section":
        headings = "SELECT value AS x FROM json_each(c.section)"
        return lambda test, values: (f"EXISTS (SELECT 1 FROM ({headings}) WHERE {test.format(x='x')})", values)
    if isinstance(name, str) and name.startswith("meta.") and len(name) > len("meta."):
        meta = "SELECT m.value AS x FROM document_meta m WHERE m.document = d.id AND m.name = ?"
        key = _value(name, name.removeprefix("meta."))
        return lambda test, values: (f"EXISTS (SELECT 1 FROM ({meta}) WHERE {test.format(x='x')})", [key, *values])
    raise ConfigError(f"filter: unknown field {name!r}; allowed are {', '.join(_FIELDS)}, and, or, not")


def _operator(name: str, place: Callable[[str, list[Any]], Condition], operator: object, value: Any) -> Condition:
    if operator == "ne":
        sql, values = _operator(name, place, "eq", value)
        return f"NOT {sql}", values
    if operator == "exists":
        if not isinstance(value, bool):
            raise ConfigError(f"filter: {name} exists takes true or false, not {value!r}")
        sql, values = place("1", [])
        return (sql if value else f"NOT {sql}"), values
    if operator == "in":
        if not isinstance(value, Sequence | set | frozenset) or isinstance(value, str):
            raise ConfigError(f"filter: {name} in takes a list, not {value!r}")
        return _in(name, place, list(value))
    if operator == "contains":
        if not isinstance(value, str):
            raise ConfigError(f"filter: {name} contains takes a text, not {value!r}")
        return place("typeof({x}) = 'text' AND instr({x}, ?) > 0", [_value(name, value)])
    if operator not in _COMPARE:
        raise ConfigError(f"filter: {name} has no operator {operator!r}; allowed are {', '.join(_OPERATORS)}")
    return place(f"{_kind(value)} AND {{x}} {_COMPARE[str(operator)]} ?", [_value(name, value)])


def _in(name: str, place: Callable[[str, list[Any]], Condition], values: list[Any]) -> Condition:
    texts = [_value(name, value) for value in values if isinstance(value, str)]
    numbers = [_value(name, value) for value in values if not isinstance(value, str)]
    tests = [f"({_kind(group[0])} AND {{x}} IN ({','.join('?' * len(group))}))" for group in (texts, numbers) if group]
    return place(" OR ".join(tests) or "0", [*texts, *numbers])


def _kind(value: object) -> str:
    # Without this, SQLite would call every number smaller than every text, and '5' equal to 5 in a text column.
    return "typeof({x}) = 'text'" if isinstance(value, str) else "typeof({x}) IN ('integer', 'real')"


def _value(name: str, value: object) -> str | int | float:
    if isinstance(value, str):
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise ConfigError(f"filter: {name} is compared with {value!r}, which holds a lone surrogate")
        return value
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**63 else float(value)
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ConfigError(
        f"filter: {name} is compared with {value!r}; allowed are text, bool and finite numbers "
        "(a list needs the operator 'in', absence the operator 'exists')"
    )


def _join(word: str, empty: str, parts: list[Condition]) -> Condition:
    sql = f" {word} ".join(f"({part})" for part, _ in parts) if parts else empty
    return f"({sql})", [value for _, values in parts for value in values]
