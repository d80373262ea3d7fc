"""A small index with hostile text, and views of the app run on it without a browser."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rag import Index, Pipeline
from rag.config import PipelineConfig
from rag.embedders.hashing import HashingEmbedder

if TYPE_CHECKING:
    from rag.protocols import Vectors

__all__ = ["HOSTILE", "asked", "built", "embedded", "html_of", "view_of"]

HOSTILE = (
    "Approval <script>alert(1)</script> ![x](http://evil.example/p.png) of \u202etravel\u202c needs **two** people."
)

_TRAVEL = f"""# Travel

Travel above 5,000 EUR is approved by Tobias Renn. {HOSTILE} Trips are booked by the office.

## Hotels

Hotels cost at most 140 EUR a night. The office pays them within 30 days. Nobody books a hotel alone.

## Trains

Trains are preferred to planes below 600 km. First class is not paid. Tickets are kept for seven years.
"""
_PAY = """# Pay

Salaries are paid on the 25th of each month. Travel costs are paid with the salary, if Ms. Okafor approves the claim.
Claims above 500 EUR need a second approval of travel by the head of the department.
"""


def built(folder: Path, **slots: Any) -> Path:
    """The folder of an index of two documents that needs no model; `slots` of the config."""
    files = folder / "files"
    files.mkdir()
    (files / "travel.md").write_text(_TRAVEL, encoding="utf-8")
    (files / "pay.md").write_text(_PAY, encoding="utf-8")
    config = PipelineConfig.from_dict(
        {"embedder": "hashing", "retriever": "bm25", "selector": {"use": "bubble", "budget": 120}, **slots}
    )
    Pipeline(config).index([files], into=folder / "index").close()
    return folder / "index"


def asked(directory: Path, question: str = "Who approves travel?", **slots: Any) -> dict[str, Any]:
    """Asks, with `slots` of the config changed; the run as the index keeps it."""
    with Index.open(directory) as index:
        config = PipelineConfig.from_dict({**index.manifest()["config"], **slots})
        run_id = Pipeline(config).ask(question, index).run_id
        return index.store.run(run_id)


def _script(view: str, directory: str, run: str) -> None:  # its source runs alone, so it imports all it needs
    import json
    from importlib import import_module

    from app.desk import open_desk

    import_module(f"app.views.{view}").show(open_desk(directory, json.loads(run)))


def view_of(view: str, directory: Path, run: dict[str, Any] | None = None) -> Any:
    """The view on the newest run, or on `run`, as Streamlit's AppTest has it; nothing went wrong in it."""
    from streamlit.testing.v1 import AppTest

    page = AppTest.from_function(_script, args=(view, str(directory), json.dumps(run)), default_timeout=60).run()
    assert not page.exception, page.exception[0].message
    return page


def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that the hashing embedder reads from now on."""
    read: list[str] = []
    embed = HashingEmbedder.embed

    def counted(self: HashingEmbedder, texts: Sequence[str]) -> Vectors:
        read.extend(texts)
        return embed(self, texts)

    monkeypatch.setattr(HashingEmbedder, "embed", counted)
    return read


def html_of(page: Any) -> str:
    """Everything that the page draws as HTML."""
    return "\n".join(one.body for one in page.get("html"))
