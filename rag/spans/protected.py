"""Protected spans: what a compressor keeps with its sentence, or drops with its sentence, but never cuts.

Within a sentence of which anything is kept, every protected span is kept whole; else the sentence is dropped whole. A
sentence here is what the bubble has of one: borders are those of `rag.text.SentenceStarts` on the document, and of the
parts that the bubble chose. `survival` counts what became of each kind.

Languages: digits, addresses, code and quotes are found in any script. Words for numbers, months and units are English,
negations are those of English, German, French, Spanish, Italian, Portuguese, Dutch, Chinese and Japanese. Names are
found by capitals: in German every noun is one, which protects too much; in scripts without capitals none is found.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise

from rag.protocols import Corpus
from rag.spans.pieces import joined
from rag.text import SentenceStarts
from rag.types import Bubble, CompressedContext, Document, Piece, Span, parse_chunk_id

__all__ = ["KINDS", "Protector", "forced", "openers", "survival", "survivors"]

KINDS = ("number", "date", "unit", "negation", "entity", "code", "quote", "address")

_DIGITS = r"\d(?:[\d.,'’:/\u00a0\u202f]*\d)?"
_SHORT = r"\d(?:[\d.,'’:/\u00a0\u202f]{0,24}\d)?"
"""Digits where more must follow: bounded, so that a long row of them is not read anew from each of its digits."""
_SPELLED = (
    r"(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen|"
    r"(?:twen|thir|for|fif|six|seven|eigh|nine)ty|hundreds?|thousands?|millions?|billions?|trillions?|dozens?|half)"
)
_NUMBER = re.compile(
    rf"[^\W\d_]{{0,4}}[+\-−±]?{_DIGITS}[%‰°]?|(?<![^\W_]){_SPELLED}(?:[ -]{_SPELLED}|-one){{0,6}}(?![^\W_])",
    re.IGNORECASE,
)
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?)\b\.?"
)
_DATE = re.compile(
    rf"\b(?:\d{{1,2}}(?:st|nd|rd|th)? (?:of )?{_MONTH}(?:,? \d{{4}})?|"
    rf"{_MONTH} \d{{1,4}}(?:st|nd|rd|th)?(?:,? \d{{4}})?|"
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}(?:T[\d:.]+Z?)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}|"
    r"\d{1,2}:\d{2}(?::\d{2})?(?: ?[ap]\.?m\b\.?)?|\d{1,2} ?[ap]\.?m\b\.?)|\d{4}年(?:\d{1,2}月)?(?:\d{1,2}日)?",
    re.IGNORECASE,
)
_UNIT_WORD = (
    r"(?:%|‰|°\s?[CF]?|[€$£¥]|km/h|m/s|percent|per cent|euros?|dollars?|pounds?|cents?|USD|EUR|GBP|hours?|minutes?|"
    r"seconds?|days?|nights?|weeks?|months?|years?|degrees?|celsius|fahrenheit|kelvin|[kcmµμn]?m[²³23]?|kilomet(?:er|re)s?|"
    r"(?:centi|milli)?met(?:er|re)s?|miles?|feet|foot|inch(?:es)?|acres?|hectares?|ha|k?g|mg|µg|kilograms?|grams?|tons?|"
    r"tonnes?|ounces?|oz|lbs?|m?l|lit(?:er|re)s?|gallons?|[kMGT]?i?[bB](?:ytes?|its?)?|[kMG]?Hz|[kMG]?Wh?|[kM]?V|m?A|"
    r"[kM]?Pa|bar|[kM]?J|k?cal|ms|µs|ns|mph|rpm|dB|times|people|persons)"
)
_UNIT = re.compile(
    rf"(?:(?:US|[A-Z]{{1,2}})?[€$£¥]\s?{_SHORT}(?:\s(?:thousand|million|billion|trillion|bn|m)\b)?|"
    rf"(?:{_SHORT}|(?<![^\W_]){_SPELLED}(?:[ -]{_SPELLED}|-one){{0,6}})"
    rf"(?:[ \u00a0-](?:hundred|thousand|million|billion|trillion))?"
    rf"[ \u00a0\u202f-]?{_UNIT_WORD}(?![^\W_]))"
)
_NEGATION = re.compile(
    r"(?:(?<![^\W_])(?:\w{1,8}n['’]t|not|no|never|none|nobody|nothing|nowhere|neither|nor|without|cannot|unless|except|"
    r"hardly|barely|scarcely|lacks?|lacking|nicht|nichts|kein(?:e[nmrs]?)?|nie|niemals|niemand|ohne|weder|ne|pas|jamais|"
    r"sans|aucune?|rien|nunca|sin|ning[uú]na?|nada|jamás|ni|non|mai|senza|nessun[oa]?|não|sem|nenhuma?|niet|geen|nooit|"
    r"zonder)(?![^\W_])|(?<![^\W_])n['’](?=\w))(?:\s+[\w'’-]{1,40})?|[不没沒未无無非](?=[㐀-鿿])[㐀-鿿]?|ません|ない|なく",
    re.IGNORECASE,
)
_ADDRESS = re.compile(
    r"(?:https?://|ftp://|www\.)[^\s<>\"]*[^\s<>\".,;:!?)]|(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64})+"
)
_CODE = re.compile(
    r"`[^`\n]+`|(?<![\w./])(?:[A-Za-z]\w*(?:\.|::|->))*[A-Za-z]\w*\(\)?[\w, .='\"]{0,60}\)|\b[A-Za-z]\w*_\w+|"
    r"(?<!\S)--?[a-z][\w-]*(?:=\S+)?|(?<![\w/:])/(?:[\w.-]+/)+[\w.-]*"
)
_QUOTE = re.compile(
    r"“[^”]*(?:”|$)|„[^“”]*(?:[“”]|$)|«[^»]*(?:»|$)|「[^」]*(?:」|$)|『[^』]*(?:』|$)|(?<!\w)‘[^’]+’(?!\w)|"
    r'"[^"]*"|(?<!\S)"(?=\S)[^"]*$|^[^"“]*(?<=[^\d\s])["](?=[\s.,;:!?)]|$)|^[^“”„]+”'
)
_NAME = re.compile(r"[^\W\d_][\w'’&-]*(?:\.(?=[\w]))?")
_LINKS = frozenset(("of", "de", "von", "van", "der", "den", "du", "da", "la", "le", "del", "bin", "al", "und", "the"))
_BEFORE_SPEECH = tuple('“„«「"(:')
_MID = re.compile(r"(?<=[a-zß-öø-ÿ,;] )[^\W\d_a-z][\w'’-]+")

_FUNCTION_WORDS = """
a an the this that these those it its he she they we you i his her their our my your who what when where why how which
and but or so if as at by for from in into of on to with after before during since until while although because however
also then there here both each every all some many most more few other another such only even is are was were be been
being has have had do does did can could may might must shall should will would than
der die das ein eine es er sie wir und aber im am in mit von le les un une il elle et el los las una y en
"""
openers = frozenset(_FUNCTION_WORDS.split())
"""Function words: they open a sentence with a capital and are no names."""


class Protector:
    """The protected spans of one document, sentence by sentence; nothing is read before it is asked for."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._starts = SentenceStarts(document)
        self._code = [block.span for block in document.blocks if block.kind == "code"]

    def sentences(self, within: Span) -> list[Span]:
        """What this part of the document has of each sentence; the spans tile it."""
        edges = [within.start, *self._starts.between(within.start, within.end), within.end]
        return [Span(left, right) for left, right in pairwise(edges) if right > left]

    def spans(self, sentence: Span) -> dict[str, list[Span]]:
        """Kind -> spans inside of this part of a sentence, sorted and apart, white space at their ends left out."""
        text = self._document.text[sentence.start : sentence.end]
        names = list(self._names(text))
        found: dict[str, Iterable[tuple[int, int]]] = {
            "number": (match.span() for match in _NUMBER.finditer(text)),
            "date": (match.span() for match in _DATE.finditer(text)),
            "unit": (match.span() for match in _UNIT.finditer(text)),
            "negation": (match.span() for match in _NEGATION.finditer(text)),
            "entity": names,
            "code": [*(match.span() for match in _CODE.finditer(text)), *self._block_code(sentence)],
            "quote": (match.span() for match in _QUOTE.finditer(text)),
            "address": (match.span() for match in _ADDRESS.finditer(text)),
        }
        return {kind: _placed(found[kind], text, sentence.start) for kind in KINDS}

    def union(self, sentence: Span) -> tuple[Span, ...]:
        """The spans of all kinds as one list."""
        return joined(span for spans in self.spans(sentence).values() for span in spans)

    @cached_property
    def _known(self) -> frozenset[str]:
        """Words that this document writes with a capital after a small letter."""
        return frozenset(match.group() for match in _MID.finditer(self._document.text)) - {"I"}

    def _block_code(self, sentence: Span) -> Iterator[tuple[int, int]]:
        for block in self._code:
            if block.overlaps(sentence):
                low, high = max(block.start, sentence.start), min(block.end, sentence.end)
                yield low - sentence.start, high - sentence.start

    def _names(self, text: str) -> Iterator[tuple[int, int]]:
        """Runs of capitalised words. One that opens the sentence counts when it is no function word, and is followed
        by another, is written unlike a common word (NASA, iPhone), or stands with a capital elsewhere."""
        run: list[tuple[int, int]] = []
        link = 0
        for match in _NAME.finditer(text):
            word, (start, end) = match.group(), match.span()
            near = bool(run) and text[(link or run[-1][1]) : start] in (" ", " & ", "\u00a0")
            if word[0].isupper() or any(char.isupper() for char in word[1:]):
                if run and not near:
                    yield from self._of_run(text, run)
                    run = []
                run.append((start, end))
                link = 0
            elif near and not link and word in _LINKS:
                link = end
            else:
                yield from self._of_run(text, run)
                run, link = [], 0
        yield from self._of_run(text, run)

    def _of_run(self, text: str, run: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        if not run:
            return
        start, end = run[0]
        word = text[start:end]
        opens = not any(char.isalnum() for char in text[:start])
        common = word.lower() in openers and word in (word.capitalize(), "I", "A")
        if common and (opens or word == "I" or text[max(0, start - 2) : start].strip()[-1:] in _BEFORE_SPEECH):
            run = run[1:]
        elif opens and len(run) == 1 and not any(char.isupper() for char in word[1:]) and word not in self._known:
            return
        if run:
            yield run[0][0], run[-1][1]


def _placed(found: Iterable[tuple[int, int]], text: str, shift: int) -> list[Span]:
    made = []
    for start, end in found:
        piece = text[start:end]
        lead, trail = len(piece) - len(piece.lstrip()), len(piece) - len(piece.rstrip())
        if lead < len(piece):
            made.append(Span(shift + start + lead, shift + end - trail))
    return list(joined(made))


def survival(bubble: Bubble, context: CompressedContext, corpus: Corpus) -> dict[str, tuple[int, int, int]]:
    """As `survivors`, of a bubble and what was made of it."""
    chosen = {hit.chunk.id: spans for hit, spans in zip(bubble.hits, bubble.spans, strict=True)}
    return survivors(chosen, context.pieces, corpus)


def survivors(
    chosen: Mapping[str, Sequence[Span]], pieces: Iterable[Piece], corpus: Corpus
) -> dict[str, tuple[int, int, int]]:
    """Kind -> (protected spans in sentences of which anything is kept, those kept whole, all).

    `chosen`: chunk id -> what there was of it before `pieces` were made. The first two are equal for every verbatim
    compressor of Chunkwise. A rewritten piece keeps a span when its words stand in the new text.
    """
    counts = {kind: [0, 0, 0] for kind in KINDS}
    left = {piece.chunk_id: piece for piece in pieces}
    protectors: dict[str, Protector] = {}
    for chunk_id, spans in chosen.items():
        doc_id, piece = parse_chunk_id(chunk_id)[0], left.get(chunk_id)
        document = corpus.document(doc_id)
        protector = protectors.setdefault(doc_id, Protector(document))
        kept = piece.kept if piece else ()
        for sentence in (one for span in spans for one in protector.sentences(span)):
            alive = any(_says(document.text, one, sentence) for one in kept)
            for kind, found in protector.spans(sentence).items():
                counts[kind][2] += len(found)
                if alive:
                    counts[kind][0] += len(found)
                    counts[kind][1] += sum(
                        any(one.contains(span) for one in kept)
                        if piece is None or piece.verbatim
                        else document.text[span.start : span.end] in piece.text
                        for span in found
                    )
    return {kind: (inside, kept, all_of) for kind, (inside, kept, all_of) in counts.items()}


def _says(text: str, kept: Span, sentence: Span) -> bool:
    """True when a visible character of the sentence is kept."""
    return kept.overlaps(sentence) and bool(text[max(kept.start, sentence.start) : min(kept.end, sentence.end)].strip())


def forced(units: Sequence[Span], protected: Sequence[Span]) -> list[bool]:
    """Which units, sorted and apart, share a character with a protected span."""
    starts = [span.start for span in protected]
    flags = []
    for unit in units:
        at = bisect_left(starts, unit.end) - 1
        flags.append(at >= 0 and protected[at].end > unit.start)
    return flags
