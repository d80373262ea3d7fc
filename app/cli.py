"""`rag ui`: starts the Streamlit app on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from app.theme import MAX_UPLOAD_MB, OPTIONS
from rag.errors import missing_extra

DEFAULT_INDEX = Path("demo-index")


def ui(
    index: Annotated[
        Path, typer.Option("--index", "-i", envvar="RAG_INDEX", help="Folder of the index.")
    ] = DEFAULT_INDEX,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 8501,
    headless: Annotated[bool, typer.Option("--headless", help="Do not open a browser.")] = False,
) -> None:
    """Open the demo app in a browser: ask, and see every stage, from the cut to the cache."""
    if find_spec("streamlit") is None:
        raise missing_extra("streamlit", "ui", "rag ui")
    command = [sys.executable, "-m", "streamlit", "run", str(Path(__file__).with_name("main.py"))]
    options = {
        "server.address": "127.0.0.1",
        "server.port": str(port),
        "server.headless": str(headless).lower(),
        "browser.gatherUsageStats": "false",
        "server.maxUploadSize": str(MAX_UPLOAD_MB),
        "server.fileWatcherType": "none",
        "client.toolbarMode": "viewer",
        **OPTIONS,
    }
    for name, value in options.items():
        command += [f"--{name}", value]
    environment = {**os.environ, "RAG_INDEX": str(index)}
    if os.name == "posix":  # the process becomes the server, so that whoever ends it ends the server
        os.execve(command[0], command, environment)  # noqa: S606  our own interpreter
    raise SystemExit(subprocess.call(command, env=environment))
