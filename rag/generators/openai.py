"""A language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rag.answer import Generation, GenerationStats, Prompt
from rag.embedders._client import open_client, readable_errors
from rag.errors import ConfigError
from rag.generators._citations import verified
from rag.generators._completion import Completion
from rag.generators._order import PieceOrder, check_order, ordered
from rag.generators._reuse import told
from rag.generators._sentences import context_sentences, documents_of
from rag.prompt import NOT_FOUND, build_prompt
from rag.protocols import Corpus, Generator, TextModel, TokenCounter
from rag.tokens import WordCounter
from rag.types import CompressedContext

if TYPE_CHECKING:
    from openai import OpenAI


@dataclass(frozen=True, kw_only=True)
class OpenaiGenerator(Generator):
    """Writes the answer over HTTP with any OpenAI-compatible endpoint: question and context leave this machine.

    `base_url` "" means OPENAI_BASE_URL, else OpenAI itself; the key is read from OPENAI_API_KEY only. Sentences are
    checked as in the generator local. Budgets are counted in words, since the tokenizer is not known here.

    A server that keeps the keys and values of prefixes (vLLM, SGLang, LMCache) knows those of an earlier prompt up to
    the first byte that differs: the system text, then pieces, then the question. `piece_order` "stable" sorts pieces by
    document and place, so that questions over the same pieces differ in the question alone; "relevance" puts the best
    document first. `cache_salt` is sent to vLLM when it is set: prompts with different salts share nothing. How many
    tokens were known is read from the usage (vLLM tells it with --enable-prompt-tokens-details).
    """

    model: str = "gpt-4.1-mini"
    base_url: str = ""
    max_new_tokens: int = 400
    temperature: float = 0.0
    seed: int = 0
    timeout_seconds: float = 120.0
    min_overlap: float = 0.5
    piece_order: PieceOrder = "relevance"
    cache_salt: str = ""

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("openai: model must name a model of the endpoint, it is empty")
        if self.max_new_tokens < 1 or self.temperature < 0 or self.timeout_seconds <= 0:
            raise ConfigError(
                "openai: max_new_tokens must be >= 1, temperature >= 0 and timeout_seconds > 0, not "
                f"{self.max_new_tokens}, {self.temperature} and {self.timeout_seconds}"
            )
        if not 0 <= self.min_overlap <= 1:
            raise ConfigError(f"openai: min_overlap must lie in [0, 1], not {self.min_overlap}")
        check_order("openai", self.piece_order)

    @cached_property
    def counter(self) -> TokenCounter:
        return WordCounter()

    @property
    def text_model(self) -> TextModel:
        return Completion(self._complete)

    def generate(
        self, context: CompressedContext, corpus: Corpus, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        if not context.pieces:
            if on_text:
                on_text(NOT_FOUND)
            return Generation(text=NOT_FOUND)
        context = ordered(context, self.piece_order)
        documents = documents_of(context, corpus)
        prompt = build_prompt(context, documents)
        text, stats = self._write(prompt, on_text)
        made = verified(text, context_sentences(context, documents), self.min_overlap, prompt=prompt, stats=stats)
        return replace(made, notes={**made.notes, **told(stats)})

    @cached_property
    def _client(self) -> OpenAI:
        return open_client(self.base_url, timeout_seconds=self.timeout_seconds, purpose="generator openai")

    def _complete(self, prompt: str, max_tokens: int) -> Iterator[str]:
        """The reply to `prompt` alone so far; `max_new_tokens` and `temperature` are for answers."""
        text = ""
        with readable_errors(self._client, "generator openai"):
            stream = self._client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=max_tokens,
                temperature=0.0,
                seed=self.seed,
                stream=True,
            )
            for event in stream:
                text += (event.choices[0].delta.content or "") if event.choices else ""
                yield text

    def _write(self, prompt: Prompt, on_text: Callable[[str], None] | None) -> tuple[str, GenerationStats]:
        """The streamed text, and the accounts that the server gives at the end of the stream."""
        started = time.perf_counter()
        first, text, usage = 0.0, "", None
        system, *rest = prompt.segments
        with readable_errors(self._client, "generator openai"):
            stream = self._client.chat.completions.create(
                model=self.model,
                messages=[
                    {"role": "system", "content": system.text},
                    {"role": "user", "content": "".join(segment.text for segment in rest)},
                ],
                max_tokens=self.max_new_tokens,
                temperature=self.temperature,
                seed=self.seed,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"cache_salt": self.cache_salt} if self.cache_salt else None,
            )
            for event in stream:
                usage = event.usage or usage
                piece = event.choices[0].delta.content if event.choices else None
                if piece:
                    first = first or time.perf_counter()
                    text += piece
                    if on_text:
                        on_text(piece)
        now = time.perf_counter()
        return text.strip(), _stats(usage, (first or now) - started, now - started)


def _stats(usage: Any, ttft_seconds: float, total_seconds: float) -> GenerationStats:
    details = getattr(usage, "prompt_tokens_details", None)
    prompt_tokens = getattr(usage, "prompt_tokens", 0) or 0
    reused = getattr(details, "cached_tokens", 0) or 0
    return GenerationStats(
        prompt_tokens=prompt_tokens,
        reused_tokens=reused,
        computed_tokens=prompt_tokens - reused,
        new_tokens=getattr(usage, "completion_tokens", 0) or 0,
        ttft_seconds=ttft_seconds,
        total_seconds=total_seconds,
        policy="none" if details is None else "server",
    )
