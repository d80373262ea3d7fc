"""What sparse attention costs and loses, as measured for a model: the tables from which `attention: auto` chooses.

`rag bench attention --calibrate FILE` measures one for any model; those in attention_calibration.json come with the
package. A prompt of a length between two that were measured is read as the shorter of them, with what is counted in
slots scaled to it; below the shortest that was faster, and past the longest, attention is dense.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from rag.errors import ConfigError

__all__ = ["calibrated_attention", "choose", "retrieval_heads", "scaled", "write_attention_calibration"]

FORMAT = 1
SLACK = 1.1
"""How far past the longest prompt that was measured a choice still holds."""
_SLOTS = ("budget", "budget_prefill", "budget_decode", "top_k", "keep_window_size", "attention_length", "keeps")
_ROW = {"tokens", "spec"}


def choose(model_name: str, length: int, table: str = "") -> dict[str, Any] | None:
    """What `attention: auto` is for a prompt of `length` tokens: a selection as a config has it (`use` and parameters),
    or None for dense. `model_name` is the model's fingerprint or its name; a model that the tables do not tell of is
    dense. `table` is a file of --calibrate; "" the tables that come with the package."""
    rows = calibrated_attention(model_name, table)
    if not rows or length > SLACK * max(row["tokens"] for row in rows):
        return None
    fits = [row for row in rows if row["tokens"] <= length]
    if not fits:
        return None
    row = max(fits, key=lambda one: float(one["tokens"]))
    return None if row["spec"] is None else scaled(row["spec"], length / row["tokens"])


def scaled(spec: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """The same share of a prompt that is `factor` as long."""
    return {key: _times(value, factor) if key in _SLOTS else value for key, value in spec.items()}


def _times(value: Any, factor: float) -> Any:
    if isinstance(value, Sequence):
        return [_times(one, factor) for one in value]
    return int(value * factor) if value > 0 else value


def calibrated_attention(model_name: str, table: str = "") -> Sequence[Mapping[str, Any]]:
    """The rows of `table` about a model, by its fingerprint or name; none if it has none."""
    if table:
        found = _read(Path(table).expanduser())
    else:
        file = resources.files("rag.generators").joinpath("attention_calibration.json")
        found = _checked(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else []
    for one in found:
        if model_name in (one["fingerprint"], one.get("name")):
            rows: Sequence[Mapping[str, Any]] = one["rows"]
            return rows
    return []


def retrieval_heads(fingerprint: str) -> list[list[int]]:
    """(layer, kv head) of those that `rag bench attention --parts heads` found for a model and that come with the
    package; none for others."""
    file = resources.files("rag.generators").joinpath("attention_heads.json")
    for one in json.loads(file.read_text(encoding="utf-8"))["models"]:
        if fingerprint in one["fingerprints"]:
            heads: list[list[int]] = one["heads"]
            return heads
    return []


def _read(path: Path) -> list[Mapping[str, Any]]:
    try:
        return _checked(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"local: attention auto: {path} is no calibration ({error}): rag bench attention --calibrate writes one"
        ) from error


def _checked(told: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if told["format"] != FORMAT:
        raise ValueError(f"format {told['format']}, not {FORMAT}")
    for table in told["tables"]:
        _ = table["fingerprint"]
        for row in table["rows"]:
            spec = row["spec"]
            if not set(row) >= _ROW or not (spec is None or (isinstance(spec, Mapping) and "use" in spec)):
                raise ValueError(f"a row has tokens and spec, which is null or has a use: not {row!r}")
    tables: list[Mapping[str, Any]] = told["tables"]
    return tables


def write_attention_calibration(path: Path, table: Mapping[str, Any]) -> None:
    """`table` has fingerprint, rows of tokens and spec, and whatever says how they were measured."""
    told = {"format": FORMAT, "tables": [dict(table)]}
    _checked(told)
    path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
