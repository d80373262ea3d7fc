"""Repair policies of the engine by name: what a config may say, checked without torch, and the policy it means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rag.errors import ConfigError

if TYPE_CHECKING:
    from rag.engine.repair import RepairPolicy

__all__ = ["REPAIRS", "Repair", "build_repair", "checked_repair"]

Repair = str | Mapping[str, Any]
"""A name, or a mapping of `use` and the policy's parameters."""

REPAIRS: Mapping[str, tuple[str, ...]] = {
    "all": (),
    "naive": (),
    "epic": ("k", "first"),
    "variance": ("share", "first_tokens"),
    "first-variance": ("k", "share"),
    "blend": ("share", "shrink"),
    "cache-craft": ("alpha",),
    "prophet": ("share", "window"),
    "info-flow": ("share", "window"),
    "asked": ("k", "share", "head", "depth", "late"),
    "auto": ("bound", "floor", "table"),
}
"""Name -> parameters, those of the class in `rag.engine.repair` of that name."""

_ROW = ("policy", "tokens", "cost", "kl", "agreement")


def checked_repair(spec: Repair) -> tuple[str, dict[str, Any]]:
    """(name, parameters); ConfigError for unknown ones and for what is no number. Ranges are the policy's to check."""
    given: dict[str, Any] = {"use": spec} if isinstance(spec, str) else dict(spec)
    name: Any = given.pop("use", None)
    if not isinstance(name, str) or name not in REPAIRS:
        raise ConfigError(f"local: repair must be one of {', '.join(REPAIRS)}, not {name!r}")
    for key, value in given.items():
        if key not in REPAIRS[name]:
            known = ", ".join(REPAIRS[name]) or "none"
            raise ConfigError(f"local: repair {name} has no parameter {key!r}; parameters: {known}")
        if key == "table":
            if not isinstance(value, str):
                check_table(value)
        elif not isinstance(value, bool if key == "first" else int | float) or (key != "first" and value is True):
            raise ConfigError(f"local: repair {name}: {key} cannot be {value!r}")
    return name, given


def check_table(rows: Any) -> None:
    """ConfigError unless `rows` is what `auto` can choose from."""
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not rows:
        raise ConfigError(f"local: repair auto: table is a list of rows or the name of a file, not {rows!r}")
    for row in rows:
        if not isinstance(row, Mapping) or not set(_ROW[:-1]) <= set(row) <= set(_ROW):
            raise ConfigError(f"local: repair auto: a row of the table has {', '.join(_ROW)}, not {row!r}")
        if not all(isinstance(row[key], int | float) for key in row if key != "policy"):
            raise ConfigError(f"local: repair auto: all but the policy are numbers in a row, not those of {row!r}")
        if checked_repair(row["policy"])[0] == "auto":
            raise ConfigError("local: repair auto cannot choose auto")


def build_repair(spec: Repair, fingerprint: str = "", blocks: str = "donor-mean") -> RepairPolicy:
    """The policy; EngineError where a parameter is out of its range. `auto` without a table takes the one that was
    measured for the model of that `fingerprint` with such `blocks`."""
    name, given = checked_repair(spec)
    if name == "auto":
        from rag.engine.repair.auto import Auto, Calibrated
        from rag.generators._calibration import calibrated

        table = calibrated(given.get("table", ""), fingerprint, blocks)
        named = {_label(row["policy"]): build_repair(row["policy"]) for row in table}
        rows = (Calibrated(_label(row["policy"]), **{key: row[key] for key in _ROW[1:] if key in row}) for row in table)
        bounds = {key: given[key] for key in ("bound", "floor") if key in given}
        return Auto(table=tuple(rows), policies=named, **bounds)
    module = import_module(f"rag.engine.repair.{name.replace('-', '_')}")
    kind = getattr(module, "".join(part.capitalize() for part in name.split("-")))
    policy: RepairPolicy = kind(**given)
    return policy


def _label(spec: Repair) -> str:
    return spec if isinstance(spec, str) else json.dumps(dict(spec), sort_keys=True)
