from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from rag import registry
from rag.errors import ConfigError
from rag.protocols import Chunker, TokenCounter, nested, service
from rag.tokens import WordCounter

SERVICES = {"counter": WordCounter(limit=256)}


def test_file_name_is_plugin_name() -> None:
    assert registry.catalogue("chunker")["parent-child"] == "chunkers.parent_child"
    assert "cli" not in registry.catalogue("chunker")
    assert not [name for name in registry.catalogue("chunker") if name.startswith("-")]


def test_a_new_file_in_a_room_is_a_plugin_without_any_other_edit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import chunkers

    (tmp_path / "whole_text.py").write_text(
        "from dataclasses import dataclass\n"
        "from rag.protocols import Chunker, TokenCounter, service\n"
        "from rag.types import Chunk, Document\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class WholeTextChunker(Chunker):\n"
        "    '''One chunk per document.'''\n"
        "    counter: TokenCounter = service()\n"
        "    def chunk(self, document: Document) -> list[Chunk]:\n"
        "        if not document.text:\n"
        "            return []\n"
        "        size = len(document.text)\n"
        "        return [Chunk.cut(document, 0, size, counter=self.counter, chunker='whole-text')]\n"
    )
    monkeypatch.setattr(chunkers, "__path__", [*chunkers.__path__, str(tmp_path)])
    registry.catalogue.cache_clear()
    try:
        built = registry.build("chunker", "whole-text", services=SERVICES)
        assert type(built).__name__ == "WholeTextChunker"
        assert registry.describe("chunker", "whole-text").summary == "One chunk per document."
    finally:
        registry.catalogue.cache_clear()
        sys.modules.pop("chunkers.whole_text", None)


def test_unknown_kind_name_and_parameter_say_what_is_near_and_what_exists() -> None:
    with pytest.raises(ConfigError, match=r"unknown plugin kind 'chunkr' \(did you mean 'chunker'\?\); kinds: parser"):
        registry.catalogue("chunkr")
    with pytest.raises(ConfigError, match=r"unknown chunker 'recursiv' \(did you mean 'recursive'\?\); known: .*fixed"):
        registry.build("chunker", "recursiv", services=SERVICES)
    with pytest.raises(ConfigError, match=r"no parameter 'max_token' \(did you mean 'max_tokens'\?\); parameters: "):
        registry.build("chunker", {"use": "fixed", "max_token": 3}, services=SERVICES)


def test_wrong_type_and_range_start_with_the_path() -> None:
    with pytest.raises(ConfigError, match=r"^chunker\.max_tokens: expected .*int.*, not 'many'"):
        registry.build("chunker", {"use": "fixed", "max_tokens": "many"}, services=SERVICES)
    with pytest.raises(ConfigError, match=r"^chunker: .*max_tokens"):
        registry.build("chunker", {"use": "fixed", "max_tokens": -1}, services=SERVICES)
    with pytest.raises(ConfigError, match=r"^chunker\.max_tokens: expected .*, not True"):
        registry.build("chunker", {"use": "fixed", "max_tokens": True}, services=SERVICES)


def test_a_spec_without_use_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"chunker: expected a plugin name or a mapping with 'use'"):
        registry.build("chunker", {"max_tokens": 3}, services=SERVICES)
    with pytest.raises(ConfigError, match="expected a plugin name"):
        registry.build("chunker", 7, services=SERVICES)  # type: ignore[arg-type]


def test_nested_specs_are_built_and_their_errors_carry_the_whole_path(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, kw_only=True)
    class BestOfChunker(Chunker):
        counter: TokenCounter = service()
        candidates: tuple[Chunker, ...] = nested("chunker", ("fixed", {"use": "sentence", "max_tokens": 9}))

        def chunk(self, document):  # type: ignore[no-untyped-def]
            return []

    real = registry.load

    def fake(kind: str, name: str, *, path: str = "") -> type:
        return BestOfChunker if name == "best-of" else real(kind, name, path=path)

    monkeypatch.setattr(registry, "load", fake)
    monkeypatch.setattr(registry, "get_type_hints", lambda cls: {} if cls is BestOfChunker else _hints(cls))
    built = registry.build("chunker", "best-of", services=SERVICES)
    assert [type(one).__name__ for one in built.candidates] == ["FixedChunker", "SentenceChunker"]
    assert built.candidates[1].max_tokens == 9
    with pytest.raises(ConfigError, match=r"^chunker\.candidates\[1\]: unknown chunker 'fxed' \(did you mean 'fixed'"):
        registry.build("chunker", {"use": "best-of", "candidates": ["fixed", "fxed"]}, services=SERVICES)


def _hints(cls: type) -> dict[str, object]:
    from typing import get_type_hints

    return get_type_hints(cls)


def test_services_are_handed_over_by_name_and_may_be_lazy() -> None:
    asked = []

    def counter() -> WordCounter:
        asked.append("counter")
        return WordCounter(limit=100)

    built = registry.build("chunker", "fixed", services={"counter": counter})
    assert asked == ["counter"]
    assert built.counter.limit == 100
    with pytest.raises(ConfigError, match="fixed needs the service 'counter'"):
        registry.build("chunker", "fixed", services={})


def test_every_plugin_has_a_summary_and_describable_parameters() -> None:
    for kind in registry.KINDS:
        assert registry.catalogue(kind), kind
        for name in registry.catalogue(kind):
            info = registry.describe(kind, name)
            assert len(info.summary) > 15, f"{kind} {name} has no docstring"
            assert "counter" not in [parameter.name for parameter in info.parameters]


def test_a_parser_of_somebody_else_is_chosen_by_its_suffix(monkeypatch: pytest.MonkeyPatch) -> None:
    from rag.parsers import _choose

    module = ModuleType("their_parsers")
    code = (
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from rag.protocols import Parser\n"
        "from rag.types import Document\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class ShoutParser(Parser):\n"
        "    suffixes: ClassVar = ('.shout',)\n"
        "    version: ClassVar = 1\n"
        "    def parse(self, data, *, source):\n"
        "        return Document(text=data.decode().upper(), source=source)\n"
    )
    monkeypatch.setitem(sys.modules, "their_parsers", module)
    exec(code, vars(module))  # noqa: S102  stands in for an installed package
    theirs = EntryPoint(name="shout", value="their_parsers:ShoutParser", group="rag.parser")
    real = registry._declared()

    def select(*, group: str) -> object:
        return [theirs] if group == "rag.parser" else real.select(group=group)

    monkeypatch.setattr(registry, "_declared", lambda: SimpleNamespace(select=select))
    registry.catalogue.cache_clear()
    _choose._suffixes.cache_clear()
    try:
        assert _choose.parser_for(".shout") == "shout"
        assert _choose.make_parser("shout").parse(b"hello", source="a.shout").text == "HELLO"
        assert not _choose.is_isolated("shout")
        assert ".shout" in _choose.supported_suffixes()
    finally:
        registry.catalogue.cache_clear()
        _choose._suffixes.cache_clear()
