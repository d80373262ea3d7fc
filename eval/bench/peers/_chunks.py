"""Cuts texts with one chunker in this fresh process: `python _chunks.py CONTENDER.py JOB_AS_JSON`.

Standard library and tokenizers only, and nothing of ours, so that it runs in any environment. A contender is a file
with `PACKAGES`, `MODULES` and `load(tokens, options)`, which gives a function: text -> [(chunk, start, end)], start
and end None where the package tells none. `tokens` is the one tokenizer of all contenders.

The job says `texts` (a JSON file), `out` (where chunks go, JSON), `tokenizer`, `max_tokens`, `options`, and `count`:
true counts the characters that the chunker has tokenised and keeps the chunks, false measures the calls alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

WARM_UP = "One sentence, to load what is lazy. Another one follows it!\n\nA second paragraph."


class Tokens:
    """The tokenizer with truncation and padding off; `count` and `ids` take the fast way, without offsets.

    `characters` went through `count` and `ids` so far: a list with one number, None when nobody counts.
    """

    def __init__(self, file: str, max_tokens: int, *, counting: bool) -> None:
        from tokenizers import Tokenizer

        self.file = file
        self.max_tokens = max_tokens
        self.tokenizer = Tokenizer.from_file(file)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.characters: list[int] | None = [0] if counting else None
        encode = self.tokenizer.encode_batch_fast
        self.ids: Callable[[str], list[int]] = lambda text: list(encode([text], add_special_tokens=False)[0].ids)
        self.count: Callable[[str], int] = lambda text: len(encode([text], add_special_tokens=False)[0].ids)
        if counting:
            self.ids, self.count = self._counted(self.ids), self._counted(self.count)

    def _counted(self, call: Callable[[str], Any]) -> Callable[[str], Any]:
        def counted(text: str) -> Any:
            if self.characters is not None:
                self.characters[0] += len(text)
            return call(text)

        return counted


def run(contender: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    """What the calls cost, or what came of them."""
    for name in contender.MODULES:
        importlib.import_module(name)
    tokens = Tokens(job["tokenizer"], int(job["max_tokens"]), counting=bool(job["count"]))
    split = contender.load(tokens, job.get("options", {}))
    split(WARM_UP)
    if tokens.characters is not None:
        tokens.characters[0] = 0
    texts = json.loads(Path(job["texts"]).read_text(encoding="utf-8"))
    cpu, wall = _cpu_seconds(), time.perf_counter()
    found = [split(text) for text in texts]
    report: dict[str, Any] = {
        "status": "ok",
        "cpu_seconds": _cpu_seconds() - cpu,
        "wall_seconds": time.perf_counter() - wall,
        "chunks": sum(map(len, found)),
        "characters_tokenised": tokens.characters[0] or None if tokens.characters else None,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (2**20 if sys.platform == "darwin" else 2**10),
        "versions": {name: _version(name) for name in contender.PACKAGES},
    }
    if job["count"]:
        Path(job["out"]).write_text(json.dumps(found), encoding="utf-8")
    return report


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main(path: str, job: str) -> None:
    """Load the contender from its file and print the report as the last line."""
    sys.path.pop(0)  # this folder: haystack.py in it must not stand in for the package haystack
    spec = importlib.util.spec_from_file_location("contender", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file")
    contender = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(contender)
    print("\n" + json.dumps(run(contender, json.loads(job))))


if __name__ == "__main__":
    main(*sys.argv[1:])
