"""The report of `rag bench store` for people: one table a measure, the claims below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.bench._report import table

__all__ = ["store_table"]


def store_table(report: Mapping[str, Any]) -> str:
    """All tables; a measure that was not taken has none."""
    parts = [_costs(report), _updates(report), _kills(report), _pairs(report), _flips(report)]
    claims = [
        [one["claim"], one["value"], one["goal"], "holds" if one["holds"] else "FAILS"] for one in report["claims"]
    ]
    stored = [f"{name}: {said.get('acknowledged', '')}" for name, said in report["settings"].items()]
    parts += [table(["claim", "value", "goal", ""], claims), "\n".join(["stored means", *stored])]
    return "\n\n".join(part for part in parts if part)


def _rows(report: Mapping[str, Any], measure: str) -> list[Mapping[str, Any]]:
    return [row for row in report["results"] if row["measure"] == measure]


def _costs(report: Mapping[str, Any]) -> str:
    header = [
        "first ingest",
        "docs/s",
        "wall s",
        "CPU s",
        "RSS MB",
        "disk MB",
        "rows",
        "ours/this: docs/s",
        "disk",
        "RSS",
    ]

    def cells(row: Mapping[str, Any]) -> list[Any]:
        figures, ratios = row["median"], row.get("ours_over_this", {})
        names = ("documents_per_second", "wall_seconds", "cpu_seconds", "peak_rss_mb")
        compared = (ratios.get(name) for name in ("documents_per_second", "disk_bytes", "peak_rss_mb"))
        return [*(figures[name] for name in names), figures["disk_bytes"] / 1e6, row["rows"], *compared]

    return _table(header, _rows(report, "costs"), cells)


def _updates(report: Mapping[str, Any]) -> str:
    header = ["then", "unchanged s", "CPU times cheaper", "embedded", "duplicates", "changed s", "CPU x share",
              "embedded", "stale", "delete s", "still found", "still on disk", "ours/this: unchanged",
              "changed"]  # fmt: skip

    def cells(row: Mapping[str, Any]) -> list[Any]:
        figures, ratios = row["median"], row.get("ours_over_this", {})
        disk = row["deleted_text_on_disk"]
        found = row["rows_after_delete"] + row["hits_after_delete"]
        return [
            figures["unchanged_wall_seconds"],
            figures["unchanged_times_cheaper"],
            row["unchanged_embedded"],
            row["duplicate_rows_after_unchanged"],
            figures["changed_wall_seconds"],
            figures["changed_over_its_share"],
            row["changed_embedded"],
            row["stale_rows_after_change"],
            figures["delete_wall_seconds"],
            "yes" if found else "no",
            "yes" if disk["after"] else "no" if disk["before"] else None,
            ratios.get("unchanged_wall_seconds"),
            ratios.get("changed_wall_seconds"),
        ]

    return _table(header, [row for row in _rows(report, "costs") if row["status"] == "ok"], cells)


def _kills(report: Mapping[str, Any]) -> str:
    names = ("kills", "documents_acknowledged", "documents_lost", "failed_to_open", "crashed_on_open",
             "not_found_by_search", "parts_disagree", "failed_to_resume", "missing_after_resume",
             "duplicated_after_resume")  # fmt: skip
    header = ["one writer killed", "kills", "acknowledged", "lost", "not opened", "of them crashed", "search misses",
              "parts disagree", "not resumed", "missing then", "duplicated"]  # fmt: skip
    return _table(header, _rows(report, "kills"), lambda row: [row[name] for name in names])


def _pairs(report: Mapping[str, Any]) -> str:
    names = ("runs", "refused", "failed_later", "documents_acknowledged", "documents_lost", "failed_to_open",
             "crashed_on_open", "parts_disagree")  # fmt: skip
    header = ["two writers killed", "runs", "one refused", "failed later", "acknowledged", "lost", "not opened",
              "of them crashed", "parts disagree"]  # fmt: skip
    return _table(header, _rows(report, "two writers"), lambda row: [row[name] for name in names])


def _flips(report: Mapping[str, Any]) -> str:
    names = ("flips", "refused", "crashed", "other_answers", "same_answers", "found_by_its_own_check",
             "other_answers_and_no_word")  # fmt: skip
    header = ["one byte flipped", "flips", "refused", "crashed", "other answers", "same answers", "own check finds",
              "other answers unseen"]  # fmt: skip
    return _table(header, _rows(report, "flips"), lambda row: [row[name] for name in names])


def _table(header: list[str], rows: list[Mapping[str, Any]], cells: Any) -> str:
    lines = [
        [row["name"], *(cells(row) if row["status"] == "ok" else [row["status"], *[None] * (len(header) - 2)])]
        for row in rows
    ]
    return table(header, lines) if lines else ""
