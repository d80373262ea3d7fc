"""Claims and tables of `rag bench kv`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

from eval.bench._kv_budget import budget_table
from eval.bench._kv_reuse import OURS, PREFIX_HIT, PUBLISHED
from eval.bench._report import claim, table

__all__ = ["AGREEMENT", "BOUND", "claims_of", "exact_claims", "reuse_claims", "speculation_claims", "tables"]

BOUND = 0.05
AGREEMENT = 0.95
GOALS = {1000: (0.15, 0.30), 2000: (0.12, 0.25), 4000: (0.10, 0.18)}
"""Tokens of context -> share of full prefill that an exact prefix hit and `auto` may cost."""


def claims_of(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of the parts that ran."""
    claims = exact_claims(report["exact"]) if "exact" in report else []
    claims += [one for part in report.get("reuse", ()) for one in reuse_claims(part)]
    claims += [
        claim(f"load {one['dtype']}, {one['tokens']} tokens: share of computing", one["ratio"], 0.1, "lower")
        for one in report.get("load", ())
    ]
    if "batch" in report:
        told = report["batch"]
        text = f"{told['questions']} questions over {told['context_tokens']} tokens: times faster than alone"
        claims.append(claim(text, told["speedup"], 5.0, "higher"))
    return claims + speculation_claims(report.get("speculation", ()))


def exact_claims(part: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        claim(f"{name}: share of prompts with the tokens of full prefill", same / part["prompts"], 1.0, "higher")
        for name, same in part["same"].items()
    ]


def reuse_claims(part: Mapping[str, Any]) -> list[dict[str, Any]]:
    near = min(GOALS, key=lambda tokens: abs(tokens - part["length"]))
    by_name = {one["policy"]: one for one in part["policies"]}
    told = part["auto"]
    head, hit = f"{part['length']} tokens: ", by_name[PREFIX_HIT]
    claims = [claim(f"{head}exact prefix hit, cost", hit["cost"], GOALS[near][0], "lower")]
    halves = f"auto, chosen on the other half ({', '.join(dict.fromkeys(told['chosen']))})"
    calibrated = told["calibrated"]
    for name, found in ((f"auto ({calibrated['policy']})", calibrated["figures"]), (halves, told["figures"])):
        figures = found or {}
        claims += [
            claim(f"{head}{name}, cost", figures.get("cost"), GOALS[near][1], "lower"),
            claim(f"{head}{name}, mean KL", figures.get("kl"), BOUND, "lower"),
            claim(f"{head}{name}, top-1 agreement", figures.get("agreement"), AGREEMENT, "higher"),
        ]
    by_name = {one["policy"]: one for one in part.get("common", part["policies"])}
    ours, theirs = ([by_name[one] for one in names if one in by_name] for names in (OURS, PUBLISHED))
    if ours and theirs:
        left = [one for one in ours if not any(_beats(other, one) for other in theirs)]
        claims.append(
            claim(f"{head}policies of ours that no published one beats in cost and KL", len(left), 1, "higher")
        )
        lost = [other for other in theirs if any(_beats(one, other) for one in ours)]
        beaten = f"{head}published policies that one of ours beats in cost and KL, of {len(theirs)}"
        claims.append(claim(beaten, len(lost), len(theirs), "higher"))
    return claims


def _beats(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return bool(one["cost"] <= other["cost"] and one["kl"] < other["kl"])


def speculation_claims(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    claims = []
    for name in ("prompt-lookup", "suffix"):
        own = [row for row in rows if row["draft"] == name and row["ratio"] is not None]
        copies = [row["ratio"] for row in own if row["kind"] == "copy"]
        others = [row["ratio"] for row in own if row["kind"] == "other"]
        if copies and others:
            claims.append(claim(f"{name}: median speed-up where answers copy", median(copies), 1.5, "higher"))
            claims.append(claim(f"{name}: lowest speed-up on others", min(others), 0.95, "higher"))
    return claims


def tables(report: Mapping[str, Any]) -> str:
    parts = []
    for part in report.get("reuse", ()):
        keys = ("prompts", "tokens", "cost", "kl", "agreement", "first_kl", "repaired")
        rows = [
            [one["policy"], *(f"{one[key]:.3f}" if "kl" in key else one[key] for key in keys)]
            for one in sorted(part["policies"], key=lambda one: float(one["cost"]))
        ]
        parts.append(table([f"{part['length']} tokens", *keys], rows))
    parts += [budget_table(one) for one in report.get("budget", ())]
    if "speculation" in report:
        kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for one in report["speculation"]:
            kinds.setdefault((one["draft"], one["kind"]), []).append(one)
        rows = [[*kind, *_speeds(own)] for kind, own in sorted(kinds.items())]
        parts.append(table(["draft", "answers", "median ratio", "lowest", "same text", "tokens/s"], rows))
    claims = [
        [one["claim"], one["value"], one["goal"], "holds" if one["holds"] else "FAILS"] for one in report["claims"]
    ]
    parts.append(table(["claim", "value", "goal", ""], claims))
    return "\n\n".join(parts)


def _speeds(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    ratios = [row["ratio"] for row in rows if row["ratio"] is not None] or [0.0]
    same, speed = mean(row["same"] for row in rows), median(row["tokens_per_second"] for row in rows)
    return [median(ratios), min(ratios), float(same), speed]
