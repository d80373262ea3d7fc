"""SCOPE (COLM 2026, arXiv 2508.15813): groups of sentences, each shortened as far as its place in the order allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from compressors._asking import Reader
from compressors._lumps import fitted_whole
from compressors._nearness import head_vectors
from compressors._scope import Group, Keywords, groups_of, has, keywords_of, ratios, sizes_left
from compressors._words import Part, kept_spans, ledger, parts_of, whole_sentences
from rag.errors import ConfigError
from rag.protocols import Compressor, Corpus, Embedder, Generator, TokenCounter, service
from rag.spans.pieces import aim, check_size, context_of, text_of, unchanged
from rag.text import assemble, lexical_words
from rag.types import Bubble, CompressedContext, Decision, Piece, Span

_PROMPT = (
    "Shorten the passage to at most {words} words. Leave out what the question does not need. Keep these words as they "
    "are: {keywords}.\n\nQuestion: {question}\n\nPassage:\n{text}\n\nShortened passage:"
)


@dataclass(frozen=True, kw_only=True)
class ScopeCompressor(Compressor):
    """Shortens groups of sentences, the least relevant first, until the target is met.

    1. Groups: a new one where a sentence's cosine with the one before is under `similarity`. 2. Outliers: groups under
    `min_tokens` join the nearer neighbour, none goes over `max_tokens`; what is hardly text (rows of numbers, code) is
    kept or dropped, not shortened. 3. Ratio: clip(rate * w, least_ratio, 1), where w is softmax(relevance /
    temperature) over its mean, weighted by length; relevance is the cosine with the question, without an embedder the
    share of the question's words. 4. Priorities: the least relevant group first, and only until the target is met.
    5. Keywords of a group: its `keywords` words with the highest tf * idf, and its protected spans.

    `mode` "extract" (default, no model asked): of a group the sentences with the most keywords and relevance stay, so
    all is verbatim. "rewrite": the pipeline's model shortens each group; where a keyword is lost or the text is not
    shorter, the extracted sentences stand instead. A piece with rewritten text is marked `verbatim=False`, and its
    `kept` are the spans that were rewritten. It takes a capable model; and a passage can steer it, as any prompt.

    Deviations: there is no official code and no constants; the ratios are our reading. Extraction is ours.
    """

    verbatim: ClassVar[bool] = False

    target: int | None = None
    rate: float = 0.5
    mode: Literal["extract", "rewrite"] = "extract"
    similarity: float = 0.3
    min_tokens: int = 24
    max_tokens: int = 256
    least_ratio: float = 0.1
    temperature: float = 0.2
    keywords: int = 5
    counter: TokenCounter = service()
    embedder: Embedder | None = service(default=None)
    generator: Generator | None = service(default=None)

    def __post_init__(self) -> None:
        check_size("scope", self.target, self.rate)
        if self.mode not in ("extract", "rewrite"):
            raise ConfigError(f"scope: mode must be extract or rewrite, not {self.mode!r}")
        if not (-1 <= self.similarity <= 1 and 0 <= self.least_ratio <= 1 and 0 < self.temperature < float("inf")):
            raise ConfigError(
                "scope: similarity must lie in [-1, 1], least_ratio in [0, 1] and temperature be > 0 and finite, not "
                f"{self.similarity}, {self.least_ratio} and {self.temperature}"
            )
        if not 0 <= self.min_tokens <= self.max_tokens or self.max_tokens < 1 or self.keywords < 0:
            raise ConfigError(
                "scope: 0 <= min_tokens <= max_tokens, max_tokens >= 1 and keywords >= 0 must hold, not "
                f"{self.min_tokens}, {self.max_tokens} and {self.keywords}"
            )

    def compress(self, bubble: Bubble, corpus: Corpus) -> CompressedContext:
        size = self.counter.count(assemble(bubble.texts))
        goal = aim(size, self.target, self.rate)
        if goal >= size:
            return unchanged(bubble, self.counter, "scope")
        reader = Reader.of("scope", self.generator) if self.mode == "rewrite" else None
        words = parts_of(bubble, corpus, self.counter)
        relevance, alike = self._measured(bubble.question, words, corpus)
        groups = groups_of(words, alike, self.similarity, self.min_tokens, self.max_tokens)
        values = [max(relevance[number] for number in group.parts) for group in groups]
        share = ratios(groups, values, goal / size, self.least_ratio, self.temperature)
        left = sizes_left(groups, values, share, goal)
        keywords = keywords_of(bubble, corpus, words, groups, self.keywords)
        parts = whole_sentences(words)
        order = _order(parts, groups, values, left, keywords, relevance)
        chosen = fitted_whole(bubble, parts, order, goal, self.counter)
        reasons = [""] * len(parts)
        for group, room in zip(groups, left, strict=True):
            for number in group.parts:
                reasons[number] = f"relevance; its group may keep {room} of {group.tokens} tokens"
        decisions = list(ledger(bubble, parts, chosen, relevance, reasons))
        context = context_of(bubble, kept_spans(parts, chosen, len(bubble.hits)), self.counter, "scope", decisions)
        if reader is None:
            return context
        return _Rewriter(self, reader, bubble, parts, groups, left, keywords, chosen, goal).rewritten(context)

    def _measured(self, question: str, parts: Sequence[Part], corpus: Corpus) -> tuple[list[float], list[float]]:
        """(relevance of each sentence, how alike it is to the one before it)."""
        if self.embedder is None:
            asked = set(lexical_words(question))
            return [len(asked & set(lexical_words(part.text))) / max(1, len(asked)) for part in parts], [1.0] * len(
                parts
            )
        vectors = head_vectors(self.embedder, [part.text for part in parts], corpus)
        near = vectors @ self.embedder.embed_question(question)
        pairs = (vectors[1:] * vectors[:-1]).sum(axis=1).tolist()
        return [float(value) for value in near], [1.0, *map(float, pairs)][: len(parts)]


def _order(
    parts: Sequence[Part],
    groups: Sequence[Group],
    values: Sequence[float],
    left: Sequence[int],
    keywords: Sequence[Keywords],
    relevance: Sequence[float],
) -> list[int]:
    """All sentences: those within their group's room first, groups by relevance."""
    inside: list[int] = []
    outside: list[int] = []
    for at in sorted(range(len(groups)), key=lambda at: (-round(values[at], 6), at)):
        room, rest, missing = left[at], list(groups[at].parts), set(keywords[at].all)
        while rest:
            found = {number: {word for word in missing if has(parts[number].text, word)} for number in rest}
            gain = {n: relevance[n] + len(found[n]) / max(1, len(keywords[at].all)) for n in rest}
            number = min(rest, key=lambda n: (-round(gain[n], 6), n))
            rest.remove(number)
            if parts[number].size <= room:
                room -= parts[number].size
                missing -= found[number]
                inside.append(number)
            else:
                outside.append(number)
    return [*inside, *outside]


@dataclass(frozen=True)
class _Rewriter:
    """Puts a model's text in place of the sentences of a group, where nothing is lost by it."""

    scope: ScopeCompressor
    reader: Reader
    bubble: Bubble
    parts: Sequence[Part]
    groups: Sequence[Group]
    left: Sequence[int]
    keywords: Sequence[Keywords]
    chosen: Sequence[Sequence[bool]]
    goal: int

    def rewritten(self, context: CompressedContext) -> CompressedContext:
        """The context with rewritten groups; from the last on they are taken back while it is over the target."""
        ids = {piece.chunk_id for piece in context.pieces}
        here = [at for at, one in enumerate(self.groups) if self.bubble.hits[one.place].chunk.id in ids]
        texts = {at: text for at in here if (text := self._text(at))}
        made = self._context(context, texts)
        while made.token_count > self.goal and texts:
            texts.popitem()
            made = self._context(context, texts)
        return made

    def _text(self, at: int) -> str:
        """A group in the model's words; "" where the extracted sentences are better."""
        group = self.groups[at]
        room = self.left[at]
        if room < 1 or group.passed or all(self.chosen[number][0] for number in group.parts):
            return ""
        whole = "".join(self.parts[number].text for number in group.parts).strip()
        prompt = _PROMPT.format(
            words=max(1, 3 * room // 4),
            keywords=", ".join(self.keywords[at].all),
            question=self.bubble.question,
            text=whole,
        )
        text = self.reader.model.complete(prompt, max_tokens=room).strip()
        lost = self.keywords[at].lost(text)
        return "" if lost or not text or self.scope.counter.count(text) > room else text

    def _context(self, context: CompressedContext, texts: dict[int, str]) -> CompressedContext:
        pieces: list[Piece] = []
        for piece in context.pieces:
            place = next(at for at, hit in enumerate(self.bubble.hits) if hit.chunk.id == piece.chunk_id)
            here = [at for at, group in enumerate(self.groups) if group.place == place]
            if not any(at in texts for at in here):
                pieces.append(piece)
                continue
            told: list[str] = []
            spans: list[Span] = []
            for at in here:
                numbers = self.groups[at].parts
                kept = [self.parts[n].span for n in numbers if at in texts or self.chosen[n][0]]
                spans.extend(kept)
                told.append(texts.get(at) or text_of(self.bubble, place, kept).strip())
            pieces.append(replace(piece, text=" ".join(filter(None, told)), kept=tuple(spans), verbatim=False))
        lines = [self._line(one, texts) for one in context.decisions]
        tokens = self.scope.counter.count(assemble(piece.text for piece in pieces))
        return replace(context, pieces=tuple(pieces), token_count=tokens, decisions=tuple(lines))

    def _line(self, line: Decision, texts: dict[int, str]) -> Decision:
        for at in texts:
            if any(self._is(line, number) for number in self.groups[at].parts):
                return replace(
                    line, action="rewrite", reason=line.reason + "; rewritten with all keywords of its group"
                )
        return line

    def _is(self, line: Decision, number: int) -> bool:
        part = self.parts[number]
        return line.span == part.span and line.chunk_id == self.bubble.hits[part.place].chunk.id
