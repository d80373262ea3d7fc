"""What speaks against a retrieved text: injection patterns, hidden characters, stuffing, trust.

Every signal is a small pure function of texts. None of them proves anything: each gives a score that its threshold
judges, and all of them can be evaded by who knows them.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from statistics import median

from rag.text import invisible_counts, lexical_words
from rag.types import Document

__all__ = ["TIERS", "bare", "containment", "densities", "hidden", "injection", "robust_z", "tier_of"]

TIERS = ("blocked", "untrusted", "known", "trusted")
"""From least to most."""

_INVISIBLE = re.compile("[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
_TAGS = re.compile("[\U000e0020-\U000e007e]+")
_FLAG = re.compile("\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f")
_JOINED = re.compile(r"(?<=[^\x00-\x7f\u200b-\u200f])[\u200b-\u200d](?=[^\x00-\x7f\u200b-\u200f])")
"""One joiner or break between two characters beyond ASCII: Persian, Hindi, Khmer and emoji are written so."""
_BLOB = re.compile(r"(?<![A-Za-z0-9+/=])[A-Za-z0-9+/]{32,}={0,2}")
_LONGEST_BLOB = 20_000
"""Characters that are searched for blobs."""

_REPLY = r"(?:answer|reply|response|output|solution|completion|summary)s?\b"
_STEP = r"(?:^|[.!?:;\"'|>)\]\n])\s{0,8}(?:please\s+|now\s+|and\s+|then\s+)?"
_CHANGE = (
    r"(?:add|alter|append|augment|begin|change|conclude|embed|encode|end|enhance|enlist|ensure|finish|format|give|group|"
    r"harmonize|include|incorporate|insert|integrate|introduce|make|meld|mention|misspell|modify|prepend|produce|"
    r"provide|put|remove|replace|reverse|rewrite|scramble|shuffle|start|substitute|translate|use|weave|write|anagram)"
)
_RULES = r"(?:instructions?|prompts?|rules|directions|guidelines|commands?|context|messages?)\b"
_ASSISTANT = r"(?:ai|a\.i\.|llm|(?:large\s+)?language\s+models?|ai\s+(?:assistant|model)s?|chatbots?)"

_PATTERNS: tuple[tuple[str, float, re.Pattern[str]], ...] = tuple(
    (name, weight, re.compile(pattern, re.IGNORECASE | re.MULTILINE))
    for name, weight, pattern in (
        ("ignore-rules", 0.9, rf"\b(?:ignore|disregard|forget|override|bypass)\b[^.\n]{{0,20}}\b(?:previous|"
         rf"prior|above|earlier|preceding|foregoing|all|any|every|your|these|other)\b[^.\n]{{0,30}}\b{_RULES}"),
        ("chat-token", 0.9, r"<\|[\w ]{2,30}\|>|<</?sys>>|\[/?inst\]|<(?:start|end)_of_turn>|<｜[^｜>\n]{1,30}｜>"),
        ("role-tag", 0.6, r"^[ \t>*]{0,8}(?:#{1,4}[ \t]{0,8})?\[?(?:system|assistant|developer)"
         r"(?: (?:prompt|message|note))?\]?[ \t]{0,8}:"),
        ("role-element", 0.6, r"</?(?:system|assistant|instructions?|system_prompt|tool_call|function_call)>"),
        ("system-prompt", 0.9, r"\b(?:reveal|print|show|repeat|leak)\b[^.\n]{0,30}\b(?:system|initial)\s+" + _RULES),
        ("your-reply", 0.7, rf"{_STEP}{_CHANGE}\b[^\n]{{0,140}}\byour\s+(?:\w+\s+)?{_REPLY}"),
        ("in-your-reply", 0.7, rf"\bin\s+your\s+(?:\w+\s+)?{_REPLY}\s*,?\s+\w+"),
        ("your-code", 0.7, rf"{_STEP}[a-z]+\b[^.\n]{{0,60}}\bcode\b[^.\n]{{0,80}}\byour\s+(?:\w+\s+){{0,2}}"
         r"(?:code|solution|answer|response|algorithm|architecture|implementation)"),
        ("to-a-model", 0.7, rf"\b{_ASSISTANT}\b[^.\n]{{0,20}}\b(?:must|should|reading|processing|please)\b"),
        ("persona", 0.7, rf"\b(?:you\s+are\s+(?:now\s+)?|act\s+as\s+|pretend\s+to\s+be\s+)(?:an?\s+)?{_ASSISTANT}\b"),
        ("secrecy", 0.7, r"\bdo\s+not\s+(?:tell|mention|reveal|inform|alert)\b[^.\n]{0,30}\bth(?:e\s+user|is\s+instr)"),
        ("image-exfiltration", 0.7, r"!\[[^\]\n]{0,80}\]\(\s*https?://[^)\s?]{1,200}\?[^)\s]{0,200}\b(?:data|d|"
         r"prompt|secret|answer|context|msg|message|text|content|chat|history|conversation|leak|payload)="),
        ("exfiltration", 0.7, r"\b(?:send|post|upload|forward|e-?mail)\b[^.\n]{0,60}\b(?:conversation|chat\s+history|"
         r"passwords?|api\s+keys?|credentials|secrets?)\b[^.\n]{0,60}\b(?:to|https?)\b"),
        ("html-comment", 0.3, r"<!--"),
    )
)  # fmt: skip


def bare(text: str) -> str:
    """The text as a model is likely to understand it: NFKC, nothing invisible in it, tag characters as the ASCII
    that they stand for. For matching only.
    """
    shown = _TAGS.sub(lambda found: "".join(chr(ord(char) - 0xE0000) for char in found.group()), _FLAG.sub("", text))
    return unicodedata.normalize("NFKC", _INVISIBLE.sub("", shown))


def injection(text: str) -> tuple[float, tuple[str, ...]]:
    """(score in [0, 1], names of the patterns that were found): 1 - product of (1 - weight).

    A base64 blob that decodes to text weighs 0.6 and is searched as well; one that does not weighs nothing.
    """
    shown = bare(text)
    found = {name: weight for name, weight, pattern in _PATTERNS if pattern.search(shown)}
    for inner in _decoded(shown):
        found["base64-text"] = 0.6
        found |= {name: weight for name, weight, pattern in _PATTERNS if pattern.search(inner)}
    rest = 1.0
    for weight in found.values():
        rest *= 1 - weight
    return round(1 - rest, 6), tuple(found)


def _decoded(text: str) -> list[str]:
    """What base64 blobs of at least 32 letters say, where that is plain text."""
    said = []
    for blob in _BLOB.findall(text[:_LONGEST_BLOB]):
        body = blob.rstrip("=")
        try:
            inner = base64.b64decode(body[: len(body) // 4 * 4], validate=True).decode("ascii")
        except (binascii.Error, UnicodeDecodeError):
            continue
        if " " in inner and inner.replace("\n", " ").isprintable():
            said.append(inner)
    return said


def hidden(text: str) -> float:
    """Share of characters that show nothing, without those that scripts and emoji are written with."""
    if not text or text.isascii():
        return 0.0
    seen = _JOINED.sub("", _FLAG.sub("", text.removeprefix("\ufeff")))
    return round(sum(invisible_counts(seen).values()) / len(text), 6)


def containment(question: str, text: str, size: int = 3) -> float:
    """Share of the question's word n-grams that stand in the text; 0 for questions under four words."""
    asked, said = lexical_words(question), lexical_words(bare(text))
    if len(asked) < 4:
        return 0.0
    runs = set(zip(*(asked[at:] for at in range(size)), strict=False))
    return round(len(runs & set(zip(*(said[at:] for at in range(size)), strict=False))) / len(runs), 6)


def densities(words: Sequence[str], texts: Sequence[str]) -> list[float]:
    """Share of each text's words that are among `words`."""
    wanted = set(words)
    bags = [lexical_words(bare(text)) for text in texts]
    return [sum(word in wanted for word in bag) / len(bag) if bag else 0.0 for bag in bags]


def robust_z(values: Sequence[float], least: float = 0.02) -> list[float]:
    """(value - median) / (1.4826 * median absolute deviation), that spread at least `least`; 0 for under five values.

    With mean and deviation no value of n is ever over (n - 1) / sqrt(n): a threshold of 4 could not be met by 17 hits.
    """
    if len(values) < 5:
        return [0.0] * len(values)
    middle = median(values)
    spread = max(1.4826 * median(abs(value - middle) for value in values), least)
    return [round((value - middle) / spread, 6) for value in values]


def tier_of(trust: Mapping[str, str], document: Document, otherwise: str = "known") -> str:
    """The tier of the first rule that fits: `source=PATTERN` or `meta.NAME=PATTERN`, as file names are matched.

    Source and metadata come from ingestion; nothing that a document's text says of itself counts.
    """
    for rule, tier in trust.items():
        name, _, pattern = rule.partition("=")
        given = document.source if name == "source" else document.meta.get(name.removeprefix("meta."))
        if given is not None and fnmatchcase(str(given), pattern):
            return tier
    return otherwise
