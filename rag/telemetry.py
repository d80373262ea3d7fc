"""OpenTelemetry spans around every stage. Without the package `opentelemetry-api` nothing happens.

With the package alone nothing happens either: spans are made by an SDK that the user sets up, and go where it sends
them. Names follow the GenAI conventions of OpenTelemetry (status: development) where they have one, and our own begin
with `rag.`; `openinference.span.kind` lets viewers of traces draw the stages.

    Pipeline.ask        invoke_workflow rag.ask       CHAIN       tokens, citations
    Pipeline.search     retrieval PLUGIN              RETRIEVER   number of hits
    select, compress    rag.select, rag.compress      RERANKER, CHAIN
    generate            chat PLUGIN                   LLM         tokens in, out, reused
    a batch of ingest   rag.ingest_batch              CHAIN       files done, failed

The text of questions is no attribute unless OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT is true.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from rag.answer import GenerationStats, StageTrace
    from rag.report import Progress

__all__ = ["batch_spans", "stage_span", "traced"]

Given = ParamSpec("Given")
Made = TypeVar("Made")
_CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_KINDS = {"retrieval": "RETRIEVER", "select": "RERANKER", "generate": "LLM"}
_SCALARS = (str, bool, int, float)


@lru_cache(maxsize=1)
def _has_api() -> bool:
    try:
        import opentelemetry.trace  # noqa: F401
    except ImportError:
        return False
    return True


def _tracer() -> Tracer | None:
    """The tracer of whichever SDK is set up by now; None without the package."""
    if not _has_api():
        return None
    from opentelemetry import trace

    return trace.get_tracer("chunkwise")


def traced(operation: str, slot: str = "") -> Callable[[Callable[Given, Made]], Callable[Given, Made]]:
    """Decorates `Pipeline.ask` and `Pipeline.search`: a span while the call lasts, its errors on it.

    `slot` is the part of the config whose name the span bears. A call that is given the path of an index makes none,
    since it calls itself with the open index.
    """

    def decorate(call: Callable[Given, Made]) -> Callable[Given, Made]:
        @wraps(call)
        def within(*given: Given.args, **named: Given.kwargs) -> Made:
            tracer = _tracer()
            index: Any = named.get("index", given[2] if len(given) > 2 else None)
            if tracer is None or index is None or isinstance(index, str | os.PathLike):
                return call(*given, **named)
            plugin = _plugin(given[0], slot)
            attributes = {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "chunkwise",
                "openinference.span.kind": _KINDS.get(operation, "CHAIN"),
                "gen_ai.data_source.id": index.directory.name,
            }
            if plugin:
                attributes["rag.plugin"] = plugin
            if os.environ.get(_CONTENT, "").lower() == "true":
                attributes["gen_ai.retrieval.query.text"] = str(named.get("question", given[1]))
            with tracer.start_as_current_span(f"{operation} {plugin or 'rag.ask'}", attributes=attributes) as span:
                made = call(*given, **named)
                if span.is_recording():
                    span.set_attributes(_outcome(made))
                return made

        return within

    return decorate


def stage_span(stage: StageTrace, stats: GenerationStats | None = None) -> None:
    """The span of a stage that has just ended. `retrieve` has one already: that of `Pipeline.search`."""
    tracer = _tracer()
    if tracer is None or stage.stage == "retrieve" or (stage.stage == "generate" and stats is None):
        return
    end = time.time_ns()
    name = f"chat {stage.plugin}" if stats else f"rag.{stage.stage}"
    span = tracer.start_span(name, start_time=end - int(stage.seconds * 1e9))
    if span.is_recording():
        span.set_attributes(
            {
                "openinference.span.kind": _KINDS.get(stage.stage, "CHAIN"),
                "rag.plugin": stage.plugin,
                "rag.items_in": stage.items_in,
                "rag.items_out": stage.items_out,
                **({"gen_ai.operation.name": "chat", **_usage(stats)} if stats else {}),
                **{f"rag.{key}": value for key, value in stage.notes.items() if isinstance(value, _SCALARS)},
            }
        )
    span.end(end_time=end)


def batch_spans(on_progress: Callable[[Progress], None] | None) -> Callable[[Progress], None] | None:
    """`on_progress` that makes a span of the time since the batch before as well; as it is without the package."""
    if _tracer() is None:
        return on_progress
    before = (time.time_ns(), 0, 0)

    def told(progress: Progress) -> None:
        nonlocal before
        (start, done, failed), end = before, time.time_ns()
        tracer = _tracer()
        if tracer is not None:
            span = tracer.start_span("rag.ingest_batch", start_time=start)
            span.set_attribute("openinference.span.kind", "CHAIN")
            span.set_attribute("rag.files", progress.done - done)
            span.set_attribute("rag.files_failed", progress.failed - failed)
            span.end(end_time=end)
        before = (end, progress.done, progress.failed)
        if on_progress:
            on_progress(progress)

    return told


def _plugin(pipeline: Any, slot: str) -> str:
    spec = getattr(pipeline.config, slot) if slot else ""
    return str(spec if isinstance(spec, str) else spec.get("use", ""))


def _outcome(made: Any) -> dict[str, Any]:
    if isinstance(made, list):
        return {"rag.items_out": len(made)}
    facts = {"rag.run_id": made.run_id, "rag.citations": len(made.citations)}
    return {**facts, "rag.context_tokens": made.context.token_count, **_usage(made.stats)}


def _usage(stats: GenerationStats) -> dict[str, int]:
    return {
        "gen_ai.usage.input_tokens": stats.prompt_tokens,
        "gen_ai.usage.output_tokens": stats.new_tokens,
        "gen_ai.usage.cache_read.input_tokens": stats.reused_tokens,
    }
