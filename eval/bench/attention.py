"""`rag bench attention`: what sparse attention saves, and what it loses, selection by selection.

Parts, each of which can run alone:

    ops      the attention operation of one layer, dense against each selection, with and without its own cost
    end      prefill and decoding end to end against stock transformers and against the in-place cache
    heads    in which heads of the model a question looks at the chunks that hold its evidence
    quality  attention mass, evidence recall, perplexity of prose, needles, key-value pairs and answers, at densities

`--rows FOLDER` keeps what was measured of quality, so that a run goes on where one stopped. `--calibrate FILE` writes
the table from which `attention: auto` of the generator `local` chooses. `python -m eval.bench.attention` has more
options. The development halves of the public sets are read; `--half test` there confirms what was chosen on them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from eval.bench._attention_priors import Near
from eval.bench._attention_prompts import ASKED, KINDS
from eval.bench._kv_prompts import Loaded, load
from eval.bench._report import Settings, load_average, machine
from rag.errors import UsageError
from rag.generators._attention_calibration import retrieval_heads

__all__ = ["PARTS", "QualitySettings", "run"]

PARTS = ("ops", "end", "heads", "quality")
LENGTHS = (2000, 4000, 8000)
QUESTIONS = 2
END = ("sink-recent", "quest", "chunk-block", "dhsa")
"""Selections that run end to end by default."""
DENSITIES = (0.1, 0.25, 0.5)
NEEDED = ("needle_books", "kv_retrieval")


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """Of the part quality: `questions` cases of each kind and length, and of "asked" `asked` ones if that is set.
    No `names` are all selections. Questions are of `half`: dev, or test to confirm what was chosen on dev."""

    names: Sequence[str] | None = None
    densities: Sequence[float] = DENSITIES
    kinds: Sequence[str] = KINDS
    asked: int | None = None
    near: Near | None = None
    half: str = "dev"


def run(
    settings: Settings,
    *,
    parts: Sequence[str] = PARTS,
    lengths: Sequence[int] = LENGTHS,
    questions: int = QUESTIONS,
    calibrate: Path | None = None,
    rows: Path | None = None,
    quality: QualitySettings = QualitySettings(),  # frozen
    dtypes: Sequence[str] = ("", "float32"),
    loaded: Loaded | None = None,
) -> dict[str, Any]:
    """The report. `dtypes` are those of the part ops; "" is what the model is run in, as in the other parts."""
    import torch

    if unknown := sorted(set(parts) - set(PARTS)):
        raise UsageError(f"attention: no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if unknown := sorted(set(quality.kinds) - set(KINDS)):
        raise UsageError(f"attention: no kind {', '.join(unknown)}; there are {', '.join(KINDS)}")
    if quality.half not in ("dev", "test"):
        raise UsageError(f"attention: half must be dev or test, not {quality.half!r}")
    if calibrate is not None and "quality" not in parts:
        raise UsageError("attention: --calibrate needs the part quality")
    torch.set_num_threads(settings.threads)
    data, started = _data(settings), load_average()
    model = load() if loaded is None else loaded
    report: dict[str, Any] = {"bench": "attention", "model": _model(model), "half": quality.half}
    report["sets"] = [name for name in (*NEEDED, *ASKED) if (data / name).is_dir()]
    if "ops" in parts:
        report["ops"] = _ops(model, data, lengths, settings, dtypes, quality.names, own=loaded is not None)
    if "end" in parts:
        report["end"] = _end(model, data, lengths, settings, quality)
    if "heads" in parts:
        report["heads"] = [_heads(model, data, length, questions, settings, quality, rows) for length in lengths]
    if "quality" in parts:
        report["quality"] = [_quality(model, data, length, questions, settings, quality, rows) for length in lengths]
        from eval.bench._attention_report import calibration

        report["calibration"] = calibration(report)
    report["machine"] = {
        **machine(), "threads": settings.threads, "load_before": started, "load_after": load_average(),
    }  # fmt: skip
    return _concluded(report, settings, calibrate)


def _concluded(report: dict[str, Any], settings: Settings, calibrate: Path | None) -> dict[str, Any]:
    from eval.bench._attention_report import claims_of, tables
    from rag.generators._attention_calibration import write_attention_calibration

    report["claims"] = claims_of(report)
    if calibrate is not None:
        write_attention_calibration(calibrate, report["calibration"])
    _tell(settings, tables(report))
    return report


def _data(settings: Settings) -> Path:
    """The folder of the public data; UsageError without it: there is no other long text with known answers."""
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    data = settings.data or beside
    missing = [name for name in NEEDED if not (data / name).is_dir()]
    if missing:
        raise UsageError(
            f"attention: {data} has no {', '.join(missing)}. Give the folder of the public evaluation data with "
            "--data DIR or CHUNKWISE_DATA"
        )
    return data


def _model(loaded: Loaded) -> dict[str, Any]:
    model = loaded.model
    return {
        "family": model.config.model_type,
        "layers": model.layers,
        "dtype": str(model.dtype).removeprefix("torch."),
        "fingerprint": model.fingerprint,
    }


# ---------------------------------------------------------------------- parts


def _ops(
    model: Loaded, data: Path, lengths: Sequence[int], settings: Settings, dtypes: Sequence[str],
    names: Sequence[str] | None, *, own: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    from eval.bench._attention_ops import op_rows, states_of
    from eval.bench._attention_plans import NAMES
    from eval.bench._attention_prompts import prose

    found: list[dict[str, Any]] = []
    for dtype in ("",) if own else dtypes:
        using = model if not dtype or dtype == str(model.model.dtype).removeprefix("torch.") else load(dtype)
        for length in lengths:
            _tell(settings, f"ops: {length} tokens, {using.model.dtype}")
            (ids,) = prose(using, data, tokens=length, count=1)
            found += op_rows(states_of(using, ids), rounds=settings.rounds, names=names or NAMES)
    return found


def _end(
    model: Loaded, data: Path, lengths: Sequence[int], settings: Settings, quality: QualitySettings
) -> list[dict[str, Any]]:
    """At a quarter of the context, and at least 512 slots."""
    from eval.bench._attention_end import end_rows
    from eval.bench._attention_plans import plans
    from eval.bench._attention_prompts import prose

    found = []
    for length in lengths:
        _tell(settings, f"end to end: {length} tokens")
        (ids,) = prose(model, data, tokens=length, count=1)
        density = max(0.25, min(1.0, 512 / length)) if length > 512 else 0.25
        contenders = plans(length, [density], quality.names or END, retrieval_heads(model.model.fingerprint))
        rows = end_rows(model, ids, contenders, rounds=settings.rounds)
        found += [{**row, "asked": length, "dtype": str(model.model.dtype).removeprefix("torch.")} for row in rows]
    return found


def _heads(
    model: Loaded, data: Path, length: int, questions: int, settings: Settings, how: QualitySettings, rows: Path | None
) -> dict[str, Any]:
    from eval.bench._attention_heads import heads_part
    from eval.bench._attention_priors import by_retriever
    from eval.bench._attention_prompts import cases_of

    near = how.near or by_retriever(rows / "vectors" if rows is not None else None)
    cases = cases_of(
        model, data, "asked", tokens=length, count=how.asked or questions, seed=settings.seed, near=near, half=how.half
    )
    return {"length": length, **heads_part(model, cases, tell=lambda text: _tell(settings, text))}


def _quality(
    model: Loaded, data: Path, length: int, questions: int, settings: Settings, how: QualitySettings, rows: Path | None
) -> dict[str, Any]:
    from eval.bench._attention_plans import plans
    from eval.bench._attention_priors import by_retriever
    from eval.bench._attention_prompts import cases_of
    from eval.bench._attention_quality import quality, summary

    near = how.near or by_retriever(rows / "vectors" if rows is not None else None)
    if rows is not None:
        rows.mkdir(parents=True, exist_ok=True)
    told: list[dict[str, Any]] = []
    for kind in how.kinds:
        count = how.asked if kind == "asked" and how.asked is not None else questions
        _tell(settings, f"quality: {kind}, about {length} tokens")
        told += quality(
            model,
            cases_of(model, data, kind, tokens=length, count=count, seed=settings.seed, near=near, half=how.half),
            lambda tokens: plans(tokens, how.densities, how.names, retrieval_heads(model.model.fingerprint)),
            seed=settings.seed,
            rows_file=rows / f"quality-{length}.jsonl" if rows is not None else None,
            tell=lambda text: _tell(settings, text),
        )
    return {"length": length, "plans": summary(told), "rows": told}


def _tell(settings: Settings, text: str) -> None:
    if not settings.quiet:
        print(text, file=sys.stderr, flush=True)


def _main(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the JSON report goes.")],
    data: Annotated[Path | None, typer.Option("--data", envvar="CHUNKWISE_DATA")] = None,
    parts: Annotated[str, typer.Option(help=f"Of {', '.join(PARTS)}, with commas between.")] = ",".join(PARTS),
    lengths: Annotated[str, typer.Option(help="Tokens of context, with commas between.")] = "2000,4000,8000",
    questions: Annotated[int, typer.Option(min=1, help="Cases of every kind and length.")] = QUESTIONS,
    asked: Annotated[int | None, typer.Option(min=1, help="Cases of the kind asked.")] = None,
    half: Annotated[
        str, typer.Option(help="Of the questions: dev, or test to confirm what was chosen on dev.")
    ] = "dev",
    kinds: Annotated[str, typer.Option(help=f"Of {', '.join(KINDS)}, with commas between.")] = ",".join(KINDS),
    selections: Annotated[str, typer.Option(help="With commas between; all by default.")] = "",
    densities: Annotated[str, typer.Option(help="With commas between.")] = ",".join(map(str, DENSITIES)),
    rows: Annotated[Path | None, typer.Option(help="Folder that keeps what was measured of quality.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    seed: Annotated[int, typer.Option(help="Draws the questions.")] = 0,
    calibrate: Annotated[Path | None, typer.Option(help="Where the table for attention auto goes.")] = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    report = run(
        Settings(data=data, rounds=rounds, seed=seed, threads=threads),
        parts=parts.split(","),
        lengths=[int(one) for one in lengths.split(",")],
        questions=questions,
        calibrate=calibrate,
        rows=rows,
        quality=QualitySettings(
            names=selections.split(",") if selections else None,
            densities=[float(one) for one in densities.split(",")],
            kinds=kinds.split(","),
            asked=asked,
            half=half,
        ),
    )
    out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(_main)
