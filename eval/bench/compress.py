"""`rag bench compress`: whether shortening a context costs less CPU time than reading what it leaves out.

Contexts of 400, 800 and 1600 tokens are the best hits of questions on real text (chroma_chunking, else the sample).
Reading is the prefill of the bundled model on the prompt, in bfloat16 where the processor multiplies it in hardware.
Contenders take turns; times are CPU times of all threads. Vectors of sentences are kept beside the index, as after a
first question; `unkept_ms` is the time without. The vector of the question is made anew every time, although a
pipeline has it from its retriever.

`python -m eval.bench.compress --parts fast,lm` measures compressors that run a language model as well.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eval.bench._compress_contexts import CHUNK_TOKENS, contexts, opened, texts_of
from eval.bench._compress_costs import break_even, costs, ranges, speeds
from eval.bench._report import Settings, claim, load_average, machine, table
from rag.errors import UsageError

if TYPE_CHECKING:
    from eval.bench._kv_prompts import Loaded
    from rag.pipeline import Pipeline
    from rag.protocols import Compressor, Generator

__all__ = ["PARTS", "run"]

LENGTHS = (400, 800, 1600)
RATES = (0.5, 0.25)
QUESTIONS = 3
PARTS: Mapping[str, str] = {"fast": "sentence-prune", "lm": "token-prune"}
"""Part -> the compressor whose cost is put beside that of reading."""
FAST = ("sentence-prune", "stable-prune", "comi", "scope")
GOAL_SPEED = 20_000
GOAL_LENGTH = 800


def run(
    settings: Settings,
    *,
    parts: Sequence[str] = ("fast",),
    lengths: Sequence[int] = LENGTHS,
    rates: Sequence[float] = RATES,
    questions: int = QUESTIONS,
    loaded: Loaded | None = None,
    generator: Generator | None = None,
) -> dict[str, Any]:
    """The report. `loaded` and `generator`, whose tokenizer counts, are the bundled model where they are not given."""
    import torch

    from rag.registry import build

    if unknown := sorted(set(parts) - set(PARTS)):
        raise UsageError(f"compress: no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    torch.set_num_threads(settings.threads)
    pipeline = _pipeline(settings)
    embedder = pipeline.embedder
    reader: Generator = generator or build(
        "generator", "local", services={"counter": embedder.counter, "embedder": embedder}
    )
    services = {"counter": reader.counter, "embedder": embedder, "generator": reader}

    def made_of(name: str, rate: float) -> Compressor:
        compressor: Compressor = build("compressor", {"use": name, "rate": rate}, services=services)
        return compressor

    model = loaded or _load()
    name, texts, asked = texts_of(settings)
    started = load_average()
    _tell(settings, f"indexing {len(texts)} documents of {name}")
    with opened(pipeline, texts) as index:
        made = contexts(pipeline, index, asked[:questions], lengths, reader.counter)
        _tell(settings, f"{len(made)} contexts; speed of {', '.join(FAST)}")
        fast = {one: made_of(one, max(rates)) for one in FAST}
        found = speeds(made, fast, index.corpus, settings.rounds)
        beside = {f"{PARTS[part]} {rate}": made_of(PARTS[part], rate) for part in parts for rate in rates}
        _tell(settings, f"{', '.join(beside)} against prefill, {settings.rounds} rounds")
        rows = costs(model, made, beside, index.corpus, settings.rounds)
    report = {
        "bench": "compress",
        "machine": {
            **machine(), "threads": settings.threads, "load_before": started, "load_after": load_average(),
        },
        "model": {"family": model.model.config.model_type, "dtype": str(model.model.dtype).removeprefix("torch.")},
        "embedder": embedder.fingerprint,
        "corpus": {"set": name, "documents": len(texts), "contexts": len(made)},
        "speed": found,
        "results": ranges(rows),
        "break_even": break_even(rows),
        "rows": rows,
    }  # fmt: skip
    report["claims"] = _claims(report)
    _tell(settings, _table(report))
    return report


def _pipeline(settings: Settings) -> Pipeline:
    """With the embedder of `settings.config`, MiniLM without one."""
    from rag import Pipeline, PipelineConfig

    config = PipelineConfig.from_yaml(settings.config) if settings.config is not None else PipelineConfig()
    chunker = {"use": "recursive", "max_tokens": CHUNK_TOKENS}
    spec = {"chunker": chunker, "embedder": config.embedder, "retriever": "hybrid"}
    return Pipeline(PipelineConfig.from_dict(spec))


def _load() -> Loaded:
    from eval.bench._kv_prompts import load

    return load()


def _claims(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Speed over all contexts, and the part of reading alone for the default compressor from 800 tokens on."""
    name = PARTS["fast"]
    speed = next(one["rate"] for one in report["speed"] if (one["name"], one["length"]) == (name, None))
    claims = [claim(f"{name}: tokens per CPU second, vectors kept", speed, GOAL_SPEED, "higher")]
    for row in report["results"]:
        if row["name"].startswith(f"{name} ") and row["length"] >= GOAL_LENGTH:
            text = f"{row['name']}, {row['length']} tokens: compress + prefill over prefill alone"
            claims.append(claim(text, row["of_alone"], 1.0, "lower"))
    return claims


def _table(report: Mapping[str, Any]) -> str:
    keys = ("tokens", "left", "unkept_ms", "compress_ms", "prefill_ms", "total_ms", "of_alone")
    header = ["context", "", *(key.replace("_", " ") for key in keys), "of alone from", "to"]
    rows = [
        [row["length"], row["name"], *(row[key] for key in keys), *row["range"]["of_alone"]]
        for row in report["results"]
    ]
    fast = [[one["name"], one["length"] or "all", round(one["rate"])] for one in report["speed"]]
    even = [
        [
            name,
            one["context_tokens"],
            "yes" if one["extrapolated"] else "no",
            one["prompt_tokens"],
            one["compress_ms_fixed"],
            one["compress_ms_per_token"],
        ]
        for name, one in report["break_even"].items()
        if isinstance(one, Mapping)
    ]
    claims = [
        [one["claim"], one["value"], one["goal"], "holds" if one["holds"] else "FAILS"] for one in report["claims"]
    ]
    return "\n\n".join(
        [
            table(header, rows),
            table(["compressor", "context", "tokens per CPU second"], fast),
            table(["break-even", "context tokens", "extrapolated", "prompt tokens", "ms fixed", "ms a token"], even),
            table(["claim", "value", "goal", ""], claims),
        ]
    )


def _tell(settings: Settings, text: str) -> None:
    if not settings.quiet:
        print(text, file=sys.stderr, flush=True)


def _main(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the JSON report goes.")],
    data: Annotated[Path | None, typer.Option("--data", envvar="CHUNKWISE_DATA")] = None,
    parts: Annotated[str, typer.Option(help=f"Of {', '.join(PARTS)}, with commas between.")] = "fast",
    lengths: Annotated[str, typer.Option(help="Tokens of context, with commas between.")] = "400,800,1600",
    questions: Annotated[int, typer.Option(min=1, help="Contexts of every length.")] = QUESTIONS,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    settings = Settings(data=data, rounds=rounds, threads=threads)
    report = run(
        settings, parts=parts.split(","), lengths=[int(one) for one in lengths.split(",")], questions=questions
    )
    out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(_main)
