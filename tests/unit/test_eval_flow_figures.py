"""The figures of flows: evidence in a context, and one question counted."""

from __future__ import annotations

from pathlib import Path

from eval.flow_figures import Asked, figures_of, holds_all, row
from rag.builder import PipelineBuilder
from rag.flow import Flow

TEXT = "The lighthouse ship was built by Ingrid Solvang. It lies in Bergen."


def test_a_question_is_answered_from_its_evidence_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "ship.txt").write_text(TEXT)
    line = PipelineBuilder().embedder("hashing").retriever("bm25").selector("top-k", budget=60).build()
    with line.index(tmp_path / "ship.txt", tmp_path / "index") as index:
        [chunk] = index.corpus.chunks(index.corpus.rows().tolist())
        good = Asked(text="Who built the lighthouse ship?", evidence=((chunk.doc_id, 0, 48),))
        none = Asked(text="Which marmots eat quixotic zeppelins?", evidence=())
        flow = Flow.load("naive")
        found = [figures_of(flow, line, index, one) for one in (good, none)]
        bubble = line.ask(good.text, index).bubble
    assert [(one.answered, one.evidence, one.searches) for one in found] == [(True, True, 1), (False, False, 1)]
    assert found[0].tokens > 0
    assert row("naive", found).startswith("| naive | 100 % | 100 % | 100 % | 1.0 |")
    assert holds_all(bubble, [(chunk.doc_id, 0, 10), (chunk.doc_id, 40, 60)])
    assert not holds_all(bubble, [(chunk.doc_id, 0, 500)])
    assert not holds_all(bubble, [("other", 0, 10)])
    assert not holds_all(None, [(chunk.doc_id, 0, 10)])
