"""The chunker code and the parser code: units of a syntax tree, exact offsets, code that is none."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from chunkers._code_tree import _GRAMMARS, CodeTree, code_spans, parsed
from chunkers.code import CodeChunker
from chunkers.recursive import RecursiveChunker
from rag.errors import ConfigError, MissingError
from rag.parsers._choose import make_parser, parser_for
from rag.tokens import WordCounter
from rag.types import Block, Chunk, Document, Span

pytest.importorskip("tree_sitter")

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"


def chunker(max_tokens: int = 60, **given: Any) -> CodeChunker:
    return CodeChunker(counter=WordCounter(), max_tokens=max_tokens, **({"min_tokens": 0} | given))


def chunks_of(text: str, suffix: str = "py", max_tokens: int = 60) -> list[Chunk]:
    chunks = chunker(max_tokens).chunk(Document(text=text, source=f"src/x.{suffix}"))
    assert "".join(chunk.text for chunk in chunks) == text
    assert all(chunk.token_count <= max_tokens for chunk in chunks)
    return chunks


def function(name: str, lines: int = 4) -> str:
    body = "".join(f"    value_{n} = value + {n}  # '{FAMILY}' ü\n" for n in range(lines))
    return f"# What {name} is for\n@cached\ndef {name}(value):\n{body}    return value\n\n\n"


FUNCTIONS = "import os\n\n\n" + "".join(function(name) for name in ("first", "second", "third", "fourth"))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_functions_stay_whole_with_their_comments_and_decorators(end: str) -> None:
    chunks = chunks_of(FUNCTIONS.replace("\n", end), max_tokens=70)
    for name in ("first", "second", "third", "fourth"):
        (held,) = [chunk.text for chunk in chunks if f"def {name}" in chunk.text]
        assert f"# What {name} is for{end}@cached{end}def {name}" in held
        assert held.split(f"def {name}")[1].count("value_") >= 4
    assert len(chunks) > 2


def test_small_neighbours_are_packed() -> None:
    assert len(chunks_of(FUNCTIONS, max_tokens=1000)) == 1
    assert len(chunks_of(FUNCTIONS, max_tokens=140)) == 2


def test_a_class_is_cut_between_methods_and_its_head_stays_with_the_first() -> None:
    methods = "".join("    " + line + "\n" if line else "\n" for line in FUNCTIONS.splitlines()[3:])
    chunks = chunks_of(f'class Ledger:\n    """Holds things."""\n\n{methods}', max_tokens=90)
    assert "class Ledger" in chunks[0].text
    assert "def first" in chunks[0].text
    for name in ("first", "second", "third", "fourth"):
        (held,) = [chunk.text for chunk in chunks if f"def {name}" in chunk.text]
        assert "return value" in held.split(f"def {name}")[1]


def test_an_oversized_function_is_cut_between_statements() -> None:
    body = "".join(f"    if value > {n}:\n        value = other(value,\n            {n})\n" for n in range(30))
    chunks = chunks_of(f"def long(value):\n{body}    return value\n", max_tokens=50)
    assert len(chunks) > 4
    assert all(chunk.text.startswith("    if value") for chunk in chunks[1:])


def test_a_statement_over_the_limit_is_cut_at_lines() -> None:
    chunks = chunks_of("table = '''\n" + "one two three four five\n" * 40 + "'''\n", max_tokens=20)
    assert all(chunk.text.endswith("\n") for chunk in chunks)


SOURCES = {
    "js": "/** doc {0} */\nfunction f{0}(a) {{\n  const b = a + '" + FAMILY + "';\n  return b * {0};\n}}\n\n",
    "ts": "// doc {0}\nexport function f{0}(a: number): number {{\n  const b = a;\n  return b * {0};\n}}\n\n",
    "tsx": "// doc {0}\nexport function F{0}() {{\n  const b = {0};\n  return <p>é {{b}}</p>;\n}}\n\n",
    "go": "// doc {0}\nfunc f{0}(a int) int {{\n\tb := a\n\treturn b * {0}\n}}\n\n",
    "rs": "/// doc {0}\n#[inline]\nfn f{0}(a: i32) -> i32 {{\n    let b = a;\n    b * {0}\n}}\n\n",
    "c": "/* doc {0} */\nint f{0}(int a)\n{{\n    int b = a;\n    return b * {0};\n}}\n\n",
    "cpp": "// doc {0}\ntemplate <class T>\nT f{0}(T a) {{\n    T b = a;\n    return b * {0};\n}}\n\n",
    "rb": "# doc {0}\ndef f{0}(a)\n  b = a\n  b * {0}\nend\n\n",
    "sh": "# doc {0}\nf{0}() {{\n  local b=$1\n  echo $((b * {0}))\n}}\n\n",
    "sql": "-- doc {0}\nCREATE TABLE f{0} (\n  a INTEGER PRIMARY KEY,\n  b VARCHAR(20) NOT NULL\n);\n\n",
    "java": "/** doc {0} */\nclass F{0} {{\n    int f(int a) {{\n        return a * {0};\n    }}\n}}\n\n",
    "cs": "/// doc {0}\nclass F{0} {{\n    int F(int a) {{\n        return a * {0};\n    }}\n}}\n\n",
}


@pytest.mark.parametrize("suffix", SOURCES)
def test_units_of_every_language_begin_chunks(suffix: str) -> None:
    unit = SOURCES[suffix]
    text = "".join(unit.format(n) for n in range(12))
    first = unit.format(0).split("\n")[0].replace("0", "")
    chunks = chunks_of(text, suffix, max_tokens=2 * WordCounter().count(unit.format(0)) + 8)
    assert len(chunks) >= 4
    assert all(chunk.text.startswith(first.split("{")[0][:6]) for chunk in chunks), [c.text for c in chunks]


def test_every_grammar_parses() -> None:
    for language in _GRAMMARS:
        assert isinstance(parsed("a", Span(0, 1), language), CodeTree)


@pytest.mark.parametrize(
    "text", ["a = 'é'\r\nb = '" + FAMILY + "'\r\nc = 1\r\n", "# ünï\nd = 2\n\U0001f600 = 3\ne = 4"]
)
def test_places_are_code_points_of_the_whole_text(text: str) -> None:
    whole = f"日本 {FAMILY}\n" + text
    start = len(whole) - len(text)
    tree = parsed(whole, Span(start, len(whole)), "python")
    assert tree is not None
    data = text.encode()
    nodes, seen = [tree.root], 0
    while nodes:
        node = nodes.pop()
        nodes.extend(node.children)
        begin, end = tree.offsets.at(node.start_byte), tree.offsets.at(node.end_byte)
        assert whole[begin:end].encode() == data[node.start_byte : node.end_byte]
        seen += 1
    assert seen > 5


def test_fenced_blocks_of_a_known_language_are_cut_by_syntax_the_rest_is_not() -> None:
    text = f"# Guide\n\nSome words first.\n\n```python\n{FUNCTIONS}```\n\n```nonsense\nx\n```\n\nThe end.\n"
    document = make_parser("markdown").parse(text.encode(), source="guide.md")
    assert [language for _, language in code_spans(document)] == ["python"]
    chunks, record = chunker(70).decide(document)
    assert "".join(chunk.text for chunk in chunks) == text
    assert record is not None
    assert record["languages"] == {"python": 1}
    for name in ("first", "second", "third", "fourth"):
        (held,) = [chunk.text for chunk in chunks if f"def {name}" in chunk.text]
        assert f"# What {name} is for\n@cached\ndef {name}" in held
        assert "return value" in held.split(f"def {name}")[1]


def test_other_text_is_split_recursively() -> None:
    document = Document(text="Some words. " * 300, source="notes.txt")
    chunks, record = chunker().decide(document)
    recursive = RecursiveChunker(counter=WordCounter(), max_tokens=60, min_tokens=0).chunk(document)
    assert [chunk.span for chunk in chunks] == [chunk.span for chunk in recursive]
    assert record == {"chunker": "code", "reason": "no code in a known language: split recursively"}


@pytest.mark.parametrize("suffix", ["py", "js", "java", "cs", "cpp", "rs", "sh"])
@pytest.mark.parametrize("piece", ["a<", "(", "{\n", "\"'", "if (a) ", "a\0b", "`${", "x ="])
def test_hostile_code_is_tiled_within_the_limit(suffix: str, piece: str) -> None:
    chunks_of(piece * 2500, suffix)


def test_a_parser_that_gives_up_is_on_record() -> None:
    text = "a<" * 3000
    assert parsed(text, Span(0, len(text)), "java") is None
    record = chunker().decide(Document(text=text, source="A.java"))[1]
    assert record is not None
    assert record["parsed"] == 0
    assert "gave up" in record["reason"]


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tree_sitter_python", None)
    with pytest.raises(MissingError, match=r"chunkwise\[code\]"):
        chunker().chunk(Document(text=FUNCTIONS, source="x.py"))
    assert chunker().chunk(Document(text="Words alone.", source="x.txt"))


def test_ranges_are_checked() -> None:
    with pytest.raises(ConfigError, match="min_tokens"):
        chunker(min_tokens=-1)


class TestParser:
    def test_one_block_and_the_language(self) -> None:
        text = "\ufeffdef f():\r\n    return 'é'\r\n\r\n"
        document = make_parser("code").parse(text.encode(), source="src/f.py")
        assert document.text == text[1:]
        assert document.blocks == (Block(span=Span(0, len(text) - 5), kind="code"),)
        assert document.meta["language"] == "python"
        assert document.title == "f.py"

    def test_every_suffix_has_a_grammar(self) -> None:
        parser = make_parser("code")
        for suffix in parser.suffixes:
            assert parser_for(suffix) == "code"
            document = parser.parse(b"x", source=f"a/b{suffix.upper()}")
            assert [language for _, language in code_spans(document)] == [document.meta["language"]]
            assert document.meta["language"] in _GRAMMARS
