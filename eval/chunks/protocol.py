"""The protocol: one index over all documents, exact inner product, scores of every question, costs of every cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval.chunks.contenders import LOST, Cut, Piece
from eval.chunks.data import Pool
from eval.chunks.measures import area, budgeted_recall, chroma, contained, corrected, trimmed
from eval.sets import Place
from rag.embedders._chunks import embed_chunks
from rag.protocols import Embedder, TokenCounter
from rag.text import TokenMap, fit_tokens
from rag.types import Document

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CHAR_BUDGETS", "COMPARED", "TOKEN_BUDGETS", "K", "Scorer", "costs"]

K = 5
CHAR_BUDGETS = (250, 354, 500, 707, 1000, 1414, 2000, 2828, 4000, 5657, 8000)
"""The grid of the curve; 1000, 2000 and 4000 are reported one by one."""
TOKEN_BUDGETS = (200, 400, 800)
_NAMED = (1000, 2000, 4000)
_DEPTH = 128
COMPARED = (
    *(f"recall@{budget}tokens" for budget in TOKEN_BUDGETS),
    *(f"recall@{budget}chars" for budget in _NAMED),
    "area",
    "recall",
    "iou",
    "precision_omega",
)
"""What is compared with the baseline; Holm's correction runs over the chunkers, within one measure and size."""


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Scores cuts of one pool with one embedder; questions are embedded once."""

    pool: Pool
    embedder: Embedder
    maps: Mapping[str, TokenMap]
    asked: NDArray[np.float32]

    @classmethod
    def of(cls, pool: Pool, embedder: Embedder) -> Scorer:
        import numpy as np

        counter = embedder.counter
        asked = [embedder.embed_question(question.text) for question in pool.questions]
        maps = {name: TokenMap(counter, document.text) for name, document in pool.documents.items()}
        return cls(pool=pool, embedder=embedder, maps=maps, asked=np.stack(asked))

    def score(self, cut: Cut) -> dict[str, NDArray[np.float64]]:
        """Measure -> (questions,) scores."""
        import numpy as np

        rankings = self._rankings(cut.pieces)
        sizes = {piece.place: piece.tokens for piece in cut.pieces}
        by_document: dict[str, list[Place]] = {}
        for piece in cut.pieces:
            by_document.setdefault(piece.place[0], []).append(piece.place)
        rows = [
            self._question(question.evidence, [cut.pieces[at].place for at in ranking], sizes, by_document)
            for question, ranking in zip(self.pool.questions, rankings, strict=True)
        ]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def _question(
        self,
        evidence: Sequence[Place],
        ranked: Sequence[Place],
        sizes: Mapping[Place, int],
        by_document: Mapping[str, Sequence[Place]],
    ) -> dict[str, float]:
        names = {name for name, _, _ in evidence}
        near = [place for name in sorted(names) for place in by_document.get(name, ())]
        touching = [
            (name, start, end) for name, start, end in near
            if any(name == d and start <= e and s <= end for d, s, e in evidence)
        ]  # fmt: skip
        found = ranked[:K]
        curve = budgeted_recall(evidence, ranked, CHAR_BUDGETS, trimmed)
        by_tokens = budgeted_recall(evidence, ranked, TOKEN_BUDGETS, lambda place, room: self._trim(place, room, sizes))
        return {
            **chroma(evidence, found, touching),
            **corrected(evidence, found, touching),
            **{f"recall@{budget}tokens": score for budget, score in zip(TOKEN_BUDGETS, by_tokens, strict=True)},
            **{f"recall@{budget}chars": curve[CHAR_BUDGETS.index(budget)] for budget in _NAMED},
            "area": area(CHAR_BUDGETS, curve),
            "contained@1": contained(evidence, ranked[:1]),
            f"contained@{K}": contained(evidence, found),
            "contained_at_all": contained(evidence, near),
        }

    def _trim(self, place: Place, room: int, sizes: Mapping[Place, int]) -> tuple[Place | None, int]:
        """A chunk, or the longest beginning of it with at most `room` tokens."""
        name, start, end = place
        if sizes[place] <= room:
            return place, sizes[place]
        if name == LOST or room < 1:
            return None, 0
        tokens, text = self.maps[name], self.pool.documents[name].text
        stop = min(end, fit_tokens(tokens, text, start, end, room, end - start))
        cost = tokens.count(start, stop)
        return ((name, start, stop), cost) if cost <= room and stop < end else (None, 0)

    def _rankings(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """Numbers of the pieces for every question, best first, ties by number; enough for the largest budget."""
        from rag.vectors import top_rows

        matrix = self._matrix(pieces)
        lengths = [piece.place[2] - piece.place[1] for piece in pieces]
        rankings: list[list[int]] = []
        for scores in self.asked @ matrix.T:
            depth = _DEPTH
            while True:
                best = top_rows(scores, depth).tolist()
                filled = sum(lengths[at] for at in best) >= CHAR_BUDGETS[-1]
                enough = sum(pieces[at].tokens for at in best) >= TOKEN_BUDGETS[-1]
                if (filled and enough) or depth >= len(pieces):
                    break
                depth *= 2
            rankings.append(best)
        return rankings

    def _matrix(self, pieces: Sequence[Piece]) -> NDArray[np.float32]:
        """(n, d) the vectors that an index of these pieces would hold."""
        texts = {document.id: document.text for document in self.pool.documents.values()}
        late = embed_chunks(self.embedder, [piece.chunk for piece in pieces if piece.chunk], texts.__getitem__)
        matrix = self.embedder.embed([piece.text for piece in pieces])
        for row, piece in enumerate(pieces):
            if piece.chunk:
                matrix[row] = late[piece.chunk.key]
        return matrix


def costs(cut: Cut, documents: Mapping[str, Document], counter: TokenCounter, corpus_tokens: int) -> dict[str, Any]:
    """Sizes, violations and work of one cut."""
    import numpy as np

    sizes = np.array([piece.place[2] - piece.place[1] for piece in cut.pieces])
    limit = counter.limit
    read = [counter.count(piece.text) for piece in cut.pieces]
    over = sum(tokens > limit for tokens in read) if limit is not None else 0
    texts = {document.id: document.text for document in documents.values()}
    index_tokens = sum(
        _index_tokens(piece, tokens, counter, texts) for piece, tokens in zip(cut.pieces, read, strict=True)
    )
    covered = sum(end - start for name, start, end in (piece.place for piece in cut.pieces) if name != LOST)
    whole = sum(len(document.text) for document in documents.values())
    seconds = cut.cpu_seconds
    return {
        "chunks": len(cut.pieces),
        "mean_chars": round(float(sizes.mean()), 1),
        "p95_chars": float(np.percentile(sizes, 95)),
        "max_chars": int(sizes.max()),
        "max_tokens": max(piece.tokens for piece in cut.pieces),
        "over_limit": over,
        "not_found": sum(piece.place[0] == LOST for piece in cut.pieces),
        "characters_per_character": round(covered / whole, 4),
        "encoder_texts": cut.encoder_texts,
        "encoder_tokens": cut.encoder_tokens,
        "encoder_passes": None if cut.encoder_tokens is None else round(cut.encoder_tokens / corpus_tokens, 4),
        "index_passes": round(index_tokens / corpus_tokens, 4),
        "cpu_seconds_without_encoder": None if seconds is None else round(seconds, 3),
        "chunks_per_cpu_second": round(len(cut.pieces) / seconds, 1) if seconds else None,
    }


def _index_tokens(piece: Piece, alone: int, counter: TokenCounter, texts: Mapping[str, str]) -> int:
    """Tokens that the encoder reads for the vector of a piece, overlaps of windows not counted."""
    chunk = piece.chunk
    if chunk is None:
        return alone
    if chunk.of_sentences:  # every sentence once, whatever number of stretches holds it
        return counter.count(chunk.text) + (alone if chunk.late_percent < 100 else 0)
    around = counter.count(chunk.within(texts[chunk.doc_id])[0])
    return around + (alone if chunk.late_percent < 100 else 0)
