"""Counters for Prometheus, each server with a registry of its own. They are read at /metrics and sent nowhere."""

from __future__ import annotations

from typing import Any

from rag.answer import Answer
from rag.errors import missing_extra

__all__ = ["Metrics"]

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """What the server did. Labels are routes, stages and reasons, never texts, ids or tenants."""

    def __init__(self) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError as error:
            raise missing_extra("prometheus-client", "serve", "rag serve") from error
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"namespace": "rag", "registry": self.registry}
        self.requests = Counter("requests", "Requests answered.", ("route", "method", "status"), **own)
        self.seconds = Histogram(
            "request_seconds", "From request to end of answer.", ("route",), buckets=_BUCKETS, **own
        )
        self.refused = Counter("refused", "Requests refused before any work.", ("reason",), **own)
        self.stages = Histogram("stage_seconds", "One stage of an answer.", ("stage",), buckets=_BUCKETS, **own)
        self.tokens = Counter("tokens", "Tokens of prompts and answers.", ("kind",), **own)
        self.batches = Histogram("batch_size", "Items done together.", ("work",), buckets=_SIZES, **own)
        self.inside = Gauge("requests_inside", "Requests that run or wait.", **own)
        self.generation = Gauge("index_generation", "Generation of the index that is served.", **own)

    def answered(self, answer: Answer) -> None:
        """Count the stages and tokens of an answer."""
        for stage in answer.trace:
            self.stages.labels(stage.stage).observe(stage.seconds)
        self.tokens.labels("prompt").inc(answer.stats.prompt_tokens)
        self.tokens.labels("new").inc(answer.stats.new_tokens)

    def text(self) -> bytes:
        """All of it in the text format of Prometheus."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
