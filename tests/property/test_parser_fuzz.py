"""Any bytes for any parser: a document with exact spans, or an InputError; never anything else, and twice the same.

Every parser of the catalogue is here, so also one that another package brings. What the files are made from is a
small valid file of the format (`SAMPLES` of the parser contract); without one, arbitrary bytes are all there is.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from io import BytesIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rag.errors import InputError
from rag.limits import Limits
from rag.parsers._sandbox import ParserPool
from rag.registry import catalogue, load
from rag.types import Document
from tests.contracts.test_parser import SAMPLES, check_laws

NAMES = list(catalogue("parser"))
MANY = int(os.environ.get("CHUNKWISE_FUZZ_EXAMPLES", "150"))
LIMITS = Limits(max_seconds=20, max_address_bytes=1_000_000_000, max_file_bytes=5_000_000, max_characters=5_000_000)

QUICK = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
LONG = settings(max_examples=MANY, deadline=None, suppress_health_check=list(HealthCheck))

Edit = Callable[[bytes], bytes]
Outcome = Document | str


@cache
def base(name: str) -> bytes:
    """The valid file that mutants of this format are made from."""
    return SAMPLES[name]() if name in SAMPLES else b"words"


@cache
def parts(name: str) -> dict[str, bytes]:
    """The parts of an Office file, {} for any other."""
    if not zipfile.is_zipfile(BytesIO(base(name))):
        return {}
    with zipfile.ZipFile(BytesIO(base(name))) as archive:
        return {part: archive.read(part) for part in archive.namelist()}


# -- what can happen to bytes ----------------------------------------------------------------------------------------

_PLACE = st.floats(0, 1, allow_nan=False)
_TOKENS = st.sampled_from(
    [b"\0", b"\xff", b"\xff\xfe", b"\xed\xa0\x80", b"\r", b"\n---\n", b'"', b"<", b">", b"<!--", b"]]>", b"&#0;",
     b"&a;", b"{", b"[", b"}", b"|", b"-1", b"999999999999", b"1e999", b"NaN", b"endobj", b"stream", b"0 R", b"/Kids",
     b"<<", b"(", b"\\", b"%PDF-1.7", b"PK\x05\x06", b"<!DOCTYPE a>", b"\xe2\x80\xae", b"\xe2\x80\x8b", b"\xef\xbb\xbf"]
)  # fmt: skip


def _flip(data: bytes, place: float, mask: int) -> bytes:
    at = int(place * max(0, len(data) - 1))
    return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :] if data else data


def _cut(data: bytes, place: float, length: int) -> bytes:
    at = int(place * len(data))
    return data[:at] + data[at + length :]


def _end(data: bytes, place: float) -> bytes:
    return data[: int(place * len(data))]


def _put(data: bytes, place: float, piece: bytes) -> bytes:
    at = int(place * len(data))
    return data[:at] + piece + data[at:]


def _repeat(data: bytes, place: float, length: int, times: int) -> bytes:
    at = int(place * len(data))
    return data[:at] + data[at : at + length] * times + data[at + length :]


def _splice(data: bytes, place: float, other: str, there: float, length: int) -> bytes:
    at, piece = int(place * len(data)), base(other)
    return data[:at] + piece[int(there * len(piece)) :][:length] + data[at + length :]


def _edit(make: Callable[..., bytes], *arguments: st.SearchStrategy[object]) -> st.SearchStrategy[Edit]:
    return st.tuples(*arguments).map(lambda drawn: lambda data: make(data, *drawn))


EDITS = st.one_of(
    _edit(_flip, _PLACE, st.integers(1, 255)),
    _edit(_cut, _PLACE, st.integers(1, 400)),
    _edit(_end, _PLACE),
    _edit(_put, _PLACE, st.one_of(_TOKENS, st.binary(max_size=20))),
    _edit(_repeat, _PLACE, st.integers(1, 60), st.sampled_from([2, 3, 50, 2000])),
    _edit(_splice, _PLACE, st.sampled_from(sorted(SAMPLES)), _PLACE, st.integers(1, 500)),
)


@st.composite
def mutants(draw: st.DrawFn, name: str) -> bytes:
    """The valid file after a few accidents; an Office file may have them inside of its parts, where packing hides
    nothing from the reader.
    """
    edits = draw(st.lists(EDITS, min_size=1, max_size=5))
    inner = parts(name)
    if not inner or draw(st.booleans()):
        data = base(name)
        for edit in edits:
            data = edit(data)
        return data
    changed = dict(inner)
    for edit in edits:
        part = draw(st.sampled_from(sorted(inner)))
        changed[part] = edit(changed[part])
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for part, content in changed.items():
            archive.writestr(part, content)
    return out.getvalue()


# -- the law ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool() -> Iterator[ParserPool]:
    with ParserPool(LIMITS) as pool:
        yield pool


def outcome(pool: ParserPool, name: str, data: bytes) -> Outcome:
    try:
        return pool.parse(name, data, f"docs/a{load('parser', name).suffixes[0]}")
    except InputError as error:
        return str(error)


def check(pool: ParserPool, name: str, data: bytes) -> None:
    first = outcome(pool, name, data)
    if isinstance(first, Document):
        check_laws(first, loose_rows=name == "json")
    else:
        assert first.startswith("docs/a.")
        assert "parser failed" not in first  # an exception that the parser let through
        assert "max_seconds" not in first  # nothing this small may take that long
    assert outcome(pool, name, data) == first


@pytest.mark.parametrize("name", NAMES)
@QUICK
@given(data=st.binary(min_size=1, max_size=400))
def test_arbitrary_bytes(name: str, pool: ParserPool, data: bytes) -> None:
    check(pool, name, data)


@pytest.mark.parametrize("name", NAMES)
@QUICK
@given(drawn=st.data())
def test_mutants(name: str, pool: ParserPool, drawn: st.DataObject) -> None:
    check(pool, name, drawn.draw(mutants(name)))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@LONG
@given(data=st.binary(min_size=1, max_size=3000))
def test_many_arbitrary_bytes(name: str, pool: ParserPool, data: bytes) -> None:
    check(pool, name, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@LONG
@given(drawn=st.data())
def test_many_mutants(name: str, pool: ParserPool, drawn: st.DataObject) -> None:
    check(pool, name, drawn.draw(mutants(name)))
