"""sage: the shipped weights, the fallback, both modes, and whether the model beats the cosine that it is made of."""

from __future__ import annotations

import hashlib
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chunkers._boundary import SHA256, bits, pair_features, read_weights, side_features, weights
from chunkers._embedded import EmbeddedChunker
from chunkers.cluster_semantic import ClusterSemanticChunker
from chunkers.sage import SageChunker
from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError, MissingError
from rag.tokens import WordCounter
from rag.types import Document
from tests.texts import NASTY, plain


class Trained(HashingEmbedder):
    """Vectors of MiniLM's length under MiniLM's name, so that the learned path runs without a model."""

    @property
    def fingerprint(self) -> str:
        return weights().model.rpartition(":")[0] + ":fp32"

    def agrees_with(self, fingerprint: str) -> bool:
        return fingerprint.rpartition(":")[0] == self.fingerprint.rpartition(":")[0]


TRAINED, UNKNOWN = Trained(buckets=384), HashingEmbedder()


def sage(embedder: HashingEmbedder = TRAINED, **given: Any) -> SageChunker:
    return SageChunker(embedder=embedder, counter=WordCounter(limit=254), **given)


def sized(chunker: EmbeddedChunker, text: str) -> list[str]:
    return [chunk.text for chunk in chunker.chunk(Document(text=text, source="text"))]


def sentence_vectors(count: int) -> tuple[list[str], np.ndarray[Any, np.dtype[np.float32]]]:
    texts = [f"{text}." for text in plain(count).split(". ")]
    return texts, TRAINED.embed(texts)


class TestWeights:
    def test_the_shipped_file_is_the_one_named_and_small(self) -> None:
        data = resources.files("chunkers").joinpath("boundary.npz").read_bytes()
        assert hashlib.sha256(data).hexdigest() == SHA256
        assert len(data) < 1_000_000
        assert weights().w1.shape == (len(weights().mean), len(weights().b1))
        assert SHA256 in resources.files("chunkers").joinpath("boundary.md").read_text(encoding="utf-8")

    def test_another_file_is_refused(self) -> None:
        data = resources.files("chunkers").joinpath("boundary.npz").read_bytes()
        with pytest.raises(MissingError, match="SHA-256"):
            read_weights(data[:-1] + b"x", SHA256)

    def test_long_documents_are_scored_like_short_ones(self, monkeypatch: pytest.MonkeyPatch) -> None:
        texts, vectors = sentence_vectors(60)
        whole = weights().logits(vectors, texts)
        monkeypatch.setattr("chunkers._boundary._BLOCK", 7)
        np.testing.assert_allclose(weights().logits(vectors, texts), whole, atol=1e-5)
        assert len(whole) == len(texts) - 1

    @pytest.mark.parametrize("count", [0, 1])
    def test_no_places(self, count: int) -> None:
        assert weights().logits(np.zeros((count, 384), dtype=np.float32), ["A."] * count).shape == (0,)

    @pytest.mark.models
    def test_numpy_equals_torch(self) -> None:
        import torch

        held = weights()
        texts, vectors = sentence_vectors(40)
        network = torch.nn.Sequential(
            torch.nn.Linear(*held.w1.shape), torch.nn.ReLU(), torch.nn.Linear(len(held.w2), 1)
        )
        with torch.no_grad():
            network[0].weight.copy_(torch.from_numpy(held.w1.T.copy()))
            network[0].bias.copy_(torch.from_numpy(held.b1))
            network[2].weight.copy_(torch.from_numpy(held.w2[None]))
            network[2].bias.copy_(torch.from_numpy(held.b2.reshape(1)))
            inputs = (torch.from_numpy(pair_features(vectors, texts)) - torch.from_numpy(held.mean)) * torch.from_numpy(
                held.scale
            )
            expected = network(inputs).squeeze(1).numpy()
        np.testing.assert_allclose(held.logits(vectors, texts), expected, atol=1e-4)


class TestFeatures:
    def test_line_ends_do_not_show(self) -> None:
        texts, vectors = sentence_vectors(12)
        spaced = [f"\n\n{text} \r\n\n" for text in texts]
        np.testing.assert_array_equal(pair_features(vectors, texts), pair_features(vectors, spaced))

    def test_bits(self) -> None:
        assert bits("He lists:", "(2) Rain")[2:] == (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)
        assert bits("Why?", "“However, no.")[2:] == (0.0, 1.0, 1.0, 0.0, 1.0, 0.0)
        assert bits("So.", "ARTICLE two")[2:] == (0.0, 0.0, 0.0, 0.0, 0.0, 1.0)

    def test_sides_of_a_change_of_topic(self) -> None:
        one, other = np.eye(2, dtype=np.float32)
        sides = side_features(np.stack([one] * 4 + [other] * 4))
        np.testing.assert_allclose(sides[3], [0, 0, 0, 0, 1, 1, 1], atol=1e-5)


class TestFallback:
    @pytest.mark.parametrize("text", ["mixed", "junk", "cjk"])
    def test_another_encoder_gets_cluster_semantic(self, text: str) -> None:
        plainly = ClusterSemanticChunker(embedder=UNKNOWN, counter=WordCounter(limit=254), max_tokens=60)
        assert sized(sage(UNKNOWN, max_tokens=60), NASTY[text]) == sized(plainly, NASTY[text])

    def test_the_record_says_why(self) -> None:
        chunks, record = sage(UNKNOWN).decide(Document(text=plain(12), source="text"))
        assert record is not None
        assert (record["chunker"], record["scoring"]) == ("sage", "coherence")
        assert "all-MiniLM-L6-v2" in record["reason"]
        assert chunks == sage(UNKNOWN).chunk(Document(text=plain(12), source="text"))

    def test_any_precision_of_the_encoder_is_learned(self) -> None:
        _, record = sage().decide(Document(text=plain(12), source="text"))
        assert record is not None
        assert record["scoring"] == "learned"

    def test_nothing_to_decide(self) -> None:
        assert sage().decide(Document(text=" \n", source="blank")) == ([], None)


class TestSegmentation:
    @pytest.mark.parametrize("mode", ["dp", "threshold"])
    @pytest.mark.parametrize("size", [3, 24, 120])
    @pytest.mark.parametrize("text", ["mixed", "junk", "cjk", "crlf"])
    def test_limits_and_tiling(self, text: str, size: int, mode: str) -> None:
        pieces = sized(sage(max_tokens=size, mode=mode), NASTY[text])
        assert "".join(pieces) == NASTY[text]
        counter = WordCounter(limit=254)
        assert max(counter.count(piece) for piece in pieces) <= size
        assert pieces == sized(sage(max_tokens=size, mode=mode), NASTY[text])

    def test_threshold_cuts_exactly_below_ss(self) -> None:
        chunker = sage(mode="threshold", ss=0.8, min_tokens=0)
        document = Document(text=plain(18), source="text")
        atoms = chunker.atoms(document)
        together = 1.0 / (1.0 + np.exp(chunker.log_odds(atoms.texts, atoms.vectors)))
        wanted = [end for end, score in zip(atoms.ends, together, strict=False) if score < 0.8]
        cuts = [chunk.span.end for chunk in chunker.chunk(document)][:-1]
        assert set(wanted) <= set(cuts)
        assert wanted

    def test_more_threshold_more_chunks(self) -> None:
        counts = [len(sized(sage(mode="threshold", ss=ss, min_tokens=0), plain(30))) for ss in (0.0, 0.5, 0.9, 1.0)]
        assert counts == sorted(counts)
        assert counts[-1] > counts[0]

    def test_dp_is_the_best_of_all(self) -> None:
        chunker = sage(max_tokens=60, min_tokens=0, boundary_weight=0.7, size_weight=2.0, target_tokens=30)
        text = " ".join(
            f"{word} went home over the long hill today." for word in ("Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Guy")
        )
        atoms = chunker.atoms(Document(text=text, source="text"))
        assert len(atoms) == 7
        base = float(weights().base)
        count, odds = len(atoms), chunker.log_odds(atoms.texts, atoms.vectors)

        def worth(cuts: list[int]) -> float:
            sizes = [atoms.edges[end] - atoms.edges[start] for start, end in pairwise((0, *cuts))]
            if max(sizes) > 60:
                return float("-inf")
            return 0.7 * sum(odds[cut - 1] - base for cut in cuts[:-1]) - 2.0 * sum(
                (size / 30 - 1) ** 2 for size in sizes
            )

        every = [
            [*(at + 1 for at in range(count - 1) if number >> at & 1), count] for number in range(2 ** (count - 1))
        ]
        found = [atoms.ends.index(chunk.span.end) + 1 for chunk in chunker.group(atoms)]
        assert worth(found) == pytest.approx(max(map(worth, every)))

    @pytest.mark.parametrize(
        "given",
        [{"mode": "mlp"}, {"ss": 1.5}, {"target_tokens": 0}, {"target_tokens": 300}, {"size_weight": -1.0}],
    )
    def test_parameters_are_checked(self, given: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=next(iter(given))):
            sage(**given)


@pytest.mark.models
@pytest.mark.data
@pytest.mark.slow
def test_the_model_beats_the_cosine_on_held_out_documents(data_dir: Path) -> None:
    pytest.importorskip("sklearn")
    from eval._boundary_data import read_all
    from eval.train_boundary import auc_by_set, pairs_of, vectors_of
    from rag.registry import build

    embedder = build("embedder", {"use": "minilm", "overlong": "window"}, services={})
    chunker = build("chunker", "sage", services={"embedder": embedder, "counter": embedder.counter})
    assert chunker.learned
    documents = [one for one in read_all(data_dir) if one.part == "test" or one.kind == "squad_long"]
    known = vectors_of(documents, embedder, None)
    pairs = [pairs_of(one, known, chunker) for one in documents]
    cosine = auc_by_set(pairs, lambda one: -one.cosines)
    odds = {
        one.source: chunker.log_odds(one.sentences, np.stack([known[text[:1000]] for text in one.sentences]))
        for one in documents
    }
    model = auc_by_set(pairs, lambda one: odds[one.document.source])
    gains = {kind: model[kind] - cosine[kind] for kind in model}
    assert min(gains.values()) > 0.0
    assert gains["squad_long"] > 0.05
    assert np.mean(list(gains.values())) > 0.1
