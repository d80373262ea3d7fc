"""Which parser reads which file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from rag.limits import Limits
from rag.protocols import Parser
from rag.registry import build, catalogue, load

__all__ = ["is_isolated", "make_parser", "parser_for", "supported_suffixes"]


@cache
def _suffixes() -> Mapping[str, str]:
    """Suffix -> parser name. The modules load no reader before they read, so importing all of them is cheap."""
    names = catalogue("parser")
    return MappingProxyType({suffix: name for name in names for suffix in load("parser", name).suffixes})


def parser_for(suffix: str) -> str | None:
    """The name of the parser for `".pdf"`, in either case; None when there is none."""
    return _suffixes().get(suffix.lower())


def supported_suffixes() -> tuple[str, ...]:
    """All suffixes that some parser reads, sorted."""
    return tuple(sorted(_suffixes()))


def make_parser(name: str, limits: Limits | None = None) -> Parser:
    """The parser of that name, held to `limits` if it asks for them; ConfigError when there is none."""
    parser: Parser = build("parser", name, services={"limits": limits or Limits()})
    return parser


def is_isolated(name: str) -> bool:
    """True for parsers that belong into a child process."""
    return bool(load("parser", name).isolate)
