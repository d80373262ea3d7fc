"""Documents: what the index holds, what it refused and why, and the way for more to come in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from app.desk import Desk
from app.parts import command, copyable, empty, plain, table
from app.theme import MAX_UPLOAD_MB
from app.uploads import Job, forget, job_of, keep, start, uploads_dir
from rag.store.records import DocumentInfo, FileRecord
from rag.text import printable

LISTED = 100
POLL_SECONDS = 0.7


def show(desk: Desk) -> None:
    """Upload, worker, quarantine, list."""
    job = job_of(desk.directory)
    _upload(desk, busy=job is not None and job.running)
    if job is not None:
        if job.running:
            _watch(desk.directory)
        else:
            _finished(job)
    _quarantine(desk, desk.index.store.failed_files(), busy=job is not None and job.running)
    _listing(desk, documents_of(str(desk.directory), desk.generation, desk))
    copyable(
        command("rag", "ingest", "FOLDER", "--index", desk.directory)
        + "\n"
        + command("rag", "verify", "--index", desk.directory),
        desk.pipeline.describe(),
    )


@st.cache_resource(max_entries=2, show_spinner=False)
def documents_of(directory: str, generation: int, _desk: Desk) -> list[DocumentInfo]:
    """The list of one generation, read once."""
    return _desk.index.store.documents()


def _upload(desk: Desk, *, busy: bool) -> None:
    with st.form("upload", clear_on_submit=True):
        files = st.file_uploader(
            "Add documents", accept_multiple_files=True, max_upload_size=MAX_UPLOAD_MB, key="files",
            help="PDF, HTML, Word, PowerPoint, Excel, Markdown, text, CSV, JSON and source code.",
        )  # fmt: skip
        st.caption(
            f"At most {MAX_UPLOAD_MB} MB a file. Larger ones: put them into a folder and run `rag ingest` on it."
        )
        sent = st.form_submit_button("Add to the index", type="primary", disabled=busy, icon=":material/upload:")
    if not sent:
        return
    if not files:
        st.info("Choose a file first.")
        return
    sound, refused = accepted(files)
    for told in refused:
        st.error(plain(told))
    kept = [keep(desk.directory, file.name, file.getvalue()) for file in sound]
    if kept:
        start(desk.directory, kept)
        st.rerun()


def accepted(files: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Files that are not too large, and a word on each of the others; the browser refuses most of those before."""
    most = MAX_UPLOAD_MB * 1024 * 1024
    refused = [
        f"{file.name} has {file.size / 1024 / 1024:,.0f} MB; at most {MAX_UPLOAD_MB} MB can be uploaded. Put it into a "
        "folder and run rag ingest on that."
        for file in files
        if file.size > most
    ]
    return [file for file in files if file.size <= most], refused


@st.fragment(run_every=POLL_SECONDS)
def _watch(directory: Path) -> None:
    """Looks at the worker now and then, without running the rest of the page."""
    job = job_of(directory)
    if job is None or not job.running:
        st.rerun()
        return
    told = job.progress
    done, total = told.get("done", 0), told.get("total", len(job.paths))
    state = f"{done} of {total} files"
    if told.get("eta_seconds") is not None:
        state += f", {told['eta_seconds']:.0f} s left"
    if told.get("source"):
        state += f", {plain(told['source'])}"
    st.progress(min(1.0, done / max(1, total)), text=f"Ingesting: {state}")
    table(["file", "state"], [(Path(path).name, "done" if at < done else "waiting") for at, path in _first(job)])


def _first(job: Job, most: int = 12) -> list[tuple[int, str]]:
    return list(enumerate(sorted(job.paths)))[:most]


def _finished(job: Job) -> None:
    """What became of the last files, each with its reason where it was refused."""
    if job.error:
        st.error("Ingesting ended early: " + plain(job.error))
        return
    report, failures = job.report or {}, job.failures
    unknown = report.get("ignored", 0)
    rows = []
    for path in sorted(job.paths):
        why = next((error for source, error in failures.items() if Path(source).name == Path(path).name), "")
        rows.append((Path(path).name, "refused" if why else "in", why))
    told = f"{report.get('documents', 0)} added, {report.get('skipped', 0)} unchanged, {len(failures)} refused"
    if unknown:
        told += f", {unknown} of unknown type"
    (st.warning if failures or unknown else st.success)(f"{told}, in {report.get('seconds', 0):.1f} s.")
    table(["file", "state", "reason"], rows[:LISTED], test_id="uploaded")


def _quarantine(desk: Desk, failed: list[FileRecord], *, busy: bool) -> None:
    if not failed:
        return
    st.subheader(f"Quarantine: {len(failed)}")
    st.caption("These files could not be read. The last good version of a file, where there was one, stays searchable.")
    rows = [(one.source, "an older version" if one.doc_id else "nothing", one.error or "") for one in failed]
    table(["file", "in the index", "reason"], rows[:LISTED], test_id="quarantine")
    with st.container(horizontal=True):
        if st.button("Try again", disabled=busy, icon=":material/refresh:", key="retry"):
            start(desk.directory, [one.origin for one in failed])
            st.rerun()
        if st.button("Forget them", disabled=busy, icon=":material/delete:", key="forget"):
            forget(desk.directory, [one.origin for one in failed])
            st.rerun()


def _listing(desk: Desk, documents: list[DocumentInfo]) -> None:
    st.subheader(f"In the index: {len(documents)}")
    if not documents:
        empty("No documents yet", "Add some above, or run `rag ingest` on a folder.")
        return
    wanted = st.text_input("Find by name", key="find", placeholder="part of a name or title").strip().lower()
    found = [one for one in documents if wanted in f"{one.source} {one.title}".lower()]
    if not found:
        st.info("No document has that in its name or title.")
        return
    rows = [(one.source, one.title if one.title != one.source else "", one.chunks, one.chars) for one in found[:LISTED]]
    table(["document", "title", "chunks", "characters"], rows, test_id="documents")
    if len(found) > LISTED:
        st.caption(f"The first {LISTED} of {len(found)}; narrow them down by name.")
    with st.expander("Remove documents", icon=":material/delete:"):
        names = {one.source: one for one in found}
        chosen = st.multiselect("Which ones", list(names), key="remove", format_func=printable)
        st.caption(
            f"Uploaded files are deleted from {plain(str(uploads_dir(desk.directory)))}. Other files "
            "stay where they are: the next `rag ingest` on their folder brings them back."
        )
        if st.button("Remove from the index", disabled=not chosen, key="remove-now"):
            forget(desk.directory, [origin for name in chosen if name in names for origin in names[name].origins])
            st.rerun()
