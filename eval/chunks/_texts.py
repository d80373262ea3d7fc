"""Texts that break chunkers, made in code: everything that documents hold and splitters forget."""

from __future__ import annotations

import base64
import hashlib

__all__ = ["FAMILY", "hard_texts", "junk", "mixed", "prose"]

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466"
SENTENCES = (
    "The mill stands where the two streams meet.",
    "Dr. Weiss measured 3.14 metres on 12 May, i.e. less than in spring.",
    "Nobody had asked why the gate was left open!",
    "Is the second valve older than the first one?",
    "Payments above 5,000 EUR are approved by the board.",
    'She said: "The ledger is closed." Then she left.',
)


def hard_texts() -> dict[str, str]:
    """Name -> text, a few thousand characters each; the last two hold nothing to cut."""
    return {
        "mixed": mixed(),
        "prose": prose(60),
        "one-line": prose(120).replace("\n", " "),
        "crlf": prose(30).replace("\n", "\r\n") + "\r\n\r\n \r\n",
        "repeated": "The same line again.\n\n" * 100,
        "no-punctuation": " ".join(f"word{number % 97}" for number in range(1500)),
        "japanese": "吾輩は猫である。名前はまだ無い。薄暗いじめじめした所で泣いていた事だけは記憶している。" * 30,
        "no-stops": "春夏秋冬東西南北" * 150,
        "thai": "ภาษาไทยไม่มีช่องว่างระหว่างคำ" * 30,
        "right-to-left": "\u05d4\u05e8\u05d7\u05d5\u05d1 \u05e9\u05e7\u05d8. \u0627\u0644\u0628\u0627\u0628\u061f "
        * 50,
        "emoji": FAMILY * 40 + "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7" * 40 + "\U0001f44d\U0001f3fd " * 40,
        "combining": "e\u0301a\u0308\u0323o " * 150,
        "base64": junk(5000),
        "long-word": "x" * 6000,
        "nul": "a\x00b c\x00 \x00\x00 d. " * 80,
        "white": "word" + " " * 2000 + "word" + "\n" * 2000 + "end",
        "separators": "a\u2028b\u2029c\x0bd\x0ce\x85f\u00a0g " * 50,
        "blank": " \r\n\t\u3000\n" * 3,
        "empty": "",
    }


def prose(sentences: int) -> str:
    """Numbered sentences, a paragraph of six at a time."""
    lines = [f"{number}. {SENTENCES[number % 6]}" for number in range(sentences)]
    return "\n\n".join(" ".join(lines[at : at + 6]) for at in range(0, sentences, 6))


def junk(chars: int) -> str:
    """Base64 without a space, as mails and notebooks hold it."""
    blocks = (hashlib.blake2b(str(number).encode()).digest() for number in range(chars // 60 + 1))
    return base64.b64encode(b"".join(blocks)).decode()[:chars]


def mixed() -> str:
    """CRLF, a table, code, repeated lines, Japanese, a dotted capital I, a family, a long word, odd spaces."""
    table = "| id | name | amount |\r\n|---|---|---|\r\n" + "".join(
        f"| {row} | item  {row % 7} | {row * 13}.50 |\r\n" for row in range(40)
    )
    code = "```python\ndef total(rows):\n    result = 0\n\n    for row in rows:\n        result += row\n```"
    repeated = "The same line again.\n" * 12
    japanese = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。" * 3
    odd = f"İstanbul  and {FAMILY} went on. \u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd. " + "x" * 1500
    return f"# Report\r\n\r\n{prose(30)}\r\n\r\n{table}\r\n{code}\n\n{repeated}\n{japanese}\n\n{odd}\n\n{prose(24)}  "
