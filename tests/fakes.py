"""A language model without weights: made-up but repeatable likelihoods and answers, and a list of what it was asked."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from rag.answer import Generation
from rag.embedders.hashing import HashingEmbedder
from rag.protocols import Corpus, Generator, TextModel, TokenCounter, TokenLoss, TokenNeed
from rag.tokens import WordCounter
from rag.types import CompressedContext
from rag.vectors import Vectors

__all__ = ["FakeGenerator", "FakeModel", "WithinEmbedder", "tiny_classifier"]

_TOKEN = re.compile(r" ?[A-Za-z]{1,8}| ?[0-9]|\s|.", re.DOTALL)
"""Like a byte-level BPE: the space before a word belongs to its token."""

_JUNK = """\
1. The first part: what it is about
2. Who keeps the ledger, and why?
- 3-5: another part
The handbook holds the rules, and they say nothing else.
["one", "two"] <answer>4, 9, 250</answer> Yes.
"""


@dataclass(frozen=True)
class FakeModel(TextModel):
    """`nats(token, before)` is the loss of a token after at most 12 characters; None: the model does not tell.

    A character that is not ASCII is as many tokens as it has bytes, all with the range of the character. `scored` and
    `prompts` note what was asked.
    """

    nats: Callable[[str, str], float] | None
    need: Callable[[str, str], float] | None = field(default=None, kw_only=True)
    answer: str = _JUNK
    scored: list[tuple[str, str]] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)

    def complete(self, prompt: str, *, max_tokens: int, stop: Sequence[str] = ()) -> str:
        """The fixed answer and a few words of the prompt, `max_tokens` words at most."""
        self.prompts.append(prompt)
        words = re.findall(r"\S+\s*", prompt)
        at = crc32(prompt.encode()) % max(1, len(words))
        text = "".join(re.findall(r"\s*\S+\s*", self.answer + "".join(words[at : at + 12]))[:max_tokens])
        ends = [found for found in (text.find(end) for end in stop) if found >= 0]
        return text[: min(ends, default=len(text))]

    def losses(self, text: str, *, after: str = "") -> list[TokenLoss] | None:
        self.scored.append((text, after))
        if self.nats is None:
            return None
        whole, shift, made = after[-12:] + text, len(after[-12:]), []
        for found in _TOKEN.finditer(text):
            start, end = found.span()
            loss = self.nats(found[0], whole[max(0, start + shift - 12) : start + shift])
            made.extend([(start, end, loss)] * (1 if found[0].isascii() else len(found[0].encode())))
        return made

    def needs(self, text: str, *, after: str = "", reading: str = "from") -> list[TokenNeed] | None:
        if self.need is None:
            return None
        words = tuple(re.findall(r"[A-Za-z]+", after)[-2:])
        told = self.losses(text, after=after) or []
        return [
            (start, end, nats, self.need(text[start:end], text[max(0, start - 12) : start]), words)
            for start, end, nats in told
        ]


def hashed(token: str, before: str) -> float:
    """A number between 0 and 8 that depends on the token and on what stands before it."""
    return crc32(f"{token}|{before}".encode()) / 2**32 * 8.0


@dataclass(frozen=True, kw_only=True)
class FakeGenerator(Generator):
    """A generator of which only the model is wanted; its `repr` is the same in every run."""

    name: str = "hashed"
    model: FakeModel = field(default_factory=lambda: FakeModel(hashed), repr=False, compare=False)

    @property
    def text_model(self) -> TextModel | None:
        return self.model

    @property
    def counter(self) -> TokenCounter:
        return WordCounter()

    def generate(self, context: CompressedContext, corpus: Corpus, on_text: Any = None) -> Generation:
        raise AssertionError("no answer was asked for")


@dataclass(frozen=True, kw_only=True)
class WithinEmbedder(HashingEmbedder):
    """A span's vector leans towards that of the text around it. `alone` and `within` note what was asked."""

    alone: list[str] = field(default_factory=list)
    within: list[tuple[str, int, int]] = field(default_factory=list)

    @property
    def reads_within(self) -> bool:
        return True

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.alone.extend(texts)
        return super().embed(texts)

    def embed_within(self, pieces: Sequence[tuple[str, int, int]]) -> Vectors:
        self.within.extend(pieces)
        inside = super().embed([text[start:end] for text, start, end in pieces])
        around = super().embed([text for text, _, _ in pieces])
        mixed: Vectors = (inside + around) / np.linalg.norm(inside + around, axis=1, keepdims=True)
        return mixed


def tiny_classifier(folder: Path) -> Path:
    """A randomly made token classifier of two labels that reads 64 tokens, saved as transformers saves one."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    marks = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = {token: at for at, token in enumerate([*marks, *letters, *(f"##{one}" for one in letters)])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token=marks[0], max_input_chars_per_word=50))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer = transformers.BertTokenizerFast(tokenizer_object=backend, model_max_length=66)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(5)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=66, num_labels=2, initializer_range=1.0,
    )  # fmt: skip
    transformers.BertForTokenClassification(config).save_pretrained(folder)
    return folder
