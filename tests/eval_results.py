"""Made-up results of `rag eval run`: two sets, two configurations, every failure class, texts that must not act."""

from __future__ import annotations

from typing import Any

STAGES = ("chunk", "retrieve", "select", "compress", "generate")
FAILURES = (None, "parse", "chunk", "retrieve", "select", "compress", "generate", "error", None, None, None, None)
HOSTILE = (
    '<script>alert(1)</script><img src="https://evil.example/x" onerror=alert(2)>{{7*7}}"\'`|\u202egpj\u2066\x1b[2J\x00'
)
"""HTML, a template expression, Markdown, bidi controls, terminal and NUL bytes."""

_TEXT = (
    "Travel inside the country needs no approval. Travel above 5,000 EUR is approved by the chief financial officer. "
    "Receipts are handed in within thirty days."
)
_GOLD = (45, 112)


def results(text: str = "") -> dict[str, Any]:
    """Results of format 1. `text` is added to every name, question, answer, source and passage."""
    sets, configs = [f"handbook{text}", f"squad_long{text}"], [f"default{text}", f"small-budget{text}"]
    runs = [
        _run(name, config, at + 2 * number, text)
        for number, name in enumerate(sets)
        for at, config in enumerate(configs)
    ]
    return {
        "format": 1, "seed": 0, "resamples": 1000, "versions": {"numpy": "2.4.6", "chunkwise": "0.1.0"},
        "sets": {
            name: {
                "documents": 35, "questions": len(FAILURES), "half": "all", "has_answers": True,
                "digests": {"documents": "8020c23615998081", "questions": "a01d1953666e3ab5"},
            }
            for name in sets
        },
        "configs": {
            label: {"config": {"chunker": "sentence", "budget": budget}, "hash": f"{budget:016x}"}
            for label, budget in zip(configs, (1600, 400), strict=True)
        },
        "runs": runs,
        "comparisons": [row for name in sets for row in _compared(name, *configs)],
    }  # fmt: skip


def _run(name: str, config: str, at: int, text: str) -> dict[str, Any]:
    shift = 0.06 * at

    def measure(mean: float, better: str = "higher", proxy: bool = False, spread: float = 0.05) -> dict[str, Any]:
        low, high = round(mean - spread, 6), round(mean + spread, 6)
        return {"mean": round(mean, 6), "low": low, "high": high, "n": len(FAILURES), "proxy": proxy, "better": better}

    curve = [(tokens, y - shift) for tokens, y in ((200, 0.62), (400, 0.76), (800, 0.88), (1600, 0.95))]
    kinds = [kind or "none" for kind in FAILURES]
    left = [1.0, 0.93 - shift, 0.81 - shift, 0.79 - shift, 0.55 - shift]
    return {
        "set": name, "config": config, "chunks": 812,
        "measures": {
            "nDCG@10": measure(0.71 - shift), "span recall": measure(0.79 - shift), "answer F1": measure(0.55 - shift),
            "IoU": measure(0.2), "K-precision": measure(0.91, proxy=True),
            "context tokens": measure(1512.4 - 280 * at, better="lower", spread=31.5),
        },
        "curve": [
            {"tokens": tokens, "recall": round(y, 6), "low": round(y - 0.05, 6), "high": round(y + 0.05, 6)}
            for tokens, y in curve
        ],
        "waterfall": [
            {"stage": stage, "value": round(y, 6), "low": round(y - 0.04, 6), "high": round(min(1.0, y + 0.04), 6)}
            for stage, y in zip(STAGES, left, strict=True)
        ],
        "failures": {kind: kinds.count(kind) for kind in ("none", "parse", *STAGES, "error")},
        "questions": [_question(number, failure, text) for number, failure in enumerate(FAILURES)],
    }  # fmt: skip


def _question(number: int, failure: str | None, text: str) -> dict[str, Any]:
    source, passage = f"handbook{text}.md", _TEXT + text
    start = 1000
    gold = (start + _GOLD[0], start + _GOLD[1])
    kept = [[start, start + 44]] if failure == "compress" else [[start + 45, start + len(passage)]]
    context = [
        {
            "source": source, "start": start, "end": start + len(passage), "kept": kept, "before": f"of travel. {text}",
            "text": passage, "after": " Unused days expire in March.",
        }
    ]  # fmt: skip
    return {
        "query_id": f"q{number:02}{text}", "question": f"Who approves travel above 5,000 EUR ({number})?{text}",
        "answers": [f"the chief financial officer{text}", "the CFO"],
        "answer": "" if failure == "error" else f"The chief financial officer.{text}",
        "failure": failure, "error": f"GenerationError: the endpoint closed{text}" if failure == "error" else None,
        "scores": {"answer F1": 0.0 if failure else 1.0, f"span recall{text}": 0.5},
        "evidence": [{"source": source, "start": gold[0], "end": gold[1], "text": _TEXT[slice(*_GOLD)] + text}],
        "hits": [
            {"rank": rank, "source": source, "start": start, "end": start + 90, "score": score, "gold": rank == 2}
            for rank, score in ((1, 0.9), (2, 0.7), (3, 0.4))
        ],
        "context": [] if failure in ("parse", "retrieve", "error") else context,
        "citations": [] if failure == "error" else [{"source": source, "start": gold[0] + 30, "end": gold[1] + 20}],
    }  # fmt: skip


def _compared(name: str, a: str, b: str) -> list[dict[str, Any]]:
    rows = [("nDCG@10", -0.06, 0.001), ("span recall", -0.06, 0.2), ("context tokens", -280.0, 0.002)]
    return [
        {
            "set": name, "measure": measure, "a": a, "b": b, "difference": difference,
            "low": round(difference * 1.6, 6), "high": round(difference * 0.4, 6), "p": p / 3, "p_holm": p,
        }
        for measure, difference, p in rows
    ]  # fmt: skip
