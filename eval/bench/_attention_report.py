"""Claims, tables and the calibration of `rag bench attention`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.bench._attention_end import IN_PLACE, STOCK
from eval.bench._attention_plans import AROUND, plans, spec_of
from eval.bench._attention_quality import DENSE
from eval.bench._report import claim, table

__all__ = ["BOUNDS", "calibration", "chosen", "claims_of", "tables"]

BOUNDS = {"kl": 0.05, "gold": 0.02, "needle": 0.05, "cost": 0.95}
"""A plan may be chosen whose mean KL from dense is at most `kl`, whose gold answers lose at most `gold` nats a token,
which finds at most `needle` fewer of the needles than dense, and which costs at most `cost` of dense."""
NEW_TOKENS = 64
"""Tokens of an answer, where the cost of a prompt and its answer is one figure."""
LONG, MEDIUM = 8000, 4000
Row = Mapping[str, Any]


def claims_of(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of the parts that ran."""
    return [*_op_claims(report.get("ops", ())), *_end_claims(report), *_quality_claims(report.get("quality", ()))]


def _op_claims(rows: Sequence[Row]) -> list[dict[str, Any]]:
    found = []
    for dtype, goal in (("bfloat16", 1.9), ("float32", 2.5)):
        own = [row for row in rows if row["dtype"] == dtype and row["tokens"] >= LONG]
        for stage, least in (("prefill", goal), ("decode", 3.0)):
            of_stage = [row for row in own if row["stage"] == stage]
            if of_stage:
                key = "ratio" if stage == "prefill" else "gather_ratio"
                best = max(of_stage, key=lambda row: float(row[key]))
                quest = next((row for row in of_stage if row["selection"] == "quest"), best)
                what = "with its selection" if key == "ratio" else "gather alone"
                text = f"{stage} op, {quest['tokens']} tokens, {dtype}: {quest['selection']} over dense, {what}"
                found.append(claim(text, quest[key], least, "higher"))
                if "over_tiles" in quest:
                    text = f"{stage} op, {quest['tokens']} tokens, {dtype}: {quest['selection']} over our own dense"
                    found.append(claim(text, quest["over_tiles"], 1.0, "higher"))
    return found


def _end_claims(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows, gate = report.get("end", ()), _gate(report)
    found = []
    for tokens in sorted({row["asked"] for row in rows}):
        own = [row for row in rows if row["asked"] == tokens]
        for stage, goal in (("prefill", 1.6), ("decode", 1.5)):
            of_stage = [row for row in own if row["stage"] == stage]
            for row in of_stage:
                if row["contender"] == STOCK or (row["contender"] != IN_PLACE and tokens < gate):
                    continue
                text = f"{stage}, {tokens} tokens, {row['dtype']}: {row['contender']} over stock"
                best = goal if tokens >= LONG and (stage == "decode" or row["contender"] != IN_PLACE) else 0.97
                found.append(claim(text, row["over_stock"], best, "higher"))
    return found


def _gate(report: Mapping[str, Any]) -> float:
    """The shortest prompt at which the calibration of this run chooses sparse attention, else MEDIUM."""
    rows = report.get("calibration", {}).get("rows", ())
    return min((row["tokens"] for row in rows if row["spec"]), default=MEDIUM)


def _quality_claims(parts: Sequence[Row]) -> list[dict[str, Any]]:
    found = []
    for part in parts:
        for one in part["plans"]:
            if one["plan"] == "chunk-block@0.25" and one["n_asked"]:
                head = f"{part['length']} tokens, {one['plan']} with prior, {one['n_asked']} questions: "
                worst, loss = one["evidence_worst"], one["gold_asked"]
                low, high = one["gold_asked_interval"]
                gold = f"{head}gold answers against dense, nats a token [{low:+.3f}, {high:+.3f}]"
                found += [
                    claim(f"{head}evidence recall of the worst layer", worst, 0.95, "higher"),
                    claim(gold, loss, -0.02, "higher"),
                    claim(f"{head}questions", one["n_asked"], 100, "higher"),
                ]
    return found


# ---------------------------------------------------------------------- calibration


def chosen(part: Row, bounds: Mapping[str, float] = BOUNDS) -> dict[str, Any]:
    """Of one length: the cheapest plan within the bounds, and how many there were. A plan that did not see all the
    cases that dense did is no candidate, and neither is one around another."""
    dense = next(one for one in part["plans"] if one["plan"] == DENSE)
    fits = []
    for one in part["plans"]:
        if one["plan"] == DENSE or one["cases"] < dense["cases"] or one["plan"].split("@")[0] in AROUND:
            continue
        cost = _cost(one, dense)
        lost = [one[key] for key in ("gold_needle", "gold_asked", "gold_kv") if one[key] is not None]
        found = 0.0 if one["found_needle"] is None else dense["found_needle"] - one["found_needle"]
        within = one["kl"] <= bounds["kl"] and all(-loss <= bounds["gold"] for loss in lost)
        if within and found <= bounds["needle"] and cost <= bounds["cost"]:
            fits.append((cost, one))
    if not fits:
        return {"tokens": part["length"], "spec": None, "cases": dense["cases"]}
    cost, best = min(fits, key=lambda pair: (pair[0], pair[1]["plan"]))
    name, _, density = best["plan"].partition("@")
    (plan,) = plans(part["length"], [float(density)], [name])
    keys = ("kept", "kl", "mass", "gold_needle", "found_needle", "gold_asked", "gold_kv", "cases")
    return {
        "tokens": part["length"], "spec": spec_of(plan.selection), "density": plan.density, "cost": round(cost, 4),
        **{key: round(best[key], 4) for key in keys if best[key] is not None},
    }  # fmt: skip


def _cost(one: Row, dense: Row) -> float:
    """Of a prompt and an answer of NEW_TOKENS, as a share of dense."""
    steps = NEW_TOKENS * (dense["step_seconds"] or 0.0)
    ours = one["seconds"] * dense["seconds"] + (one["step_seconds"] or 1.0) * steps
    return float(ours / max(1e-9, dense["seconds"] + steps))


def calibration(report: Mapping[str, Any], bounds: Mapping[str, float] = BOUNDS) -> dict[str, Any]:
    """What `attention: auto` reads: a row for every length."""
    rows = [chosen(part, bounds) for part in sorted(report["quality"], key=lambda part: int(part["length"]))]
    model = report["model"]
    return {
        "fingerprint": model["fingerprint"],
        "model": f"{model['family']}, {model['layers']} layers, {model['dtype']}",
        "measured": f"rag bench attention, {', '.join(report['sets'])}",
        "bounds": dict(bounds),
        "rows": rows,
    }


# ---------------------------------------------------------------------- tables


def tables(report: Mapping[str, Any]) -> str:
    parts = []
    if report.get("ops"):
        keys = (
            "tokens", "dtype", "selection", "density", "dense_ms", "stock_ms", "gather_ms", "selection_ms",
            "gather_ratio", "ratio", "over_tiles",
        )  # fmt: skip
        parts.append(table(["op", *keys], [[row["stage"], *(row.get(key) for key in keys)] for row in report["ops"]]))
    if report.get("end"):
        ends = ("tokens", "dtype", "contender", "density", "seconds", "over_stock", "over_in_place")
        rows = [
            [row["stage"], *(f"{row[key]:.4f}" if key == "seconds" else row[key] for key in ends)]
            for row in report["end"]
        ]
        parts.append(table(["end to end", *ends], rows))
    for part in report.get("quality", ()):
        parts.append(_quality_table(part))
    if "calibration" in report:
        rows = [
            [str(row["tokens"]), row.get("cost"), str(row["spec"] or "dense")] for row in report["calibration"]["rows"]
        ]
        parts.append(table(["auto, tokens", "cost", "choice"], rows))
    claims = [
        [one["claim"], one["value"], one["goal"], "holds" if one["holds"] else "FAILS"] for one in report["claims"]
    ]
    parts.append(table(["claim", "value", "goal", ""], claims))
    return "\n\n".join(parts)


def _quality_table(part: Row) -> str:
    """Ranked within each density by mass, needle and answer likelihood together."""
    keys = (
        "rank", "kept", "mass", "mass_worst", "evidence", "evidence_worst", "kl", "gold_needle", "found_needle",
        "gold_kv", "found_kv", "gold_asked", "gold_text", "seconds", "step_seconds",
    )  # fmt: skip
    rows = [
        [one["plan"], one["cases"], *(None if one.get(key) is None else f"{one[key]:.3f}" for key in keys)]
        for one in part["plans"]
    ]
    return table([f"{part['length']} tokens", "cases", *keys], rows)
