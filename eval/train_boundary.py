"""Trains the boundary model of the chunker sage on paragraph ends in public text, and tests it on held-out documents.

    python -m eval.train_boundary --data DIR --out chunkers/boundary.npz [--cache DIR] [--epochs 10]

Prints its figures as JSON: AUC, Pk and WindowDiff of the model and of the plain cosine of neighbours, per set. All
choices (epoch, thresholds) are made on the dev documents. The same data, seed and library versions give the same
weights. Needs torch, scikit-learn and nltk.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval._boundary_data import MAX_SENTENCE, SEED, Labelled, read_all
from rag.errors import missing_extra
from rag.protocols import Embedder
from rag.registry import build

HIDDEN, DROPOUT, BATCH, RATE, DECAY = 64, 0.5, 256, 1e-3, 0.02
PARTS = ("train", "dev", "test", "other")

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """All places between neighbours of one document: what the model sees, the label, the cosine of the two."""

    document: Labelled
    features: Floats
    ends: Flags
    usable: Flags
    """False beside a sentence that is too long to be one."""
    cosines: Scores


def vectors_of(documents: Sequence[Labelled], embedder: Embedder, cache: Path | None) -> dict[str, Floats]:
    """Sentence -> vector; with `cache`, a folder, vectors of the same sentences and encoder are read from there."""
    texts = sorted({text[:MAX_SENTENCE] for document in documents for text in document.sentences})
    key = hashlib.sha256("\0".join((embedder.fingerprint, *texts)).encode()).hexdigest()[:16]
    path = cache / f"boundary-{key}.npy" if cache else None
    if path is not None and path.exists():
        matrix = np.load(path, allow_pickle=False)
    else:
        matrix = embedder.embed(texts)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, matrix)
    return dict(zip(texts, matrix, strict=True))


def pairs_of(document: Labelled, known: dict[str, Floats], chunker: Any) -> Pairs:
    vectors = np.stack([known[text[:MAX_SENTENCE]] for text in document.sentences])
    short = np.array([len(text) <= MAX_SENTENCE for text in document.sentences])
    return Pairs(
        document=document,
        features=chunker.pair_features(document.sentences, vectors),
        ends=np.array(document.ends),
        usable=short[:-1] & short[1:],
        cosines=np.einsum("ij,ij->i", vectors[:-1], vectors[1:], dtype=np.float64),
    )


@dataclass(frozen=True, kw_only=True)
class Model:
    """The trained arrays, as `chunkers/boundary.npz` holds them."""

    arrays: dict[str, Floats]

    def scores(self, features: Floats) -> Scores:
        part = {name: value.astype(np.float32) for name, value in self.arrays.items()}
        hidden = np.maximum((features - part["mean"]) * part["scale"] @ part["w1"] + part["b1"], 0.0)
        found: Scores = (hidden @ part["w2"] + part["b2"]).astype(np.float64)
        return found

    def of(self, pairs: Pairs) -> Scores:
        return self.scores(pairs.features)


def train(train_pairs: Sequence[Pairs], dev_pairs: Sequence[Pairs], epochs: int) -> tuple[Model, list[float]]:
    """The model of the epoch with the highest AUC on dev, and that AUC for every epoch."""
    import torch

    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # sums in another order are other sums
    features, ends = stacked(train_pairs)
    mean = features.mean(axis=0)
    scale = 1.0 / (features.std(axis=0) + 1e-3)
    inputs = torch.from_numpy((features - mean) * scale)
    labels = torch.from_numpy(ends.astype(np.float32))
    network = torch.nn.Sequential(
        torch.nn.Dropout(0.1),
        torch.nn.Linear(inputs.shape[1], HIDDEN),
        torch.nn.ReLU(),
        torch.nn.Dropout(DROPOUT),
        torch.nn.Linear(HIDDEN, 1),
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    best, history = Model(arrays={}), [0.0]
    for _ in range(epochs):
        network.train()
        for rows in torch.split(torch.randperm(len(inputs)), BATCH):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(network(inputs[rows]).squeeze(1), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
            optimizer.step()
        model = exported(network, mean, scale, float(ends.mean()))
        result = float(np.mean(list(auc_by_set(dev_pairs, model.of).values())))
        if result > max(history):
            best = model
        history.append(result)
    return best, history[1:]


def exported(network: Any, mean: Floats, scale: Floats, rate: float) -> Model:
    """float16 arrays of an eval-mode network."""
    first, last = network[1], network[4]
    arrays = {
        "mean": mean,
        "scale": scale,
        "w1": first.weight.detach().numpy().T,
        "b1": first.bias.detach().numpy(),
        "w2": last.weight.detach().numpy()[0],
        "b2": last.bias.detach().numpy()[0],
        "base": np.log(rate / (1.0 - rate)),
    }
    return Model(arrays={name: np.asarray(value).astype(np.float16) for name, value in arrays.items()})


def stacked(pairs: Sequence[Pairs]) -> tuple[Floats, Flags]:
    return (
        np.concatenate([one.features[one.usable] for one in pairs]),
        np.concatenate([one.ends[one.usable] for one in pairs]),
    )


def auc_by_set(pairs: Sequence[Pairs], score: Callable[[Pairs], Scores]) -> dict[str, float]:
    """Set -> chance that a paragraph end scores higher than another place of the same set."""
    from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped, unused-ignore]

    found = {}
    for kind in sorted({one.document.kind for one in pairs}):
        of_kind = [one for one in pairs if one.document.kind == kind]
        ends = np.concatenate([one.ends[one.usable] for one in of_kind])
        scores = np.concatenate([score(one)[one.usable] for one in of_kind])
        found[kind] = float(roc_auc_score(ends, scores))
    return found


def segmentation(pairs: Sequence[Pairs], score: Callable[[Pairs], Scores], threshold: float) -> tuple[float, float]:
    """Mean Pk and WindowDiff over documents, the window half the mean length of a paragraph; lower is better."""
    try:
        from nltk.metrics.segmentation import pk, windowdiff  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise missing_extra("nltk", "eval", "eval.train_boundary") from None
    rows = []
    for one in pairs:
        wanted, window = digits(one.ends), max(2, round(0.5 * (len(one.ends) + 1) / (one.ends.sum() + 1)))
        if len(wanted) > window:
            given = digits(score(one) > threshold)
            rows.append((float(pk(wanted, given, k=window)), float(windowdiff(wanted, given, window))))
    means = np.mean(rows, axis=0)
    return float(means[0]), float(means[1])


def digits(ends: Flags) -> str:
    return "".join("1" if end else "0" for end in ends)


def threshold_for(pairs: Sequence[Pairs], score: Callable[[Pairs], Scores]) -> float:
    """The one of 40 quantiles of the scores with the lowest Pk."""
    values = np.quantile(np.concatenate([score(one) for one in pairs]), np.linspace(0.4, 0.99, 40))
    return float(min(values, key=lambda value: segmentation(pairs, score, float(value))[0]))


def figures(by_part: dict[str, list[Pairs]], model: Model) -> dict[str, Any]:
    """Method -> part -> set -> AUC, and Pk and WindowDiff with the threshold of dev."""
    methods: dict[str, Callable[[Pairs], Scores]] = {
        "cosine": lambda pairs: -pairs.cosines,
        "model": model.of,
    }
    found: dict[str, Any] = {}
    for name, score in methods.items():
        threshold = threshold_for(by_part["dev"], score)
        found[name] = {"threshold": threshold}
        for part in ("dev", "test", "other"):
            areas = auc_by_set(by_part[part], score)
            cells = {kind: {"auc": area} for kind, area in areas.items()}
            for kind, cell in cells.items():
                of_kind = [one for one in by_part[part] if one.document.kind == kind]
                cell["pk"], cell["windowdiff"] = segmentation(of_kind, score, threshold)
            cells["mean"] = {key: float(np.mean([cell[key] for cell in cells.values()])) for key in cells[kind]}
            found[name][part] = cells
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the boundary model of the chunker sage.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the public sets")
    parser.add_argument("--out", type=Path, required=True, help="where the weights go (.npz)")
    parser.add_argument("--cache", type=Path, help="a folder to keep sentence vectors in")
    parser.add_argument("--epochs", type=int, default=10)
    given = parser.parse_args()
    embedder: Embedder = build("embedder", {"use": "minilm", "overlong": "window"}, services={})
    chunker = build("chunker", "sage", services={"embedder": embedder, "counter": embedder.counter})
    documents = read_all(given.data)
    known = vectors_of(documents, embedder, given.cache)
    by_part = {part: [pairs_of(one, known, chunker) for one in documents if one.part == part] for part in PARTS}
    model, history = train(by_part["train"], by_part["dev"], given.epochs)
    np.savez(given.out, model=np.array(embedder.fingerprint), **model.arrays)  # type: ignore[arg-type, unused-ignore]
    data = given.out.read_bytes()
    report = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "encoder": embedder.fingerprint,
        "pairs": {part: int(sum(one.usable.sum() for one in pairs)) for part, pairs in by_part.items()},
        "documents": {part: len(pairs) for part, pairs in by_part.items()},
        "dev_auc_by_epoch": [round(value, 4) for value in history],
        "figures": figures(by_part, model),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
