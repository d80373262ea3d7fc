from __future__ import annotations

import random

import numpy as np
import pytest

from rag.duplicates import SignatureIndex, _shingles, minima, sign, similarity


def words(count: int, seed: int) -> list[str]:
    chosen = random.Random(seed)
    return [f"w{chosen.randrange(4000)}" for _ in range(count)]


def changed(before: list[str], rate: float, seed: int) -> list[str]:
    chosen = random.Random(seed)
    return [f"new{chosen.randrange(10**9)}" if chosen.random() < rate else word for word in before]


def exact(one: str, other: str) -> float:
    left, right = set(_shingles(one).tolist()), set(_shingles(other).tolist())
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


def test_minima_are_those_of_datasketch() -> None:
    datasketch = pytest.importorskip("datasketch", minversion="2.0")
    values = [0, 1, 77, 2**31, 2**32 - 1, *range(1000, 1300)]
    theirs = datasketch.MinHash(num_perm=128, seed=1, hashfunc=int)
    theirs.update_batch(values)
    ours = minima(np.array(values, dtype=np.uint64), first=7)
    assert (theirs.hashvalues == ours[1]).all()
    few, none = (datasketch.MinHash(num_perm=128, seed=1, hashfunc=int) for _ in range(2))
    few.update_batch(values[:7])
    assert (few.hashvalues == ours[0]).all()
    assert (none.hashvalues == minima(np.array([], dtype=np.uint64))).all()


def test_a_signature_is_bounded_and_repeats() -> None:
    assert len(sign("too short a text")) == 8
    assert len(sign(" ".join(words(100, 1)))) == 137
    assert len(sign(" ".join(words(50_000, 1)))) == 266
    assert sign("one two three four five six") == sign("one two three four five six")


def test_equal_texts_are_equal_however_short() -> None:
    assert similarity(sign("hello"), sign("hello")) == 1.0
    assert similarity(sign("hello"), sign("hallo")) == 0.0


def test_text_without_spaces_is_compared_by_characters() -> None:
    text = "".join(chr(0x4E00 + number * 37 % 5000) for number in range(800))
    other = text[:400] + "好" + text[401:]
    assert similarity(sign(text), sign(other)) > 0.9
    assert similarity(sign(text), sign(text[::-1])) < 0.2


@pytest.mark.parametrize("count", [255, 257, 511, 513, 1024, 1030, 4090, 4100])
def test_sizes_around_a_level_still_meet(count: int) -> None:
    """Sampling keeps every 2^level-th shingle; documents of a size near the border must not miss each other."""
    one = [f"x{number}" for number in range(count + 4)]
    other = [*one, *(f"y{number}" for number in range(count // 20))]
    assert similarity(sign(" ".join(one)), sign(" ".join(other))) > 0.85


def test_the_index_finds_what_is_alike_and_little_else() -> None:
    index = SignatureIndex(0.85)
    originals = [words(200, seed) for seed in range(2500)]  # more than one segment
    for number, original in enumerate(originals):
        index.add(f"{number:016x}", sign(" ".join(original)))
    for number in range(0, 2500, 50):
        found = index.find(sign(" ".join([*originals[number], "and", "one", "more"])))
        assert [name for name, _ in found] == [f"{number:016x}"]
        assert found[0][1] > 0.85
    assert index.find(sign(" ".join(words(200, 9999)))) == []


def test_equal_documents_do_not_make_it_quadratic() -> None:
    index, signature = SignatureIndex(), sign(" ".join(words(100, 1)))
    for number in range(3000):
        index.add(f"{number:016x}", signature)
    found = index.find(signature)
    assert found[0] == (f"{0:016x}", 1.0)
    assert len(found) < 300
