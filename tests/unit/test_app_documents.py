"""The view Documents: upload, worker, quarantine, removal."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rag import Index
from rag.errors import UsageError
from tests.unit.test_app_ask import bodies, idx, script

testing = pytest.importorskip("streamlit.testing.v1", reason="streamlit is not installed (pip install 'chunkwise[ui]')")

__all__ = ["idx"]


def opened(where: Path) -> Any:
    app = testing.AppTest.from_function(script, args=("documents", str(where)), default_timeout=60).run()
    assert not app.exception
    return app


def finished(where: Path) -> Any:
    from app.uploads import job_of

    job = job_of(where)
    assert job is not None
    assert job.listening is not None
    job.listening.join(60)
    assert not job.running
    return job


def test_an_uploaded_file_is_ingested_by_a_worker_and_a_broken_one_is_quarantined(idx: Path) -> None:
    app = opened(idx)
    app.file_uploader(key="files").set_value([
        ("zebra.txt", b"The zebra protocol needs 42 stamps.", "text/plain"), ("bad.pdf", b"no pdf", "application/pdf"),
    ])  # fmt: skip
    app.button[0].click().run()
    assert not app.exception
    job = finished(idx)
    assert job.report["documents"] == 1
    assert not job.error
    app.run()
    page = bodies(app)
    assert "zebra.txt" in page[page.index('data-testid="uploaded"') :]
    assert "bad.pdf" in page[page.index('data-testid="quarantine"') :]
    assert app.subheader[0].value == "Quarantine: 1"

    app.button(key="retry").click().run()
    assert [one["source"] for one in finished(idx).report["failed"]] == ["bad.pdf"]
    app.run()
    app.button(key="forget").click().run()
    assert not app.exception
    assert 'data-testid="quarantine"' not in bodies(app)
    assert not (idx.parent / "idx-files" / "uploads" / "bad.pdf").exists()
    assert (idx.parent / "idx-files" / "uploads" / "zebra.txt").exists()


def test_removed_documents_are_gone_and_files_that_were_not_uploaded_stay(idx: Path) -> None:
    app = opened(idx)
    with Index.open(idx) as index:
        sources = [one.source for one in index.store.documents()]
    app.multiselect(key="remove").set_value([sources[0]]).run()
    app.button(key="remove-now").click().run()
    assert not app.exception
    with Index.open(idx) as index:
        assert [one.source for one in index.store.documents()] == sources[1:]
    assert len(list((idx.parent / "docs").iterdir())) == len(sources)
    assert app.subheader[0].value == f"In the index: {len(sources) - 1}"


def test_documents_are_found_by_name(idx: Path) -> None:
    app = opened(idx)
    app.text_input(key="find").set_value("HANDB").run()
    page = bodies(app)
    assert "handbook.md" in page
    assert "hostile.txt" not in page
    app.text_input(key="find").set_value("nowhere").run()
    assert "No document" in app.info[0].value


def test_a_file_over_the_limit_is_refused_politely() -> None:
    from app.views.documents import accepted

    large, small = (SimpleNamespace(name=name, size=size) for name, size in (("large.txt", 100 << 20), ("s.txt", 9)))
    kept, told = accepted([large, small])
    assert kept == [small]
    assert len(told) == 1
    assert "large.txt has 100 MB; at most 50 MB" in told[0]
    assert "rag ingest" in told[0]


@pytest.mark.parametrize(
    ("name", "kept"),
    [("../../etc/passwd", "passwd"), ("a\\b\\c.txt", "c.txt"), (".hidden", "hidden"),
     ("x\u202etxt.md", "x_u202etxt.md"),
     ("n" * 400 + ".md", "n" * 197 + ".md")],
)  # fmt: skip
def test_names_of_uploads_stay_in_their_folder(name: str, kept: str, tmp_path: Path) -> None:
    from app.uploads import keep, uploads_dir

    made = keep(tmp_path / "idx", name, b"x")
    assert made == uploads_dir(tmp_path / "idx") / kept
    assert made.read_bytes() == b"x"


@pytest.mark.parametrize("name", ["", "...", "/", "a/"])
def test_what_is_no_name_is_refused(name: str, tmp_path: Path) -> None:
    from app.uploads import keep

    with pytest.raises(UsageError, match="no name for a file"):
        keep(tmp_path / "idx", name, b"x")


def test_two_jobs_at_once_are_refused_and_a_dead_worker_says_why(idx: Path) -> None:
    from app.uploads import job_of, start

    start(idx, [idx.parent / "docs"])
    with pytest.raises(UsageError, match="already"):
        start(idx, [idx.parent / "docs"])
    assert finished(idx).report["failed"] == []
    start(idx, [idx.parent / "nowhere"])
    job = finished(idx)
    assert job.error or job.failures
    assert job_of(idx) is job
    assert job_of(idx.parent) is None
