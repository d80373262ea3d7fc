"""What the verbs of `rag eval` share: options, and reading them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rag.errors import UsageError

__all__ = [
    "CacheOption",
    "DataOption",
    "LimitOption",
    "PeerOption",
    "PythonOption",
    "SetOption",
    "SizeOption",
    "SpecOption",
    "folders",
    "spec_of",
]

DataOption = Annotated[
    Path | None, typer.Option("--data", envvar="CHUNKWISE_DATA", help="Folder of the public evaluation data.")
]
SpecOption = Annotated[
    list[str] | None,
    typer.Option("--chunker", help="Name, or YAML such as '{use: semantic, threshold: sd}'; repeatable."),
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Folder under --data; repeatable.")]
SizeOption = Annotated[list[int] | None, typer.Option("--size", min=50, help="Mean length to match, in characters.")]
LimitOption = Annotated[list[int] | None, typer.Option(min=8, help="Limit to set as it is; repeatable.")]
CacheOption = Annotated[Path | None, typer.Option(help="Folder that keeps vectors, so that a second run is cheap.")]
PythonOption = Annotated[
    list[Path] | None,
    typer.Option(help="Interpreter of an environment that has peers; repeatable. Default: this one."),
]
PeerOption = Annotated[list[str] | None, typer.Option(help="Peer that joins the tables, or 'all'; repeatable.")]


def folders(data: Path | None, out: Path | None, half: str = "all") -> tuple[Path, Path]:
    """Both folders; UsageError when one is missing or there is no such half."""
    if data is None or out is None:
        raise UsageError("--data DIR (or CHUNKWISE_DATA) and --out DIR are needed")
    if half not in ("dev", "test", "all"):
        raise UsageError(f"--half {half}: expected dev, test or all")
    return data, out


def spec_of(text: str) -> Any:
    """A name, or YAML of a mapping with `use`."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{text!r} is neither a name nor YAML: {error}") from error
    if not isinstance(value, str | dict):
        raise UsageError(f"{text!r}: expected a name, or a mapping with 'use'")
    return value
