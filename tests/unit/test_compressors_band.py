"""The refill of a choice against all subsets of small cases: found whenever there is one, and the best of its step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, combinations
from math import ceil

from hypothesis import given, settings
from hypothesis import strategies as st

from compressors._band import NEAR, Lumps, in_band, met


@st.composite
def lumps_of(draw: st.DrawFn) -> Lumps:
    size = draw(st.integers(1, 8))
    several = {"min_size": size, "max_size": size}
    tokens = draw(st.lists(st.integers(1, 30), **several))
    owners = sorted(draw(st.lists(st.integers(0, 2), **several)))
    gains = draw(st.lists(st.integers(-3, 20), **several))
    leans = draw(st.lists(st.booleans(), **several))
    return Lumps(
        tokens=dict(enumerate(tokens)), owners=dict(enumerate(owners)), gains=dict(enumerate(gains)),
        separator=draw(st.integers(0, 2)),
        needs={n: n - 1 for n in range(1, size) if leans[n] and owners[n - 1] == owners[n]},
    )  # fmt: skip


def subsets(numbers: list[int]) -> Iterator[set[int]]:
    return map(set, chain.from_iterable(combinations(numbers, count) for count in range(len(numbers) + 1)))


def order_of(lumps: Lumps) -> list[int]:
    return sorted(lumps.tokens, key=lambda number: (-lumps.gains[number], number))


@settings(max_examples=150, deadline=None)
@given(lumps=lumps_of(), target=st.integers(1, 120))
def test_the_band_is_reached_whenever_the_better_half_can_be_made_up_to_it(lumps: Lumps, target: int) -> None:
    order, least = order_of(lumps), ceil(NEAR * target)
    greedy = lumps.taken(order, target)
    better = set([number for number in order if number in greedy][: (len(greedy) + 1) // 2])
    fixed = better | {lumps.needs[number] for number in better if number in lumps.needs} & greedy
    reachable = any(least <= lumps.size(one) <= target for one in subsets(order) if fixed <= one)
    found = met(lambda budget: lumps.taken(order, budget), lumps.size, lumps, target)
    assert lumps.size(found.chosen) <= target
    assert better <= found.chosen
    assert found.refilled <= found.chosen
    if reachable and least < target:
        assert found.near
        assert least <= lumps.size(found.chosen)
    assert found.near == (least <= lumps.size(found.chosen))


@settings(max_examples=150, deadline=None)
@given(lumps=lumps_of(), target=st.integers(1, 120), width=st.integers(0, 8))
def test_the_first_step_with_a_set_has_the_most_valuable_one(lumps: Lumps, target: int, width: int) -> None:
    """With one chosen unit nothing is freed: all sets that hold it are in question, those that keep needs first."""
    first = next((number for number in order_of(lumps) if lumps.tokens[number] <= target), None)
    chosen = set() if first is None else {first}

    def whole(one: set[int]) -> bool:
        return all(lumps.needs.get(number, number) in one for number in one - chosen)

    sets = [one for one in subsets(order_of(lumps)) if chosen <= one and target - width <= lumps.size(one) <= target]
    sets = [one for one in sets if one] if not chosen else sets
    wanted = [one for one in sets if whole(one)] or sets
    found = in_band(lumps, chosen, target - width, target)
    assert (found is None) == (not wanted)
    if found is not None:
        assert found in wanted

        def value(one: set[int]) -> float:
            return sum(lumps.gains[number] * lumps.tokens[number] for number in one)

        assert value(found) == max(map(value, wanted))


def test_the_counts_of_a_text_may_differ_from_those_of_its_units() -> None:
    tokens = dict(enumerate([40, 35, 16, 21]))
    lumps = Lumps(
        tokens=tokens, owners=dict.fromkeys(tokens, 0), gains={n: 10.0 - n for n in tokens}, separator=0, needs={}
    )

    def count(chosen: set[int]) -> int:
        return lumps.size(chosen) + len(chosen)

    found = met(lambda budget: lumps.taken(range(4), budget), count, lumps, 100)
    assert found.near
    assert (found.chosen, found.refilled) == ({0, 1, 3}, {3})
    assert count(set(found.chosen)) == 99
