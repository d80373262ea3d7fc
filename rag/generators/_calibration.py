"""What the repairs of chunk reuse cost and how far they stray, as measured for a model: tables for the repair `auto`.

`rag bench kv --calibrate FILE` measures one for any model; those in kv_calibration.json come with the package.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from rag.errors import ConfigError
from rag.generators._repairs import check_table

__all__ = ["calibrated", "write_calibration"]

FORMAT = 1


def calibrated(table: str | Sequence[Mapping[str, Any]], fingerprint: str, blocks: str) -> Sequence[Mapping[str, Any]]:
    """The rows of `table`, or of the file of that name; of "" those that come with the package."""
    if not isinstance(table, str):
        return table
    if table:
        found = _read(Path(table).expanduser())
    else:
        text = resources.files("rag.generators").joinpath("kv_calibration.json").read_text(encoding="utf-8")
        found = json.loads(text)["tables"]
    for one in found:
        if (one["fingerprint"], one["blocks"]) == (fingerprint, blocks):
            rows: Sequence[Mapping[str, Any]] = one["rows"]
            return rows
    where = table or "the tables that come with the package"
    raise ConfigError(
        f"local: repair auto: {where} has nothing about this model (fingerprint {fingerprint}) with blocks: {blocks}. "
        "Measure it with: rag bench kv --calibrate FILE, and set table: FILE; or name one policy, such as info-flow"
    )


def _read(path: Path) -> list[Mapping[str, Any]]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        tables: list[Mapping[str, Any]] = [one for one in told["tables"] if told["format"] == FORMAT]
        for one in tables:
            check_table(one["rows"])
            _ = one["fingerprint"], one["blocks"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"local: repair auto: {path} is no calibration ({error}): rag bench kv --calibrate writes one"
        ) from error
    return tables


def write_calibration(path: Path, *tables: Mapping[str, Any]) -> None:
    """A table has fingerprint, blocks, rows and whatever says how it was measured."""
    for table in tables:
        check_table(table["rows"])
    text = json.dumps({"format": FORMAT, "tables": tables}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
