"""Two results files side by side: what differs beyond chance, and whether anything fell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from eval._reports import table
from eval.runs.results import compared, rounded
from eval.runs.scoring import BETTER
from rag.errors import UsageError

__all__ = ["compare", "fallen", "markdown", "regress"]

_BEFORE, _AFTER = "A", "B"


def compare(
    before: Mapping[str, Any], after: Mapping[str, Any], *, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """B minus A for every set that both have, paired by question: configs of one name, or the only one on each side.

    UsageError when they share no set, or a set has other questions or documents in one of them.
    """
    names = [name for name in before["sets"] if name in after["sets"]]
    if not names:
        raise UsageError(
            f"nothing to compare: the results have the sets {', '.join(before['sets'])} and {', '.join(after['sets'])}"
        )
    for name in names:
        _check_same(name, before["sets"][name], after["sets"][name])
    rows: list[dict[str, Any]] = []
    for label, other in _pairs(before, after):
        scores = {
            **{(name, _BEFORE): found for name, found in _scores(before, label) if name in names},
            **{(name, _AFTER): found for name, found in _scores(after, other) if name in names},
        }
        made = compared(scores, (_BEFORE, _AFTER), resamples, seed)
        rows += [{**one, "a": label, "b": other, "better": BETTER.get(one["measure"], "higher")} for one in made]
    found: dict[str, Any] = rounded({"format": 1, "resamples": resamples, "seed": seed, "comparisons": rows})
    return found


def regress(
    before: Mapping[str, Any], after: Mapping[str, Any], *, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """As `compare`, with `fallen`: the comparisons whose whole interval lies on the worse side.

    UsageError also when a set or a config of the older results is missing in the newer ones.
    """
    missing = [name for part in ("sets", "configs") for name in before[part] if name not in after[part]]
    alone = len(before["configs"]) == len(after["configs"]) == 1
    missing = [name for name in missing if not (alone and name in before["configs"])]
    if missing:
        raise UsageError(f"the new results lack {', '.join(missing)}; run them with the same sets and configs")
    found = compare(before, after, resamples=resamples, seed=seed)
    return {**found, "fallen": fallen(found["comparisons"])}


def fallen(comparisons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that are worse beyond their 95 % interval."""
    return [one for one in comparisons if (one["high"] < 0 if one["better"] == "higher" else one["low"] > 0)]


def markdown(found: Mapping[str, Any]) -> str:
    """The table, differences beyond their interval marked, and the verdict if there is one."""
    header = ("set", "A", "B", "measure", "B - A", "low", "high", "p (Holm)", "n", "")
    rows = [
        (one["set"], one["a"], one["b"], one["measure"], one["difference"], one["low"], one["high"], one["p_holm"],
         one["n"], _word(one))
        for one in found["comparisons"]
    ]  # fmt: skip
    parts = ["# B minus A", table(header, rows, 4)]
    if "fallen" in found:
        fell = [
            f"{one['set']}, {one['b']}: {one['measure']} by {abs(one['difference']):.4f}" for one in found["fallen"]
        ]
        parts.append("Fell beyond the interval: " + ("; ".join(fell) or "nothing") + ".")
    return "\n\n".join(parts) + "\n"


def _word(one: Mapping[str, Any]) -> str:
    if one["low"] <= 0 <= one["high"]:
        return ""
    return "better" if (one["low"] > 0) == (one["better"] == "higher") else "worse"


def _pairs(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str]]:
    same = [(label, label) for label in before["configs"] if label in after["configs"]]
    if same:
        return same
    if len(before["configs"]) == len(after["configs"]) == 1:
        return [(next(iter(before["configs"])), next(iter(after["configs"])))]
    raise UsageError(
        f"no config has the same name in both: {', '.join(before['configs'])} and {', '.join(after['configs'])}"
    )


def _scores(results: Mapping[str, Any], label: str) -> Iterator[tuple[str, dict[str, Mapping[str, float]]]]:
    for one in results["runs"]:
        if one["config"] == label:
            yield one["set"], {row["query_id"]: row["scores"] for row in one["questions"]}


def _check_same(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    for part in ("documents", "questions"):
        if before["digests"][part] != after["digests"][part]:
            raise UsageError(
                f"set {name}: the {part} of the two results are not the same; compare runs on the same data, half and "
                "limit"
            )
