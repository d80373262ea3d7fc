"""Compiled filters agree with a plain evaluator, and bad ones are named."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.errors import ConfigError
from rag.store import Store
from rag.store.filters import compile_filter
from rag.types import Block, Chunk, Document, Span
from tests.crash.entries import make_entry

VALUES: list[Any] = [
    "",
    "a",
    "A",
    "ab",
    "é",
    "1",
    "a\x00b",
    "😀",
    0,
    1,
    -1,
    2**53 + 1,
    2**63,
    0.1,
    1.0,
    1.5,
    True,
    False,
]
NAMES = ["n", "a.b", 'q"', "ü'"]
ORDER = {"lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge, "eq": operator.eq}


def same_kind(a: object, b: object) -> bool:
    return isinstance(a, str) == isinstance(b, str)


def holds(value: Any, op: str, wanted: Any) -> bool:
    if op == "exists":
        return True
    if op == "in":
        return any(holds(value, "eq", one) for one in wanted)
    if op == "contains":
        return isinstance(value, str) and wanted in value
    return same_kind(value, wanted) and ORDER[op](value, wanted)


def field_holds(chunk: Chunk, document: Document, name: str, op: str, wanted: Any) -> bool:
    if op == "ne":
        return not field_holds(chunk, document, name, "eq", wanted)
    if op == "exists" and wanted is False:
        return not field_holds(chunk, document, name, "exists", True)
    if name == "section":
        values: list[Any] = list(chunk.section)
    elif name.startswith("meta."):
        key = name.removeprefix("meta.")
        values = [document.meta[key]] if key in document.meta else []
    else:
        values = [document.id if name == "doc_id" else getattr(document, name)]
    return any(holds(value, op, wanted) for value in values)


def plain(chunk: Chunk, document: Document, where: Mapping[str, Any]) -> bool:
    def part(name: str, rule: Any) -> bool:
        if name == "and":
            return all(plain(chunk, document, one) for one in rule)
        if name == "or":
            return any(plain(chunk, document, one) for one in rule)
        if name == "not":
            return not plain(chunk, document, rule)
        rules = rule if isinstance(rule, Mapping) else {"eq": rule}
        return all(field_holds(chunk, document, name, op, wanted) for op, wanted in rules.items())

    return all(part(name, rule) for name, rule in where.items())


scalars = st.sampled_from(VALUES)
texts = st.sampled_from([value for value in VALUES if isinstance(value, str)])
fields = st.sampled_from(["source", "doc_id", "title", "section", *(f"meta.{name}" for name in NAMES)])
rules = st.one_of(
    scalars,
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys((*ORDER, "ne"), scalars),
            "in": st.lists(scalars, max_size=3),
            "contains": texts,
            "exists": st.booleans(),
        },
    ).filter(bool),
)
leaves = st.dictionaries(fields, rules, max_size=2)
filters = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"and": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"or": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"not": inner}),
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory):
    text = "# a\nfirst text\n# A\nsecond text\n## ab\nthird text\n"
    blocks = tuple(
        Block(span=Span(start, start + size), kind="heading", level=level)
        for start, size, level in ((0, 3, 1), (15, 3, 1), (31, 5, 2))
    )
    entries = [make_entry("no headings", "a", title="", meta={})]
    for at, value in enumerate(VALUES):
        meta = {NAMES[at % 4]: value, NAMES[(at + 1) % 4]: VALUES[-1 - at]}
        title = value if isinstance(value, str) else "1"
        entries.append(make_entry(text, f"{at}.md", title=title, meta=meta, blocks=blocks, window=16))
    with Store.create_or_open(tmp_path_factory.mktemp("filters")) as store:
        store.commit(entries=entries)
        with store.corpus() as opened:
            chunks = list(zip(opened.rows().tolist(), opened.chunks(opened.rows()), strict=True))
            yield opened, [(row, chunk, opened.document(chunk.doc_id)) for row, chunk in chunks]


@settings(max_examples=250, deadline=None)
@given(where=filters)
def test_compiled_filters_agree_with_a_plain_evaluator(corpus, where: Mapping[str, Any]) -> None:
    view, everything = corpus
    wanted = [row for row, chunk, document in everything if plain(chunk, document, where)]
    assert view.rows(where).tolist() == wanted
    assert [row for row, _ in view.lexical(["text"], 999, where)] == [
        row for row, _ in view.lexical(["text"], 999) if row in set(wanted)
    ]


def test_the_examples_of_the_protocol(corpus) -> None:
    view, everything = corpus
    assert len(view.rows({})) == len(view.rows()) == len(everything)
    assert {chunk.section for chunk in view.chunks(view.rows({"section": "ab"}))} == {("A", "ab")}
    document = everything[5][2]
    assert {chunk.doc_id for chunk in view.chunks(view.rows({"doc_id": document.id}))} == {document.id}
    assert view.rows({"source": "a", "title": "nope"}).tolist() == []


@pytest.mark.parametrize(
    ("where", "word"),
    [
        ({"author": "x"}, "meta.NAME"),
        ({"meta.": "x"}, "meta.NAME"),
        ({"d.source = '' OR 1=1 --": 1}, "unknown field"),
        ({"source": {"like": "x"}}, "contains"),
        ({"source": {}}, "no operator"),
        ({"source": ["a"]}, "'in'"),
        ({"source": None}, "'exists'"),
        ({"source": {"in": "abc"}}, "list"),
        ({"source": {"contains": 5}}, "text"),
        ({"source": {"exists": "yes"}}, "true or false"),
        ({"meta.x": float("nan")}, "finite"),
        ({"source": "\ud800"}, "surrogate"),
        ({"and": {"source": "a"}}, "list of filters"),
        ({"not": ["a"]}, "mapping"),
        ({"or": ["a"]}, "mapping"),
        ({"source": {"in": ["x"] * 10_001}}, "too many"),
    ],
)
def test_bad_filters_are_named(where: Any, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        compile_filter(where)


def test_nesting_has_a_limit() -> None:
    where: dict[str, Any] = {"source": "a"}
    for _ in range(30):
        where = {"not": where}
    with pytest.raises(ConfigError, match="nested"):
        compile_filter(where)


def test_values_never_reach_the_sql() -> None:
    evil = "x'; DROP TABLE chunks; --"
    sql, values = compile_filter({"source": evil, "meta." + evil: {"in": [evil]}, "section": {"contains": evil}})
    assert "DROP" not in sql
    assert values.count(evil) == 4


def test_depth_and_width_at_the_limits_still_run(corpus) -> None:
    view, everything = corpus
    where: dict[str, Any] = {"source": {"in": [f"{at}.md" for at in range(9_000)]}}
    for _ in range(18):
        where = {"and": [where]}
    assert len(view.rows(where)) == sum(document.source != "a" for _, _, document in everything)


def test_documents_are_filtered_too(tmp_path: Path) -> None:
    with Store.create_or_open(tmp_path) as store:
        store.commit(entries=[make_entry("x", "a.md", meta={"n": 1}), make_entry("y", "b.md", meta={"n": 2})])
        assert [info.source for info in store.documents({"meta.n": {"gt": 1}})] == ["b.md"]
