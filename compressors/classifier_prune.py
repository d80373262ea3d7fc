"""LLMLingua-2 (Pan et al., ACL Findings 2024, arXiv 2403.12968): a token classifier says which words stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from compressors._asking import mean
from compressors._tokenwise import coarse, coarse_ledger, ranked, threshold
from compressors._words import Part, by_place, fitted, kept_spans, ledger, means, parts_of
from rag.errors import ConfigError, MissingError, missing_extra
from rag.protocols import Compressor, Corpus, TokenCounter, TokenLoss, service
from rag.spans.pieces import aim, check_size, context_of, unchanged
from rag.text import assemble
from rag.types import Bubble, CompressedContext


@dataclass(frozen=True, kw_only=True)
class ClassifierPruneCompressor(Compressor):
    """Keeps the words with the highest mean probability of the label `keep_label` of a token-classification model.

    `model` is a folder or a hub id, such as microsoft/llmlingua-2-xlm-roberta-large-meetingbank; none is bundled, so
    there is no default. It is loaded at the first use: from the local cache, else downloaded; safetensors only, no
    remote code. Whole sentences are read together, up to `window` tokens of the model; of each window the words over
    the probability stay at which the rate is reached. With `context_level`, chunks by mean probability, highest first,
    until (rate + 1) / 2 of the tokens are used up. `force_tokens`: words that hold one of these strings stay first.
    The question plays no part. Protected spans stay with their sentence, or the sentence goes, so digits are always
    reserved (the code's `force_reserve_digit`).

    Deviations: the target decides in the end, for all windows alike, not the percentile (100 * (1 - rate) + 1) of each;
    windows end with sentences instead of at "." or a line end; no `drop_consecutive`.
    """

    target: int | None = None
    rate: float = 0.5
    model: str = ""
    keep_label: int = 1
    window: int = 510
    context_level: bool = True
    force_tokens: tuple[str, ...] = ()
    counter: TokenCounter = service()

    def __post_init__(self) -> None:
        check_size("classifier-prune", self.target, self.rate)
        if self.window < 1 or self.keep_label < 0 or not all(self.force_tokens):
            raise ConfigError(
                "classifier-prune: window must be >= 1, keep_label >= 0 and no string of force_tokens empty, not "
                f"{self.window}, {self.keep_label} and {self.force_tokens!r}"
            )

    def compress(self, bubble: Bubble, corpus: Corpus) -> CompressedContext:
        size = self.counter.count(assemble(bubble.texts))
        goal = aim(size, self.target, self.rate)
        if goal >= size:
            return unchanged(bubble, self.counter, "classifier-prune")
        if not self.model:
            raise ConfigError(
                "classifier-prune: model is empty, and none is bundled. Set model to a folder or to a hub id such as "
                "microsoft/llmlingua-2-xlm-roberta-large-meetingbank, or take comi or token-prune"
            )
        parts = parts_of(bubble, corpus, self.counter)
        values = self._probabilities(parts)
        sizes, scores = {}, {}
        for place, found in by_place(parts):
            sizes[place] = sum(part.size for part in found)
            rows = [value for part, one in zip(parts, values, strict=True) if part.place == place for value in one]
            scores[place] = mean(rows)
        ranking, total = ranked(scores), sum(sizes.values())
        used = coarse(ranking, sizes, int(total * (goal / size + 1) / 2) if self.context_level else total)
        left = [(part, one) for part, one in zip(parts, values, strict=True) if part.place in used]
        kept_parts = [part for part, _ in left]
        margins = self._margins(left, goal / max(1, sum(part.size for part in kept_parts)))
        chosen = fitted(bubble, kept_parts, margins, goal, self.counter)
        decisions = [
            *coarse_ledger(bubble, ranking, used, scores, sizes),
            *ledger(bubble, kept_parts, chosen, [mean(one) for _, one in left], "mean probability of the keep label"),
        ]
        kept = kept_spans(kept_parts, chosen, len(bubble.hits))
        return context_of(bubble, kept, self.counter, "classifier-prune", decisions)

    def _margins(self, left: Sequence[tuple[Part, list[float]]], share: float) -> list[list[float]]:
        """Probabilities over the threshold of their chunk; words that are forced first come before all others."""
        margins: list[list[float]] = []
        for place in dict.fromkeys(part.place for part, _ in left):
            rows = [(part, one) for part, one in left if part.place == place]
            parts, values = [part for part, _ in rows], [one for _, one in rows]
            limit = threshold(parts, values, round(share * sum(part.size for part in parts)))
            for part, one in rows:
                words = [part.text[unit.start - part.span.start : unit.end - part.span.start] for unit in part.units]
                first = [any(text in word for text in self.force_tokens) for word in words]
                margins.append([value - limit + 2.0 * must for value, must in zip(one, first, strict=True)])
        return margins

    def _probabilities(self, parts: Sequence[Part]) -> list[list[float]]:
        made: list[list[float]] = []
        for _, found in by_place(parts):
            for window in self._windows(found):
                text, shift = "".join(part.text for part in window), 0
                told = self._told(text)
                for part in window:
                    made.append(means(part, text, told, shift))
                    shift += len(part.text)
        return made

    def _windows(self, parts: Sequence[Part]) -> list[list[Part]]:
        _, tokenizer = self._loaded
        windows: list[list[Part]] = []
        filled = self.window
        for part in parts:
            tokens = len(tokenizer(part.text, add_special_tokens=False, verbose=False)["input_ids"])
            if not windows or filled + tokens > self.window:
                windows.append([])
                filled = 0
            windows[-1].append(part)
            filled += tokens
        return windows

    def _told(self, text: str) -> list[TokenLoss]:
        """(start, end, probability) of each token; a sentence over the window is read in parts of it."""
        import torch

        model, tokenizer = self._loaded
        coded = tokenizer(
            text,
            truncation=True,
            max_length=self.window + tokenizer.num_special_tokens_to_add(),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            verbose=False,
        )
        told: list[TokenLoss] = []
        rows = zip(coded["input_ids"], coded["offset_mapping"], coded["special_tokens_mask"], strict=True)
        for ids, places, special in rows:
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([ids])).logits[0].float()
            chances = torch.softmax(logits, dim=-1)[:, self.keep_label].tolist()
            told.extend(
                (int(start), int(end), float(chance))
                for (start, end), chance, mark in zip(places, chances, special, strict=True)
                if not mark
            )
        return told

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        model, tokenizer = load_classifier(self.model)
        labels = int(model.config.num_labels)
        if self.keep_label >= labels:
            raise ConfigError(
                f"classifier-prune: keep_label must be below {labels} for this model, not {self.keep_label}"
            )
        room = getattr(model.config, "max_position_embeddings", None)
        if room and self.window + 2 > room:
            raise ConfigError(f"classifier-prune: window must be <= {room - 2} for this model, not {self.window}")
        return model, tokenizer


def load_classifier(model: str) -> tuple[Any, Any]:
    """(model, fast tokenizer) of a folder or a hub id; MissingError that says what to do when they cannot be had."""
    try:
        from transformers import AutoModelForTokenClassification, AutoTokenizer
    except ImportError as error:
        raise missing_extra("transformers", "local", "compressor classifier-prune") from error
    folder = Path(model).expanduser()
    name, failure = (str(folder), None) if folder.is_dir() else (model, None)
    for local in (True,) if folder.is_dir() else (True, False):  # the cache first: then no network is asked
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local, use_fast=True)
            loaded = AutoModelForTokenClassification.from_pretrained(name, local_files_only=local, use_safetensors=True)
            break
        except Exception as error:  # whatever the hub client or transformers raises
            failure = error
    else:
        raise MissingError(
            f"classifier-prune: model {model!r} could not be loaded ({failure}). Set model to a folder with a "
            "token-classification model in safetensors, or to a hub id that is in the local cache; to fill the cache, "
            f"run once with the network reachable: hf download {model}"
        ) from failure
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            f"classifier-prune: the tokenizer of {model!r} tells no places of tokens; a fast one is needed"
        )
    return loaded.eval(), tokenizer
