"""A process that has everything imported and forks a `rag` command per request, so that hundreds of kills are cheap.

Run as `python -m tests.crash.warm SOCKET-FD`. A request is one JSON message {arguments, failpoint, faults} with the
write end of a pipe, which becomes the command's standard error (and output); the answers are {"pid": n} at once and
{"status": waitpid's status} after its end. What runs is `rag.cli.main.main`, as in the real command.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import json
import os
import socket
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

SAMPLES = {"a.md": "# A\n\ntext", "b.txt": "text", "c.csv": "a,b\n1,2", "d.html": "<p>text</p>", "e.json": "[1]"}
CONFIG = "embedder: hashing\nretriever: {use: faiss-dense, index: hnsw}\n"


def rehearse() -> None:
    """One ingestion and one search, which import everything; threads that they start would not survive a fork."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in {**SAMPLES, "rag.yaml": CONFIG}.items():
            (Path(folder) / name).write_text(text)
        names = ("-q", "--index", f"{folder}/index", "--config", f"{folder}/rag.yaml")
        for verb in (("ingest", folder), ("search", "text", "--json")):
            with contextlib.redirect_stdout(io.StringIO()):
                assert call([*verb, *names]) == 0
    assert len(os.listdir("/proc/self/task")) == 1, "a thread that a forked command would miss"


def call(arguments: list[str]) -> int:
    """The exit code of a command, as the interpreter would give it."""
    from rag.cli.main import main

    sys.argv = ["rag", *arguments]
    try:
        main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def run(request: dict[str, Any], output: int) -> int:
    """The exit code of the command, in the forked child."""
    from rag.store import failpoints

    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    failpoints.arm(request["failpoint"] or None)
    if request["faults"]:
        directory, *numbers = request["faults"]
        arm = ctypes.CDLL(None).faults_arm
        arm(os.fsencode(directory), ctypes.c_long(numbers[0]), *numbers[1:])
    try:
        return call(request["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def serve(channel: socket.socket) -> None:
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, 1 << 16, 1)
        if not message:
            return
        child = os.fork()
        if child == 0:
            channel.close()
            os._exit(run(json.loads(message), descriptors[0]))
        os.close(descriptors[0])
        channel.sendall(json.dumps({"pid": child}).encode() + b"\n")
        _, status = os.waitpid(child, 0)
        channel.sendall(json.dumps({"status": status}).encode() + b"\n")


if __name__ == "__main__":
    _, descriptor, *more = sys.argv
    rehearse()
    for module in more:
        importlib.import_module(module)
    serve(socket.socket(fileno=int(descriptor)))
