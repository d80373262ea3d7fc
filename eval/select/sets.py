"""What is asked of which documents: the sets of the selector evaluation, one index each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from eval.chunks.data import Half, digest, half_of
from eval.sets import Place, Question, read_rows
from rag.errors import UsageError
from rag.registry import Spec

__all__ = ["SETS", "Asked", "SetSpec", "asked_of", "read_asked"]

_PARAGRAPHS: Spec = {"use": "recursive", "max_tokens": 254}
"""For documents that are paragraphs: whole ones, but for those that are over the limit of the encoder."""


@dataclass(frozen=True, kw_only=True)
class SetSpec:
    """Where a set lies and how it is read. `level` and `gold_role`: only evidence rows that have it.

    Documents whose `meta.role` is in `poison_roles` argue for a wrong answer; `clean` leaves them out of the index.
    """

    folder: str
    suffix: str = ".txt"
    level: str | None = None
    gold_role: str | None = None
    poison_roles: tuple[str, ...] = ()
    clean: bool = False
    chunker: Spec = field(default_factory=lambda: {"use": "recursive", "max_tokens": 200})


_NQ = {"folder": "poisonedrag_nq", "gold_role": "clean", "poison_roles": ("poison",), "chunker": _PARAGRAPHS}
_RGB = {
    "folder": "rgb_noise_counterfactual", "gold_role": "positive", "poison_roles": ("counterfactual",),
    "chunker": _PARAGRAPHS,
}  # fmt: skip

SETS: Mapping[str, SetSpec] = {
    "chroma_chunking": SetSpec(folder="chroma_chunking", suffix=".md"),
    "chroma_redundant": SetSpec(
        folder="chroma_chunking",
        suffix=".md",
        chunker={"use": "fixed", "max_tokens": 200, "overlap_tokens": 133},
    ),
    "squad_long": SetSpec(folder="squad_long", level="sentence"),
    "covidqa": SetSpec(folder="covidqa"),
    "cuad_contracts": SetSpec(folder="cuad_contracts"),
    "financebench": SetSpec(folder="financebench"),
    "hotpotqa_200": SetSpec(folder="hotpotqa_200", chunker=_PARAGRAPHS),
    "2wiki_164": SetSpec(folder="2wiki_164", chunker=_PARAGRAPHS),
    "clapnq_dev": SetSpec(folder="clapnq_dev"),
    "poisonedrag_nq": SetSpec(**_NQ),  # type: ignore[arg-type]
    "poisonedrag_nq_clean": SetSpec(**_NQ, clean=True),  # type: ignore[arg-type]
    "rgb_noise_counterfactual": SetSpec(**_RGB),  # type: ignore[arg-type]
    "rgb_noise_counterfactual_clean": SetSpec(**_RGB, clean=True),  # type: ignore[arg-type]
}
"""chroma_redundant: the same documents as windows of 200 tokens, each a third further, so that all is indexed thrice.

The sets that end in `_clean` are those without their poisoned documents: what is lost there is the price of a defence.
"""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Documents (file name -> text) that share one index, the questions, and the names of poisoned documents.

    `every` has the questions of the other half too: no selector may know them.
    """

    name: str
    texts: Mapping[str, str]
    questions: tuple[Question, ...]
    every: tuple[Question, ...] = ()
    poisoned: frozenset[str] = frozenset()
    chunker: Spec = "recursive"

    @property
    def digest(self) -> str:
        """Of the documents; two sets that are cut alike can share an index."""
        return digest([part for name in sorted(self.texts) for part in (name, self.texts[name])])

    @property
    def asked_digest(self) -> str:
        """Of the questions and their evidence."""
        return digest(f"{question.id} {question.text} {question.evidence}" for question in self.questions)


def read_asked(data: Path, name: str, half: Half) -> Asked:
    """The set `name` of SETS; UsageError when there is no such set or its files are not there."""
    if name not in SETS:
        raise UsageError(f"--set {name}: no such set; there are: {', '.join(SETS)}")
    spec = SETS[name]
    folder = data / spec.folder
    rows = read_rows(folder / "corpus.jsonl")
    bad = {row["doc_id"] for row in rows if (row.get("meta") or {}).get("role") in spec.poison_roles}
    texts = {
        f"{row['doc_id']}{spec.suffix}": row["text"].replace("\0", " ")  # NUL bytes make a file binary
        for row in rows
        if not (spec.clean and row["doc_id"] in bad)
    }
    evidence: dict[str, list[Place]] = {}
    for row in read_rows(folder / "evidence.jsonl"):
        if _wanted(row.get("level"), spec.level) and _wanted(row.get("role"), spec.gold_role):
            place = (f"{row['doc_id']}{spec.suffix}", row["start"], row["end"])
            evidence.setdefault(row["query_id"], []).append(place)
    questions = tuple(
        Question(
            text=row["text"],
            evidence=tuple(evidence[row["query_id"]]),
            id=f"{spec.folder}/{row['query_id']}",
            answers=tuple(row.get("answers") or ()),
        )
        for row in read_rows(folder / "queries.jsonl")
        if row["query_id"] in evidence
    )
    poisoned = frozenset(name for name in texts if name.removesuffix(spec.suffix) in bad)
    return asked_of(name, texts, questions, half, poisoned=poisoned, chunker=spec.chunker)


def asked_of(
    name: str,
    texts: Mapping[str, str],
    questions: tuple[Question, ...],
    half: Half,
    *,
    poisoned: frozenset[str] = frozenset(),
    chunker: Spec = "recursive",
) -> Asked:
    """The questions of that half; UsageError when none is left."""
    chosen = tuple(one for one in questions if half == "all" or half_of(one.id) == half)
    if not chosen:
        raise UsageError(f"--set {name}: no question with evidence in the {half} half")
    return Asked(name=name, texts=texts, questions=chosen, every=questions, poisoned=poisoned, chunker=chunker)


def _wanted(found: str | None, asked: str | None) -> bool:
    return asked is None or found is None or found == asked
