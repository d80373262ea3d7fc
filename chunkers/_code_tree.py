"""Source code as syntax trees: which language a text is in, and where its units begin."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rag.errors import missing_extra
from rag.types import Document, Span

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CodeTree", "Unit", "code_spans", "parsed"]

_GRAMMARS: Mapping[str, tuple[str, str]] = {
    "python": ("tree_sitter_python", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
    "tsx": ("tree_sitter_typescript", "language_tsx"),
    "java": ("tree_sitter_java", "language"),
    "go": ("tree_sitter_go", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "c": ("tree_sitter_c", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "csharp": ("tree_sitter_c_sharp", "language"),
    "ruby": ("tree_sitter_ruby", "language"),
    "php": ("tree_sitter_php", "language_php"),
    "bash": ("tree_sitter_bash", "language"),
    "sql": ("tree_sitter_sql", "language"),
}
"""Language -> module of its grammar and the function in it. A grammar is a wheel; none is fetched at run time."""

_NAMES: Mapping[str, str] = {
    **{name: name for name in _GRAMMARS},
    **{"py": "python", "pyi": "python", "python3": "python", "pyw": "python"},
    **{"js": "javascript", "jsx": "javascript", "mjs": "javascript", "cjs": "javascript", "node": "javascript"},
    **{"ts": "typescript", "mts": "typescript", "cts": "typescript", "golang": "go", "rs": "rust"},
    **{"h": "cpp", "hh": "cpp", "hpp": "cpp", "hxx": "cpp", "cc": "cpp", "cxx": "cpp", "c++": "cpp"},
    **{"cs": "csharp", "c#": "csharp", "rb": "ruby", "sh": "bash", "shell": "bash", "zsh": "bash", "ksh": "bash"},
}
"""Names on code fences and file suffixes -> language."""

_FENCE = re.compile(r"[ \t]{0,3}(?:`{3,}|~{3,})[ \t]*\{?\.?([A-Za-z0-9+#]{1,20})[^\r\n]*(?:\r\n|\r|\n)")
_MAX_BYTES = 1_000_000
_OPEN_TYPES = re.compile(r"(?:<[^;{}<]*+){200}")
_STEPS = (200, 0.04)
"""A parse that takes more steps than a + b x bytes is given up: code takes up to 0.025 a byte, even minified; texts
made to confuse a grammar take more, and memory that grows with their square."""
_SECONDS = 5.0
"""And one that is not done by then: ten times what the slowest grammar needs for `_MAX_BYTES` of code."""


@dataclass(frozen=True)
class Unit:
    """Nodes that stay together while they fit, at [start, end): a definition with the comments above it.

    `opens_line` is False for what follows something else on its line: there is no cut before it.
    """

    start: int
    end: int
    nodes: tuple[Any, ...]
    opens_line: bool = True


def code_spans(document: Document) -> list[tuple[Span, str]]:
    """(span, language) of all code in a known language: the whole text, by `meta["language"]` or the suffix of the
    source, else fenced blocks that name theirs. A span leaves the fence's first line out."""
    text = document.text
    named = str(document.meta.get("language", "")).lower()
    language = _NAMES.get(named) or _NAMES.get(_suffix(document.source))
    if language:
        return [(Span(0, len(text)), language)]
    found = []
    for block in document.blocks:
        fence = _FENCE.match(text, block.span.start, block.span.end) if block.kind == "code" else None
        if fence and fence[1].lower() in _NAMES:
            found.append((Span(fence.end(), block.span.end), _NAMES[fence[1].lower()]))
    return found


def _suffix(source: str) -> str:
    name = source.rsplit("/", 1)[-1]
    return name.rpartition(".")[2].lower() if "." in name else ""


def parsed(text: str, span: Span, language: str) -> CodeTree | None:
    """The tree of the code at `span`; None when the parser gives up. MissingError without the packages."""
    module, function = _GRAMMARS[language]
    try:
        library = import_module("tree_sitter")
        grammar = getattr(import_module(module), function)()
    except ImportError as error:
        name = (error.name or module).replace("_", "-")
        raise missing_extra(name, "code", f"the chunker code for {language}") from error
    data = text[span.start : span.end].encode("utf-8", "surrogatepass")
    if len(data) > _MAX_BYTES or (language in ("java", "csharp") and _OPEN_TYPES.search(text, span.start, span.end)):
        return None  # hundreds of "<" in one statement make these two grammars exhaust the memory
    steps, began = 0, time.monotonic()
    most = _STEPS[0] + _STEPS[1] * len(data)

    def stop(_at: int, _error: bool) -> bool:
        nonlocal steps
        steps += 1
        return steps > most or time.monotonic() - began > _SECONDS

    try:
        tree = library.Parser(library.Language(grammar)).parse(
            lambda at, _point: data[at : at + 65_536], progress_callback=stop
        )
    except ValueError:  # stopped
        return None
    return CodeTree(text, span, tree.root_node, _Offsets(data, span.start))


class _Offsets:
    """Byte offsets of the encoded code -> code points of the whole text."""

    def __init__(self, data: bytes, start: int) -> None:
        self._start = start
        self._points: NDArray[np.int64] | None = None
        if not data.isascii():
            import numpy as np

            leading = (np.frombuffer(data, dtype=np.uint8) & 0xC0) != 0x80
            self._points = np.concatenate(([0], np.cumsum(leading, dtype=np.int64)))

    def at(self, byte: int) -> int:
        return self._start + (byte if self._points is None else int(self._points[byte]))


@dataclass(frozen=True)
class CodeTree:
    """A syntax tree over `text[span]`, its places in code points of `text`."""

    text: str
    span: Span
    root: Any
    offsets: _Offsets

    def units(self, nodes: Sequence[Any]) -> Iterator[Unit]:
        """The nodes in order; comments, decorators and attributes join the node after them.

        A unit begins with the line of its first node; a node that begins no line belongs to the unit before it.
        """
        held: list[Any] = []
        first: int | None = None
        glued = False
        for node in nodes:
            begin = self.line_start(node)
            if held and begin is not None and not glued:
                yield self._unit(first, held)
                held = []
            if not held:
                first = begin
            held.append(node)
            if begin is not None:
                glued = _leads(node)
        if held:
            yield self._unit(first, held)

    def _unit(self, first: int | None, nodes: Sequence[Any]) -> Unit:
        start = self.offsets.at(nodes[0].start_byte) if first is None else first
        return Unit(start, self.offsets.at(nodes[-1].end_byte), tuple(nodes), first is not None)

    def line_start(self, node: Any) -> int | None:
        """Where the line of a node begins, if nothing but white space stands before the node; else None."""
        at = self.offsets.at(node.start_byte)
        begin = at
        while begin > self.span.start and self.text[begin - 1] in " \t":
            begin -= 1
        return begin if begin == self.span.start or self.text[begin - 1] in "\r\n" else None


def _leads(node: Any) -> bool:
    """True for nodes that belong to what follows them."""
    return "comment" in node.type or node.type in ("decorator", "attribute_item", "inner_attribute_item")
