"""Which parser reads which file."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType

import rag.parsers
from rag.errors import ConfigError
from rag.parsers._base import FileParser

__all__ = ["is_isolated", "make_parser", "parser_for", "supported_suffixes"]


@cache
def _classes() -> Mapping[str, type[FileParser]]:
    """Parser name -> class. The modules load no reader before they read, so importing all of them is cheap."""
    found: dict[str, type[FileParser]] = {}
    for module in pkgutil.iter_modules(rag.parsers.__path__):
        if module.name.startswith("_"):
            continue
        full_name = f"rag.parsers.{module.name}"
        for value in vars(import_module(full_name)).values():
            if isinstance(value, type) and issubclass(value, FileParser) and value.__module__ == full_name:
                found[module.name.replace("_", "-")] = value
    return MappingProxyType(dict(sorted(found.items())))


@cache
def _suffixes() -> Mapping[str, str]:
    """Suffix -> parser name."""
    return MappingProxyType({suffix: name for name, plugin in _classes().items() for suffix in plugin.suffixes})


def parser_for(suffix: str) -> str | None:
    """The name of the parser for `".pdf"`, in either case; None when there is none."""
    return _suffixes().get(suffix.lower())


def supported_suffixes() -> tuple[str, ...]:
    """All suffixes that some parser reads, sorted."""
    return tuple(sorted(_suffixes()))


def make_parser(name: str) -> FileParser:
    """The parser of that name; ConfigError when there is none."""
    return _class(name)()


def is_isolated(name: str) -> bool:
    """True for parsers that belong into a child process."""
    return _class(name).isolate


def _class(name: str) -> type[FileParser]:
    known = _classes()
    if name not in known:
        raise ConfigError(f"unknown parser {name!r}; known: {', '.join(known)}")
    return known[name]
