"""Both tables as JSON and as Markdown, the papers' numbers beside ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from eval._reports import write_report
from eval.bench._report import machine
from eval.chunks.data import STRUCTURED, pool_of, read_structured
from eval.chunks.vectors import CachedEmbedder
from eval.papers.adaptive import MEASURES, adaptive_table
from eval.papers.idc import idc_table
from eval.sets import read_set
from rag.registry import build

__all__ = ["markdown", "run", "write"]


def run(data: Path, cache: Path | None, tell: Callable[[str], None]) -> dict[str, Any]:
    """Both tables over the sets in `data`, with the bundled encoder. UsageError where a set is absent."""
    articles = pool_of([read_set(data / "squad_long", "answer")], "all")
    regulation = read_structured(data / STRUCTURED)
    inner = build("embedder", {"use": "minilm", "overlong": "window"}, services={})
    embedder = CachedEmbedder(inner=inner, folder=cache)
    return {
        "kind": "paper-tables",
        "machine": machine(),
        "embedder": embedder.fingerprint,
        "tokens": embedder.counter.name,
        "adaptive_chunking": adaptive_table(regulation, embedder, tell),
        "idc": idc_table(articles, embedder, tell),
    }


def write(report: Mapping[str, Any], folder: Path) -> None:
    """`papers.json` and `papers.md` in `folder`."""
    write_report(folder, "papers", report, markdown(report))


def markdown(report: Mapping[str, Any]) -> str:
    """The tables for people."""
    lines = ["# Tables of papers, run again", "", f"Encoder {report['embedder']}; tokens of {report['tokens']}.", ""]
    return "\n".join([*lines, *_adaptive(report["adaptive_chunking"]), "", *_idc(report["idc"])]) + "\n"


def _adaptive(found: Mapping[str, Any]) -> list[str]:
    names = (*MEASURES, "mean")
    lines = [
        "## Adaptive Chunking (arXiv 2603.25333), Table 3",
        "",
        f"Ours / paper, times 100. Ours: {found['documents']} of the paper's 33 documents (those free to share), "
        "MiniLM instead of jina-embeddings-v3 and GPT-4o's tokens, sentences as pieces of ICC, vectors of long "
        "texts as means of sentence vectors; RC on the pairs and BI on the blocks that the authors published. "
        "Regex: patterns of a library, where the paper asks GPT-4o. * post-processed, a candidate of adaptive, whose "
        "mean is the best by construction.",
        "",
        f"| method | tokens | {' | '.join(names)} |",
        "|---|---:" + "|---:" * len(names) + "|",
    ]
    for row in found["rows"]:
        cells = [f"{row['ours'][name]:.1f} / {row['paper'][name]:.1f}" for name in names]
        lines.append(f"| {row['method']} | {row['mean_tokens']:.0f} | {' | '.join(cells)} |")
    chosen = ", ".join(f"{name} {count}" for name, count in sorted(found["chosen"].items()))
    alone = ", ".join(f"{name} {value:+.2f}" for name, value in found["size_alone"].items() if value is not None)
    return [*lines, "", f"Chosen: {chosen} (paper: page 48 %, recursive 1100 42 %, regex 6 %, recursive 600 4 %).",
            f"Rank correlation with the mean chunk size of a document: {alone}."]  # fmt: skip


def _idc(found: Mapping[str, Any]) -> list[str]:
    lines = [
        "## IDC (arXiv 2602.14784), SQuAD",
        "",
        f"The answer lies inside one of the first chunks of its own article; {found['questions']} questions over "
        f"{found['documents']} articles. Sentence vectors of MiniLM, 0.6 dense + 0.4 BM25, all methods alike. The "
        "paper's own rows use other article choices, an API encoder, and the test questions as intents; ours use "
        "intents that know no question. Larger chunks hold more answers, so read it with the mean length.",
        "",
        "| method | chunks | mean characters | R@1 | R@5 | MRR | inside one chunk |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found["rows"]:
        ours = " | ".join(f"{value:.3f}" for value in row["ours"].values())
        lines.append(f"| {row['method']} | {row['chunks']} | {row['mean_chars']:.0f} | {ours} |")
    for method, sets in found["paper"].items():
        for name, values in sets.items():
            numbers = " | ".join(f"{value:.3f}" for value in values)
            lines.append(f"| paper: {method}, {name} | - | - | {numbers} | - |")
    return lines
