"""Paths as typed become files with names that do not depend on where their folder lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rag.files import FileListing, find_files
from rag.limits import Limits


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """tmp/work/docs with a few files; the working directory is tmp/work."""
    root = tmp_path / "work" / "docs"
    for name in (
        "a.md",
        "b.TXT",
        "sub/c.md",
        "sub/deep/d.pdf",
        ".hidden/e.md",
        ".f.md",
        "sub/x.bin",
        "y",
        "build/z.md",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("words", "utf-8")
    monkeypatch.chdir(root.parent)
    return root


def sources(listing: FileListing) -> list[str]:
    return [file.source for file in listing.files]


ALL = ["docs/a.md", "docs/b.TXT", "docs/build/z.md", "docs/sub/c.md", "docs/sub/deep/d.pdf"]


def test_folder(docs: Path) -> None:
    listing = find_files(["docs"])
    assert sources(listing) == ALL
    assert listing.problems == ()
    assert (listing.ignored, listing.ignored_suffixes) == (2, ("", ".bin"))
    first = listing.files[0]
    assert first.path == (docs / "a.md").resolve()
    assert (first.size_bytes, first.mtime_ns) == (5, first.path.stat().st_mtime_ns)


@pytest.mark.parametrize("typed", ["docs", "./docs/", "docs/../docs", "ABSOLUTE"])
def test_names_do_not_depend_on_the_way_there(docs: Path, typed: str) -> None:
    assert sources(find_files([str(docs) if typed == "ABSOLUTE" else typed])) == ALL


def test_names_below_the_working_directory(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sources(find_files(["."])) == ALL
    assert sources(find_files(["docs/sub"])) == ["docs/sub/c.md", "docs/sub/deep/d.pdf"]
    monkeypatch.chdir(docs / "sub")
    assert sources(find_files(["../a.md"])) == ["a.md"]
    assert sources(find_files([docs / "a.md"])) == ["a.md"]
    assert sources(find_files([".."])) == ALL
    assert sources(find_files(["c.md", "./c.md", docs / "sub"])) == ["c.md", "sub/deep/d.pdf"]  # once, first name wins


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("docs/*.md", ["docs/a.md"]),
        ("docs/**/*.md", ["docs/a.md", "docs/build/z.md", "docs/sub/c.md"]),
        ("**/d.*", ["docs/sub/deep/d.pdf"]),
        ("docs/s*", ["docs/sub/c.md", "docs/sub/deep/d.pdf"]),
        ("docs/[ab].*", ["docs/a.md", "docs/b.TXT"]),
    ],
)
def test_patterns(docs: Path, pattern: str, found: list[str]) -> None:
    assert sources(find_files([pattern])) == found
    assert sources(find_files([docs.parent / pattern])) == [
        source if pattern.startswith("docs") else f"work/{source}" for source in found
    ]


def test_a_name_with_wildcards_is_itself_first(docs: Path) -> None:
    (docs / "x[1].md").write_text("words", "utf-8")
    assert sources(find_files(["docs/x[1].md"])) == ["docs/x[1].md"]


def test_include_exclude_and_ignore_file(docs: Path) -> None:
    assert sources(find_files(["docs"], include=["*.md"], exclude=["build/"])) == ["docs/a.md", "docs/sub/c.md"]
    (docs / ".ragignore").write_text("# drafts\nsub/*\n!sub/c.md\n", "utf-8")
    assert sources(find_files(["docs"])) == ["docs/a.md", "docs/b.TXT", "docs/build/z.md", "docs/sub/c.md"]
    assert sources(find_files(["docs/a.md"], exclude=["*.md"])) == []


def test_hidden(docs: Path) -> None:
    assert {"docs/.f.md", "docs/.hidden/e.md"} <= set(sources(find_files(["docs"], hidden=True)))
    assert sources(find_files(["docs/.f.md"])) == ["docs/.f.md"]  # named outright


def test_problems_are_listed_not_raised(docs: Path) -> None:
    listing = find_files(["docs/a.md", "nowhere", "docs/*.xyz", "docs/y", "docs/sub/x.bin"])
    assert sources(listing) == ["docs/a.md"]
    problems = dict(listing.problems)
    assert problems["nowhere"] == "no such file or folder"
    assert "no file matches" in problems["docs/*.xyz"]
    assert "files without a suffix" in problems["docs/y"]
    assert ".pdf" in problems["docs/sub/x.bin"]


def test_links(docs: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key.md").write_text("secret", "utf-8")
    (docs / "out.md").symlink_to(secret / "key.md")
    (docs / "outdir").symlink_to(secret)
    (docs / "gone.md").symlink_to(docs / "nothing.md")
    (docs / "same.md").symlink_to(docs / "a.md")
    (docs / "loop").symlink_to(docs)
    for paths in (["docs"], ["docs/**"]):
        listing = find_files(paths)
        assert sources(listing) == ALL
        problems = dict(listing.problems)
        assert set(problems) == {"docs/out.md", "docs/outdir", "docs/gone.md"}
        assert "leads out" in problems["docs/out.md"]
    assert sources(find_files(["docs/out.md"])) == ["docs/out.md"]  # the user's own word


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX only")
def test_no_device_is_opened(docs: Path) -> None:
    os.mkfifo(docs / "pipe.md")
    assert dict(find_files(["docs"]).problems) == {"docs/pipe.md": "no regular file"}
    assert dict(find_files(["docs/pipe.md"]).problems) == {"docs/pipe.md": "no regular file"}


def test_name_that_is_not_utf8(docs: Path) -> None:
    try:
        (Path(os.fsdecode(os.fsencode(docs) + b"/caf\xe9.md"))).write_text("words", "utf-8")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    listing = find_files(["docs"])
    assert sources(listing) == ALL
    ((source, error),) = listing.problems
    assert source == "docs/caf\\udce9.md"
    assert "UTF-8" in error


def test_unreadable(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("a.md"))
    real = os.scandir

    def scandir(path: object) -> object:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", scandir)
    listing = find_files(["docs"])
    assert sources(listing) == ["docs/b.TXT", "docs/build/z.md"]
    assert dict(listing.problems) == {
        "docs/a.md": "cannot be read: permission denied",
        "docs/sub": "cannot be read: Permission denied",
    }


def test_two_folders_of_one_name(docs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "docs"
    other.mkdir(parents=True)
    (other / "a.md").write_text("else", "utf-8")
    listing = find_files([docs, other])
    assert sources(listing) == ALL
    assert [source for source, _ in listing.problems] == ["docs/a.md"]
    assert listing == find_files([other, docs])


def test_too_large(docs: Path) -> None:
    assert sources(find_files(["docs/a.md"], limits=Limits(max_file_bytes=5))) == ["docs/a.md"]
    listing = find_files(["docs/a.md"], limits=Limits(max_file_bytes=4))
    assert listing.files == ()
    assert "5 bytes, over limits.max_file_bytes = 4" in listing.problems[0][1]
