"""What can be said to a benchmark on the command line. A benchmark takes what its `run` has a parameter for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Calibrate", "Clients", "Data", "Documents", "Kills", "Length", "Part", "PeerPython", "Quality", "Questions",
    "Rounds", "Rows", "Seconds", "Seed", "Threads",
]  # fmt: skip

Data = Annotated[
    Path | None, typer.Option("--data", envvar="CHUNKWISE_DATA", help="Folder of the public evaluation data.")
]
Rounds = Annotated[int, typer.Option(min=1, help="How often each contender runs; medians are compared.")]
Documents = Annotated[int, typer.Option(min=1, help="How many documents are ingested in a round.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of every contender.")]
Seed = Annotated[int, typer.Option(help="Draws the documents.")]
Kills = Annotated[int, typer.Option(min=0, help="How often each store's writer is killed, and bytes flipped.")]
PeerPython = Annotated[
    list[Path] | None,
    typer.Option(help="Interpreter of an environment that has peers; repeatable. Default: this one."),
]
Quality = Annotated[bool, typer.Option(help="Measure retrieval quality too.")]
Part = Annotated[list[str] | None, typer.Option(help="Section of kv, compress or attention; repeatable.")]
Length = Annotated[list[int] | None, typer.Option(min=1, help="Tokens of context: kv, compress, road, attention.")]
Questions = Annotated[
    int | None, typer.Option(min=1, help="Prompts or contexts: kv, compress, road, attention; questions: query.")
]
Calibrate = Annotated[
    Path | None, typer.Option(help="File for the table that auto of local reads: kv (repair), attention.")
]
Rows = Annotated[Path | None, typer.Option(help="Folder from which a stopped run goes on, attention.")]
Seconds = Annotated[int | None, typer.Option(min=1, help="Seconds of load, serve.")]
Clients = Annotated[int | None, typer.Option(min=1, help="Clients at once, serve.")]
