from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rag import Pipeline, PipelineConfig
from rag.duplicates import shingles, sign, similarity
from rag.errors import MissingError
from rag.store import Entry, Store, verify
from rag.store.database import Database
from rag.store.repair import repair
from rag.store.signatures import bands
from rag.twins import Twins
from tests.crash.entries import make_entry

pytest.importorskip("datasketch", minversion="2.0")


def words(count: int, seed: int) -> list[str]:
    chosen = random.Random(seed)
    return [f"w{chosen.randrange(4000)}" for _ in range(count)]


def changed(before: list[str], rate: float, seed: int) -> list[str]:
    chosen = random.Random(seed)
    return [f"new{chosen.randrange(10**9)}" if chosen.random() < rate else word for word in before]


def exact(one: str, other: str) -> float:
    left, right = set(shingles(one).tolist()), set(shingles(other).tolist())
    return len(left & right) / len(left | right)


@pytest.mark.parametrize("count", [60, 300, 600, 3000, 20_000])
def test_the_estimate_follows_the_exact_jaccard_similarity(count: int) -> None:
    errors = []
    for seed in range(12):
        before = words(count, seed)
        one, other = " ".join(before), " ".join(changed(before, 0.005 * (seed % 6), seed + 100))
        errors.append(similarity(sign(one), sign(other)) - exact(one, other))
    assert abs(float(np.mean(errors))) < 0.03
    assert max(abs(error) for error in errors) < 0.15


def test_shingles_are_five_words_whatever_their_case_and_spacing() -> None:
    assert len(set(shingles(" ".join(words(2000, 1))).tolist())) == 1996
    assert shingles("The pump\n is CHECKED twice").tolist() == shingles("the PUMP is checked  twice").tolist()
    assert shingles("a b c d e").tolist() != shingles("b a c d e").tolist()


def test_a_signature_is_bounded_and_repeats() -> None:
    assert len(sign("too short a text")) == 8
    assert len(sign(" ".join(words(100, 1)))) == len(sign(" ".join(words(50_000, 1)))) == 520
    assert sign("one two three four five six") == sign("one two three four five six")


def test_the_bytes_of_a_signature_are_those_that_indexes_hold() -> None:
    """Other hashes, or other permutations in a later datasketch, would make old signatures meaningless in silence."""
    assert sign("one two three four five six")[8:24].hex() == "b0e01e3b11812958b5a4905cd2a7bf46"


def test_equal_texts_are_equal_however_short() -> None:
    assert similarity(sign("hello"), sign("hello")) == 1.0
    assert similarity(sign("hello"), sign("hallo")) == 0.0
    assert similarity(sign("hello"), sign("hello hello hello hello hello")) == 0.0


def test_text_without_spaces_is_compared_by_characters() -> None:
    text = "".join(chr(0x4E00 + number * 37 % 5000) for number in range(800))
    other = text[:400] + "好" + text[401:]
    assert similarity(sign(text), sign(other)) > 0.9
    assert similarity(sign(text), sign(text[::-1])) < 0.2


def signed(number: int, signature: bytes) -> Entry:
    """A small document with any signature: the store does not care what was signed."""
    return replace(make_entry(f"Text {number}.", f"{number}.md", fingerprint=None), signature=signature)


class TestLookup:
    @staticmethod
    def put(store: Store, signatures: list[bytes]) -> list[str]:
        entries = [signed(number, signature) for number, signature in enumerate(signatures)]
        store.commit(entries=entries)
        return [entry.document.id for entry in entries]

    def test_what_is_alike_is_found_and_little_else(self, tmp_path: Path) -> None:
        originals = [words(200, seed) for seed in range(120)]
        with Store.create_or_open(tmp_path) as store:
            ids = self.put(store, [sign(" ".join(original)) for original in originals])
            for number in range(0, 120, 10):
                probe = sign(" ".join([*originals[number], "and", "one", "more"]))
                for threshold in (0.5, 0.85):
                    assert [name for name, _ in store.find_alike(probe, threshold)] == [ids[number]]
            assert store.find_alike(sign(" ".join(words(200, 9999))), 0.5) == []

    @pytest.mark.parametrize(("threshold", "least"), [(0.5, 0.75), (0.7, 0.97), (0.9, 1.0)])
    def test_few_are_missed_at_the_threshold_itself(self, tmp_path: Path, threshold: float, least: float) -> None:
        drawn = np.random.default_rng(1)
        minima = drawn.integers(0, 2**32, (150, 128), dtype=np.uint32)
        with Store.create_or_open(tmp_path) as store:
            ids = self.put(store, [bytes(8) + row.tobytes() for row in minima])
            found = 0
            for name, row in zip(ids, minima, strict=True):
                alike = np.where(drawn.permutation(128) < round(128 * threshold), row, row + np.uint32(1))
                signature = drawn.bytes(8) + alike.tobytes()
                found += name in dict(store.find_alike(signature, threshold))
            assert found / len(ids) >= least

    def test_equal_documents_do_not_make_it_quadratic(self, tmp_path: Path) -> None:
        with Store.create_or_open(tmp_path) as store:
            ids = self.put(store, [sign(" ".join(words(100, 1)))] * 200)
            found = store.find_alike(sign(" ".join(words(100, 1))), 0.9)
            assert [name for name, _ in found] == ids[:64]

    def test_a_document_that_goes_takes_its_bands_along(self, tmp_path: Path) -> None:
        with Store.create_or_open(tmp_path) as store:
            first, second = (signed(1, sign(" ".join(words(100, seed)))) for seed in (1, 2))
            store.commit(entries=[first])
            store.commit(entries=[second])  # the same document signed anew
            assert first.signature
            assert second.signature
            assert store.find_alike(first.signature, 0.5) == []
            assert store.find_alike(second.signature, 0.5) == [(second.document.id, second.signature)]
            store.commit(removed=[second.file.origin])
            assert store.find_alike(second.signature, 0.5) == []
            assert store.signature(second.document.id) is None

    def test_the_running_batch_counts_and_the_oldest_of_equals_wins(self, tmp_path: Path) -> None:
        signature = sign(" ".join(words(100, 1)))
        with Store.create_or_open(tmp_path) as store:
            twins = Twins(store, 0.9)
            assert twins.find("1" * 16, "one.txt", signature) is None
            twins.add("1" * 16, "one.txt", signature)
            twins.add("2" * 16, "two.txt", signature)
            twin = twins.find("3" * 16, "three.txt", signature)
            assert twin
            assert (twin.source, twin.similarity) == ("one.txt", 1.0)
            twins.drop("1" * 16)
            twin = twins.find("3" * 16, "three.txt", signature)
            assert twin
            assert twin.source == "two.txt"
            assert twins.find("2" * 16, "two.txt", signature) is None


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("DELETE FROM signature_bands WHERE document = 2", "bands of document row 2"),
        ("UPDATE signature_bands SET band = band - 1 WHERE document = 1", "bands of document row 1"),
        ("DELETE FROM signatures WHERE document = 3", "bands of document row 3"),
        ("UPDATE signatures SET signature = zeroblob(520) WHERE document = 2", "signature of document row 2"),
        ("DROP INDEX signature_bands_band", "has no signature_bands_band"),
        ("DROP TABLE signature_bands", "has no signature_bands"),
    ],
)
def test_damaged_bands_are_found_and_cured(tmp_path: Path, damage: str, says: str) -> None:
    signatures = [sign(" ".join(words(100, seed))) for seed in range(3)]
    with Store.create_or_open(tmp_path) as store:
        ids = TestLookup.put(store, signatures)
    assert verify(tmp_path).problems == []
    db = Database(tmp_path, writable=True)
    db.run(damage)
    db.close()
    assert says in " ".join(verify(tmp_path).problems)
    repair(tmp_path)
    assert verify(tmp_path).problems == []
    with Store.open(tmp_path) as store:
        lost = [name for name in ids if store.signature(name) is None]
        assert lost == ([] if "bands" in damage else [ids[1]] if "UPDATE" in damage else [ids[2]])
        for name, signature in zip(ids, signatures, strict=True):
            assert store.find_alike(signature, 0.9) == ([] if name in lost else [(name, signature)])


def test_bands_are_few_and_of_32_bits() -> None:
    signature = sign(" ".join(words(100, 1)))
    assert len(bands(signature)) == 33
    assert len(bands(signature[:8])) == 1
    assert all(0 <= band < 2**32 for band in bands(signature))
    assert len(bands(bytes(520))) == 33  # equal bytes in different bands are no match


class TestWithoutDatasketch:
    @pytest.fixture(autouse=True)
    def _absent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasketch", None)
        from importlib.util import find_spec

        for module in ("rag.config", "rag.twins"):
            monkeypatch.setattr(f"{module}.find_spec", lambda name: None if name == "datasketch" else find_spec(name))

    def test_the_default_does_without(self, tmp_path: Path) -> None:
        (tmp_path / "docs").mkdir()
        for name in ("a", "b"):
            (tmp_path / "docs" / f"{name}.txt").write_text("The same words in both of these files.")
        config = PipelineConfig.from_dict({"embedder": "hashing", "retriever": "bm25"})
        with Pipeline(config).index(tmp_path / "docs", into=tmp_path / "i") as index:
            assert index.report
            assert (index.report.documents, index.report.near_duplicates) == (2, ())

    def test_skip_needs_it(self, tmp_path: Path) -> None:
        config = PipelineConfig.from_dict({"embedder": "hashing", "retriever": "bm25", "near_duplicates": "skip"})
        with pytest.raises(MissingError, match=r"chunkwise\[dedup\]"):
            Pipeline(config).index(tmp_path, into=tmp_path / "i")
        assert not (tmp_path / "i").exists()
        with pytest.raises(MissingError, match="datasketch"):
            sign("one two three four five six")

    def test_report_goes_on_without_it_and_says_so(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """An index remembers `report`; that must not bar somebody without the extra from adding to it."""
        (tmp_path / "a.txt").write_text("Some words that are long enough for a shingle.")
        config = PipelineConfig.from_dict({"embedder": "hashing", "retriever": "bm25", "near_duplicates": "report"})
        with Pipeline(config).index(tmp_path / "a.txt", into=tmp_path / "i") as index:
            assert index.report
            assert index.report.documents == 1
        assert "chunkwise[dedup]" in caplog.text


def test_it_is_imported_only_where_something_is_signed(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("Some words that are long enough for a shingle.")
    code = (
        "import sys\nfrom rag import Pipeline, PipelineConfig\n"
        "config = PipelineConfig.from_dict({'embedder': 'hashing', 'retriever': 'bm25'})\n"
        "Pipeline(config).index('docs', into='i').close()\nprint('datasketch' in sys.modules)\n"
    )
    seen = [
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert [line.strip() for line in seen] == ["True", "False"]
