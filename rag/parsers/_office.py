"""Text of WordprocessingML paragraphs, which python-docx reads in part only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["body_items", "paragraph_text"]

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_MATH_TEXT = "{http://schemas.openxmlformats.org/officeDocument/2006/math}t"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_DROPPED = frozenset((f"{_W}del", f"{_W}moveFrom", f"{_W}pPr", f"{_W}rPr", _FALLBACK))
_CHARACTERS = {f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-", f"{_W}ptab": "\t"}
_WRAPPERS = frozenset(f"{_W}{name}" for name in ("sdt", "sdtContent", "ins", "moveTo", "customXml", "smartTag"))


def body_items(parent: Any) -> Iterator[Any]:
    """The w:p and w:tbl elements below a body or a cell, in order, those inside content controls included."""
    for child in parent.iterchildren():
        if child.tag in (f"{_W}p", f"{_W}tbl"):
            yield child
        elif child.tag in _WRAPPERS:
            yield from body_items(child)


def paragraph_text(paragraph: Any) -> str:
    """All that a reader sees of a w:p: inserted text, links, formulas and text boxes too, deleted text not."""
    parts: list[str] = []
    stack = [paragraph]
    while stack:
        node = stack.pop()
        if node.tag in (f"{_W}t", _MATH_TEXT):
            parts.append(node.text or "")
        elif node.tag in _CHARACTERS:
            parts.append(_CHARACTERS[node.tag])
        elif node.tag not in _DROPPED and isinstance(node.tag, str):
            if node.tag == f"{_W}p" and node is not paragraph and parts:
                parts.append("\n")  # a paragraph of a text box
            stack.extend(reversed(node))
    lines = (line.strip() for line in "".join(parts).split("\n"))
    return "\n".join(line for line in lines if line)
