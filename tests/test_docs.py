"""The documents tell the truth: their YAML is valid, their Python runs, their verbs exist."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from rag import PipelineConfig
from rag.embedders.hashing import HashingEmbedder
from rag.registry import build, catalogue
from rag.tokens import WordCounter
from rag.types import Document

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_yaml_of_the_readme_is_a_config() -> None:
    first, *others = blocks(README, "yaml")
    assert PipelineConfig.from_dict(yaml.safe_load(first)).generator == "extractive"
    for block in others:
        config = PipelineConfig.from_dict(yaml.safe_load(block))
        services = {"counter": WordCounter(limit=254), "embedder": HashingEmbedder()}
        assert build("chunker", config.chunker, services=services).chunk(Document(text="One. Two.", source="a"))


def test_every_verb_of_the_readme_exists() -> None:
    from typer.main import get_command

    from rag.cli.main import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"\brag ([a-z]+)\b", "\n".join(blocks(README, "sh"))))
    assert {"ingest", "search", "ask", "verify"} <= named <= known


def test_the_readme_lists_every_plugin_and_no_other() -> None:
    for kind in ("chunker", "embedder", "retriever", "selector", "compressor", "generator"):
        (row,) = re.findall(rf"^\| {kind} \| (.*) \|$", README, flags=re.MULTILINE)
        assert sorted(re.findall(r"`([a-z0-9-]+)`", row)) == list(catalogue(kind)), kind


def test_the_chunker_of_contributing_works() -> None:
    module = ModuleType("by_line")
    sys.modules["by_line"] = module  # dataclasses look their module up
    names = vars(module)
    (block,) = blocks(CONTRIBUTING, "python")
    exec(compile(block, "CONTRIBUTING.md", "exec"), names)  # noqa: S102  the document's own code is the test
    chunker = module.ByLineChunker(counter=WordCounter(), max_tokens=3)
    del sys.modules["by_line"]
    text = "one two\nthree four five six\nseven"
    chunks = chunker.chunk(Document(text=text, source="x"))
    assert "".join(chunk.text for chunk in chunks) == text
    assert max(chunk.token_count for chunk in chunks) <= 3


@pytest.mark.models
def test_the_five_lines_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("Travel above 5,000 EUR is approved by the chief financial officer.\n")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    (block,) = blocks(README, "python")
    exec(compile(block, "README.md", "exec"), names)  # noqa: S102  the document's own code is the test
    assert "chief financial officer" in names["answer"].text  # type: ignore[attr-defined]
