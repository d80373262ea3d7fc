"""The view Chunk lens: cuts of any chunker, embedded once for each sentence, and drawn without a gap."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest

from rag import Index
from rag.text import printable
from rag.types import Chunk, Document
from tests.app_views import asked, built, embedded, html_of, view_of

pytest.importorskip("streamlit", reason="the app needs streamlit (pip install 'chunkwise[ui]')")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("lens"))


@pytest.fixture
def page(index: Path) -> Any:
    made = view_of("chunk_lens", index)
    travel = next(one for one in made.selectbox(key="lens_doc").options if "travel" in one)
    return made.selectbox(key="lens_doc").select(travel).run()


def _picked(page: Any, chunker: str) -> Any:
    page = page.selectbox(key="lens_chunker").select(chunker).run()
    assert not page.exception, page.exception[0].message
    assert not page.error, page.error[0].value
    return page


def _lens_text(page: Any) -> str:
    found = re.search(r'data-testid="lens-text">(.*?)</div>', html_of(page), flags=re.DOTALL)
    assert found
    return found[1]


def _starts(page: Any) -> list[int]:
    return [int(start) for start in page.dataframe[-1].value["start"]]


def test_the_whole_document_is_shown_as_text_with_a_line_where_each_chunk_starts(page: Any, index: Path) -> None:
    with Index.open(index) as opened:
        travel = next(one.id for one in opened.store.documents() if "travel" in one.source)
        text, chunks = opened.document(travel).text, opened.store.chunks_of(travel)
    shown = _lens_text(page)
    assert html.unescape(re.sub(r"<[^>]+>", "", shown)) == printable(text, lines=True)
    assert "<script>" not in shown
    assert "<img" not in shown
    assert "\u202e" not in shown
    assert len(re.findall(r'<mark class="[^"]*cw-edge', shown)) == len(chunks)
    assert page.metric[0].value == str(len(chunks))


def test_another_chunker_moves_the_boundaries_and_both_are_drawn(page: Any) -> None:
    before = _starts(page)
    page = _picked(page, "sentence").slider(key="lens_max_tokens_sentence").set_value(30).run()
    assert _starts(page) != before
    assert not page.exception
    drawn = html_of(page)
    assert "now: sentence" in drawn
    assert "before: " in drawn
    assert "in the index: recursive" in drawn
    assert "--chunker sentence --set max_tokens=30 --explain" in page.code[0].value
    assert "max_tokens: 30" in page.code[1].value


def test_a_new_size_embeds_nothing_again(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read = embedded(monkeypatch)
    page = _picked(page, "cluster-semantic")
    assert len(read) == len(set(read)) > 5
    count, starts = len(read), _starts(page)
    slider = "lens_max_tokens_cluster-semantic"
    page = page.slider(key=slider).set_value(60).run()
    page = page.slider(key=slider).set_value(80).run()
    assert _starts(page) != starts
    assert len(read) == count, "a sentence was embedded again"
    assert page.metric[3].value == str(count)


def test_the_chooser_measures_the_picked_chunker_too_and_says_why(page: Any) -> None:
    page = _picked(page, "sentence")
    table = 'cw-table-box" data-testid="lens-chooser"'
    assert table not in html_of(page)
    page = page.toggle(key="lens_measure").set_value(True).run()
    drawn = html_of(page)
    assert not page.exception
    assert table in drawn
    for name in ("sentence", "recursive", "markdown"):
        assert re.search(rf"<td[^>]*>(★ )?{name}</td>", drawn), name
    assert drawn.count("★ ") == 1


def test_boundary_scores_are_drawn_where_the_chunker_gives_them(page: Any) -> None:
    assert "lens-curve" not in html_of(page)
    page = _picked(page, "intent-driven").slider(key="lens_target_chars_intent-driven").set_value(100).run()
    drawn = html_of(page)
    assert 'data-testid="lens-curve"' in drawn
    assert not page.exception
    assert drawn[drawn.index("lens-curve") :].count('class="cw-row"') == len(_starts(page)) - 1


def test_scores_are_read_from_both_kinds_of_records() -> None:
    from app.views.chunk_lens import boundary_scores

    margins = {"chunks": {"start": [0, 40, 90], "margin": [None, 0.5, -0.1]}}
    assert boundary_scores(margins) == [(40, 0.5, True), (90, -0.1, True)]
    places = {"places": [{"at": 40, "cut": False, "loss": 2.5, "minimum": True}, {"at": 60, "cut": True, "loss": 1.0}]}
    assert boundary_scores(places) == [(40, 2.5, False), (60, 1.0, True)]
    assert boundary_scores({"chunker": "recursive", "reason": "named by the config"}) == []


def test_what_two_chunks_share_has_both_tints(page: Any) -> None:
    from app.parts import marked_text
    from app.views.chunk_lens import chunk_marks
    from rag.protocols import Chunker
    from rag.registry import build
    from rag.tokens import WordCounter

    document = Document(text="one two three four five six seven eight nine ten", source="ten.txt")
    spec = {"use": "fixed", "max_tokens": 4, "overlap_tokens": 2}
    chunker: Chunker = build("chunker", spec, services={"counter": WordCounter()})
    drawn = marked_text(document.text, chunk_marks(chunker.chunk(document)))
    assert re.search(r'class="cw-a cw-b[^"]*"|class="cw-b cw-edge cw-a"|class="cw-a cw-b cw-edge"', drawn)
    assert "chunk 1 · 4 tokens" in drawn


def test_pasted_text_is_cut_and_nothing_pasted_says_what_to_do(page: Any) -> None:
    page = page.selectbox(key="lens_doc").select("Pasted text").run()
    assert "paste a text" in " ".join(one.value for one in page.markdown)
    page = page.text_area(key="lens_text").set_value("# One\n\nFirst part.\n\n# Two\n\n<b>Second</b> part.\n").run()
    page = _picked(page, "markdown")
    assert "&lt;b&gt;Second" in _lens_text(page)
    assert page.metric[0].value == "1"
    assert "· One" in _lens_text(page), "the headings of pasted Markdown are read"
    assert "pasted.md" in page.code[0].value


def test_a_chunker_that_cannot_work_here_says_why(page: Any) -> None:
    page = page.selectbox(key="lens_chunker").select("llm-regex").run()
    assert not page.exception
    assert page.error[0].value.startswith("llm")
    assert page.code


def test_a_rerun_cuts_nothing_again(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from chunkers.sentence import SentenceChunker

    cut: list[str] = []
    chunk = SentenceChunker.chunk

    def counted(self: SentenceChunker, document: Document) -> list[Chunk]:
        cut.append(document.id)
        return chunk(self, document)

    monkeypatch.setattr(SentenceChunker, "chunk", counted)
    page = _picked(page, "sentence").slider(key="lens_max_tokens_sentence").set_value(44).run()
    assert cut
    cut.clear()
    page = _picked(page, "recursive")
    page = _picked(page, "sentence").slider(key="lens_max_tokens_sentence").set_value(44).run()
    assert not cut
    assert not page.exception


def test_it_works_before_any_question_and_after_one(index: Path) -> None:
    assert not view_of("chunk_lens", index, asked(index)).exception
