"""The end of the line: what a generator read, what it wrote, and the finished answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rag.text import assemble
from rag.types import Bubble, CompressedContext, Decision, Hit, Span, content_key

__all__ = ["Answer", "Citation", "Generation", "GenerationStats", "Prompt", "Segment", "StageTrace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Citation:
    """A mark `[mark]` in the answer and the exact place that it opens: `document.text[span] == text`."""

    mark: int
    chunk_id: str
    doc_id: str
    source: str
    span: Span
    text: str
    page: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of a prompt. `key` names its content for KV reuse; `chunk_id` is set for context pieces."""

    role: Literal["system", "context", "question"]
    text: str
    key: str
    chunk_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The exact text that a generator read, in order: system, pieces in stable order, question last."""

    segments: tuple[Segment, ...] = ()

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTrace:
    """What one stage of a run did. `seconds` is wall time."""

    stage: str
    plugin: str
    seconds: float
    items_in: int
    items_out: int
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationStats:
    """Token and time accounts of one generation. `density` is the share of attention scores computed (1.0 = all).

    Of the prompt's tokens `reused_tokens` had their keys and values from before and `computed_tokens` ran through the
    model; `repaired_tokens` are those of the latter that were there and were computed again. `bytes_loaded` is the size
    of the keys and values that came from disk. `policy` says how they were reused, "none" for not at all, "server" by
    the endpoint itself, "batch" together with other prompts behind what they share. Of the tokens that were guessed
    ahead (`drafted_tokens`), `accepted_tokens` held.

    The deviations are the mean divergence (KL) from full prefill in nats a token of the answer: as a calibrated table
    predicts it, and as it was measured, with the share of tokens whose most likely one is the same. None: not known.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    repaired_tokens: int = 0
    computed_tokens: int = 0
    new_tokens: int = 0
    ttft_seconds: float = 0.0
    total_seconds: float = 0.0
    bytes_loaded: int = 0
    policy: str = "none"
    attention: str = "none"
    density: float = 1.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    predicted_deviation: float | None = None
    measured_deviation: float | None = None
    measured_agreement: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What a generator returns. `sentences` are spans of `text`; `supported[i]` judges `sentences[i]`.

    No sentences, no citations: the documents do not answer the question, and `text` says so.
    """

    text: str
    citations: tuple[Citation, ...] = ()
    sentences: tuple[Span, ...] = ()
    supported: tuple[bool, ...] = ()
    prompt: Prompt = Prompt()
    stats: GenerationStats = GenerationStats()
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A finished run: all that is needed to draw it or to audit it. `run_id` is empty when nothing was stored.

    `candidates` are the hits that the selector was given.
    """

    question: str
    text: str
    citations: tuple[Citation, ...]
    sentences: tuple[Span, ...]
    supported: tuple[bool, ...]
    context: CompressedContext
    bubble: Bubble
    prompt: Prompt
    stats: GenerationStats
    trace: tuple[StageTrace, ...]
    candidates: tuple[Hit, ...] = ()
    run_id: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The JSON-safe form that `rag ask --json` prints. Spans are `[start, end]` pairs.

        `digest` names the text of the bubble, and of the context, as one assembled text. `hits` of the bubble are as
        the selector left them: it may rank its candidates anew, and add chunks that are none.
        """
        context = self.context
        return {
            "question": self.question,
            "answer": self.text,
            "supported": list(self.supported),
            "sentences": [_pair(span) for span in self.sentences],
            "citations": [_citation_to_dict(citation) for citation in self.citations],
            "candidates": [_hit_to_dict(hit) for hit in self.candidates],
            "bubble": {
                "budget": self.bubble.budget,
                "token_count": self.bubble.token_count,
                "digest": content_key("", assemble(self.bubble.texts)),
                "chunk_ids": [hit.chunk.id for hit in self.bubble.hits],
                "hits": [_hit_to_dict(hit) for hit in self.bubble.hits],
                "kept": [[_pair(span) for span in spans] for spans in self.bubble.spans],
                "decisions": [_decision_to_dict(decision) for decision in self.bubble.decisions],
            },
            "context": {
                "token_count": context.token_count,
                "source_token_count": context.source_token_count,
                "keep_ratio": context.keep_ratio,
                "compressor": context.compressor,
                "digest": content_key("", assemble(piece.text for piece in context.pieces)),
                "pieces": [
                    {
                        "chunk_id": piece.chunk_id,
                        "doc_id": piece.doc_id,
                        "span": _pair(piece.span),
                        "kept": [_pair(span) for span in piece.kept],
                        "text": piece.text,
                        "verbatim": piece.verbatim,
                    }
                    for piece in context.pieces
                ],
                "decisions": [_decision_to_dict(decision) for decision in context.decisions],
            },
            "prompt": self.prompt.text,
            "stats": asdict(self.stats),
            "trace": [{**asdict(stage), "notes": dict(stage.notes)} for stage in self.trace],
            "run_id": self.run_id,
        }


def _pair(span: Span) -> list[int]:
    return [span.start, span.end]


def _hit_to_dict(hit: Hit) -> dict[str, Any]:
    return {
        "rank": hit.rank,
        "chunk_id": hit.chunk.id,
        "score": float(hit.score),
        "retriever": hit.retriever,
        "parts": {name: float(value) for name, value in hit.parts.items()},
    }


def _decision_to_dict(decision: Decision) -> dict[str, Any]:
    return {
        **{name: getattr(decision, name) for name in ("chunk_id", "action", "relevance", "gain", "redundancy")},
        **{"tokens": decision.tokens, "reason": decision.reason},
        "span": _pair(decision.span) if decision.span else None,
        "parts": dict(decision.parts),
    }


def _citation_to_dict(citation: Citation) -> dict[str, Any]:
    return {
        "mark": citation.mark,
        "chunk_id": citation.chunk_id,
        "doc_id": citation.doc_id,
        "source": citation.source,
        "start": citation.span.start,
        "end": citation.span.end,
        "page": citation.page,
        "text": citation.text,
    }
