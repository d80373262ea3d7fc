"""Folders from elsewhere: odd names, links, circles, devices, and files that change while they are looked at."""

from __future__ import annotations

import os
import socket
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rag.errors import InputError
from rag.files import FileListing, FoundFile, find_files, read_file
from rag.limits import Limits
from rag.reading import read_document
from rag.text import printable

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX names, links and devices")


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """tmp/work/docs; the working directory is tmp/work."""
    root = tmp_path / "work" / "docs"
    root.mkdir(parents=True)
    monkeypatch.chdir(root.parent)
    return root


def sources(listing: FileListing) -> list[str]:
    return [file.source for file in listing.files]


def found(path: Path, **limits: int) -> FoundFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(b"words")
    (file,) = find_files([path], limits=Limits(**limits)).files
    return file


# -- names -----------------------------------------------------------------------------------------------------------

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
ODD = {
    "twins": [f"{NFC}.txt", f"{NFD}.txt"],
    "case": ["Readme.md", "README.md", "readme.MD"],
    "rtl": ["invoice\u202etxt.md"],
    "zero-width": ["a\u200b.md", "a.md", "a\ufeff.md"],
    "control": ["a\x1b[31mred\x1b[0m.md", "a\rb.md", "a\x07.md", "a\x9b2J.md"],
    "newline": ["a\nfailed  b.md: none.md"],
    "dash": ["-rf.md", "--index.md"],
    "spaces": [" .md", "  a  b  .md", "a.md "],
    "signs": ["#.md", "a#b.md", "%41.md", "%s%n.md", "a*.md", "a?.md", "[ab].md", "$HOME.md", "`id`.md", "a'b\".md"],
    "markup": ["[bold]a.md", "[link=file:etc]x.md"],
    "backslash": ["a\\b.md", "..\\..\\x.md"],
    "long": ["n" * 250 + ".md"],
    "dots": ["...md", "a..md", "..a.md"],
}


@posix
@pytest.mark.parametrize("kind", ODD)
def test_odd_names_are_themselves(docs: Path, kind: str) -> None:
    """Each file is its own source, in the bytes of its name, and found again under exactly that name."""
    for name in ODD[kind]:
        (docs / name).write_text(name, "utf-8")
    on_disk = {os.fsdecode(entry) for entry in os.listdir(docs)}
    wanted = {f"docs/{name}" for name in on_disk if not name.startswith(".") and not name.endswith(" ")}
    listing = find_files(["docs"])
    assert set(sources(listing)) == wanted
    assert listing.problems == ()
    for file in listing.files:
        assert read_file(file, Limits()).decode() == file.path.name
        assert sources(find_files([file.source])) == [file.source]
        assert printable(file.source).isprintable()


@posix
def test_names_that_begin_with_a_dash_or_a_wildcard_are_files_not_options(docs: Path) -> None:
    for name in ("*.md", "[a].md", "b.md"):
        (docs / name).write_text("words", "utf-8")
    assert sources(find_files(["docs/*.md"])) == ["docs/*.md"]  # there is a file of that very name
    assert sources(find_files(["docs/[a].md"])) == ["docs/[a].md"]
    assert sources(find_files(["docs/?.md"])) == ["docs/*.md", "docs/b.md"]


@posix
def test_deep_folders_and_long_paths(docs: Path) -> None:
    """Paths beyond what the system takes at once are named as a problem, and the rest is read."""
    here = os.getcwd()
    (docs / "a.md").write_text("words", "utf-8")
    os.chdir(docs)
    try:
        for _ in range(30):  # 30 x 200 bytes > PATH_MAX
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
        Path("deep.md").write_text("words", "utf-8")
    finally:
        os.chdir(here)
    listing = find_files(["docs"])
    assert "docs/a.md" in sources(listing)
    assert len(listing.problems) == 1
    assert "cannot be read: " in listing.problems[0][1]


@posix
@pytest.mark.parametrize(
    "typed", ["x" * 300 + ".md", "y/" * 3000 + "z.md", "a\0b.md", "loop.md", "one/x.md", "one", "\udcff.md", "\0*.md"]
)
@pytest.mark.parametrize("absolute", [False, True])
def test_no_typed_path_raises(docs: Path, typed: str, absolute: bool) -> None:
    Path("loop.md").symlink_to("loop.md")
    Path("one").symlink_to("two")
    Path("two").symlink_to("one")
    listing = find_files([docs.parent / typed if absolute else typed])
    assert listing.files == ()
    assert len(listing.problems) == 1
    with pytest.raises(InputError):
        read_document(typed)


# -- what is no file -------------------------------------------------------------------------------------------------


@posix
def test_sockets_fifos_and_devices_are_not_opened(docs: Path) -> None:
    os.mkfifo(docs / "pipe.md")
    (docs / "null.md").symlink_to("/dev/null")
    (docs / "folder.md").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("docs/socket.md")
        listing = find_files(["docs", "docs/null.md"])
    assert listing.files == ()
    errors = dict(listing.problems)
    assert errors["docs/pipe.md"] == errors["docs/socket.md"] == "no regular file"
    assert {error for source, error in listing.problems if source == "docs/null.md"} == {
        "a link that leads out of its folder; it is not followed",
        "no regular file",
    }


@posix
@pytest.mark.skipif(os.getuid() == 0 if hasattr(os, "getuid") else True, reason="root may read everything")
def test_unreadable_folder(docs: Path) -> None:
    (docs / "closed").mkdir(mode=0)
    (docs / "a.md").write_text("words", "utf-8")
    listing = find_files(["docs", "docs/closed/x.md"])
    (docs / "closed").chmod(0o700)
    assert sources(listing) == ["docs/a.md"]
    assert any("ermission denied" in error for _, error in listing.problems)


@posix
def test_links_that_climb_or_circle(docs: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.md").write_text("secret", "utf-8")
    inner = docs / "inner"
    inner.mkdir()
    (inner / "a.md").write_text("words", "utf-8")
    (inner / "up").symlink_to("..")
    (inner / "far.md").symlink_to("../../../secret.md")
    (inner / "hop.md").symlink_to("far.md")
    (inner / "self.md").symlink_to("self.md")
    (inner / "circle").symlink_to("circle")
    listing = find_files(["docs"])
    assert sources(listing) == ["docs/inner/a.md"]
    assert dict(listing.problems) == {
        "docs/inner/far.md": "a link that leads out of its folder; it is not followed",
        "docs/inner/hop.md": "a link that leads out of its folder; it is not followed",
        "docs/inner/self.md": "a link to nothing",
        "docs/inner/circle": "a link to nothing",
    }


# -- .ragignore of a folder from elsewhere ---------------------------------------------------------------------------


def test_an_ignore_file_cannot_stop_the_reader(docs: Path) -> None:
    """Nine stars in one name would keep the regular expression of the pattern busy for years."""
    (docs / ("a" * 200 + ".md")).write_text("words", "utf-8")
    (docs / "draft.md").write_text("words", "utf-8")
    lines = [f"{'*a' * 20}b", "**/a/**/a/**/a/b", "!", "draft*", "# * * * * *"]
    (docs / ".ragignore").write_text("\n".join(lines), "utf-8")
    listing = find_files(["docs"])
    assert sources(listing) == [f"docs/{'a' * 200}.md"]
    assert [error.partition(" is not used: ")[0] for _, error in listing.problems] == ["line 1", "line 2", "line 3"]


@posix
@pytest.mark.parametrize(
    "content", [b"a\n" * 1001, b"#" * 50_001, b"\xff\xfe\x00", None], ids=["lines", "bytes", "binary", "link"]
)
def test_an_ignore_file_that_is_none(docs: Path, tmp_path: Path, content: bytes | None) -> None:
    (docs / "a.md").write_text("words", "utf-8")
    if content is None:
        (tmp_path / "lines").write_text("*.md", "utf-8")
        (docs / ".ragignore").symlink_to(tmp_path / "lines")
    else:
        (docs / ".ragignore").write_bytes(content)
    listing = find_files(["docs"])
    assert sources(listing) == ["docs/a.md"]
    assert [source for source, _ in listing.problems] == ["docs/.ragignore"]


# -- between listing and reading -------------------------------------------------------------------------------------


def vanish(path: Path) -> None:
    path.unlink()


def become_a_link(path: Path) -> None:
    path.unlink()
    (path.parent.parent / "secret.md").write_bytes(b"secret")
    path.symlink_to("../secret.md")


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def grow(path: Path) -> None:
    path.write_bytes(b"x" * 1000)


def parent_becomes_a_link(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere"
    path.parent.rename(elsewhere)
    path.parent.symlink_to(elsewhere)


@posix
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (vanish, "No such file"),
        (become_a_link, "replaced by a link"),
        (become_a_folder, "no regular file any more"),
        (become_a_pipe, "no regular file any more"),
        (grow, r"1,000 bytes, over limits\.max_file_bytes = 100"),
        (parent_becomes_a_link, "replaced by a link"),
    ],
)
def test_a_file_that_changes_after_it_was_listed(docs: Path, change: Callable[[Path], None], why: str) -> None:
    limits = Limits(max_file_bytes=100)
    file = found(docs / "inner" / "a.md")
    assert read_file(file, limits) == b"words"
    before = _descriptors()
    change(file.path)
    with pytest.raises(InputError, match=rf"^a\.md: .*{why}"):
        read_file(file, limits)
    assert _descriptors() == before


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if sys.platform.startswith("linux") else 0


@posix
def test_never_more_than_the_limit_is_read(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that grows while it is read, and so has no honest size."""
    file = found(docs / "a.md")
    file.path.write_bytes(b"x" * 5_000_000)
    real = os.fstat

    def small(descriptor: int) -> object:
        facts = real(descriptor)
        return os.stat_result((*facts[:6], 5, *facts[7:10]))

    monkeypatch.setattr(os, "fstat", small)
    assert len(read_file(file, Limits(max_file_bytes=5_000_000))) == 5_000_000
    with pytest.raises(InputError, match="over limits"):
        read_file(file, Limits(max_file_bytes=4_999_999))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs files that claim to be empty")
def test_a_file_of_no_size_is_read_to_its_end() -> None:
    path = Path("/proc/self/status").resolve()
    file = FoundFile(path=path, source="status", parser="text", size_bytes=0, mtime_ns=0)
    assert read_file(file, Limits()).startswith(b"Name:")
    with pytest.raises(InputError, match="over limits"):
        read_file(file, Limits(max_file_bytes=10))


def test_reading_is_the_same_where_folders_cannot_be_opened(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = found(docs / "a.md")
    monkeypatch.setattr(os, "supports_dir_fd", frozenset())
    assert read_file(file, Limits()) == b"words"
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_file(replace(file, path=docs / "b.md"), Limits())


# -- what is printed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("naïve 日本語 \u3000", "naïve 日本語 \u3000"),
        ("\x1b[2Ja\r\n\t\x7f\x9b", "\\x1b[2Ja\\r\\n\\t\\x7f\\x9b"),
        ("a\u202eb\u2066c", "a\\u202eb\\u2066c"),
        ("\u200ba\ufeff\U000e0041\ud800", "\\u200ba\\ufeff\\U000e0041\\ud800"),
        ("a\u2028b", "a\\u2028b"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    shown.encode("utf-8")


def test_printable_lines_keep_what_joins_letters() -> None:
    family = "\U0001f468\u200d\U0001f469\n\tnext"
    assert printable(family, lines=True) == family
    assert printable("a\x1b]0;evil\x07\u202e\n", lines=True) == "a\\x1b]0;evil\\x07\\u202e\n"
