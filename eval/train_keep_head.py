"""Trains the keep head of `provence` and `provence-rerank` on evidence spans of public sets, development halves only.

    python -m eval.train_keep_head --data DIR --out rag/spans/keep_head.npz [--cache DIR] [--epochs 5]

Prints its figures as JSON: AUC of tokens and of passages per set, for questions that were not trained on and for sets
that were not, beside the plain cosine of sentence and question; what the sentence vote keeps at several thresholds.
The epoch is chosen on `val`. The same data, seed and library versions give the same
weights. Needs torch and scikit-learn.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval._keep_data import OTHERS, TRAINED, Pair, read_pairs
from eval.chunks.vectors import CachedEmbedder
from rag.protocols import Embedder
from rag.registry import build
from rag.spans.keep_features import BUCKETS, WORDS, Asked, bucket, sentence_rows, state_features, word_features
from rag.spans.keep_head import logits, passage_features
from rag.spans.keep_input import Joint, joint_states

SEED, HIDDEN, DROPOUT, BATCH, RATE, DECAY = 17, 64, 0.3, 16, 1e-3, 0.02
PASSAGE_HIDDEN, PASSAGE_STEPS = 16, 400
COSINE = 40
"""Column of the features: cosine of the sentence with the question's own vector."""

Floats = NDArray[np.float32]
Arrays = dict[str, Floats]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A pair as the head sees it; `labels` (n,) are 1 for tokens of the evidence."""

    pair: Pair
    rows: NDArray[np.int64]
    plain: Floats
    labels: Floats


def examples(pairs: Sequence[Pair], rarity: Floats, embedder: Embedder) -> list[Example]:
    made = []
    for question, group in groupby(pairs, key=lambda pair: pair.question):
        of = list(group)
        texts = [pair.passage for pair in of]
        asked = Asked(question, rarity)
        asked.learn(texts)
        vector = embedder.embed_question(question)
        joints = joint_states(question, texts, embedder)
        made += [_example(pair, joint, asked, vector) for pair, joint in zip(of, joints, strict=True) if joint.places]
    return made


def _example(pair: Pair, joint: Joint, asked: Asked, vector: Floats) -> Example:
    rows, sentences = sentence_rows(joint)
    half = replace(joint, states=_half(joint.states), asked=_half(joint.asked))
    plain = [word_features(half, asked, rows, sentences), state_features(half, vector, rows)]
    gold = [any(start < last and end > first for first, last in pair.gold) for start, end in joint.places]
    return Example(pair=pair, rows=rows, plain=np.concatenate(plain, axis=1), labels=np.array(gold, dtype="f4"))


def _half(states: Floats) -> Floats:
    """Rounded, so that bfloat16 and float32 encoders give nearly the same head."""
    return states.astype(np.float16).astype(np.float32)


def rarity_of(pairs: Sequence[Pair]) -> Floats:
    """(BUCKETS,) IDF of words over the passages that are trained on."""
    passages = {pair.passage for pair in pairs if pair.part == "train"}
    counts = np.zeros(BUCKETS)
    for passage in passages:
        for at in {bucket(found.group().lower()) for found in re.finditer(r"\w+", passage)}:
            counts[at] += 1
    return np.log(1 + (len(passages) - counts + 0.5) / (counts + 0.5)).astype(np.float16).astype(np.float32)


def train(all_of: dict[str, list[Example]], epochs: int) -> tuple[Arrays, list[float]]:
    """The token head of the epoch with the highest mean AUC on `val`, and that AUC for every epoch."""
    import torch

    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # sums in another order are other sums
    plain = np.concatenate([one.plain for one in all_of["train"]])
    arrays: Arrays = {"mean": plain.mean(axis=0), "scale": 1 / (plain.std(axis=0) + 1e-3)}
    network = _network(plain.shape[1])
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    loss_of = torch.nn.functional.binary_cross_entropy_with_logits
    best, history = dict(arrays), [0.0]
    for _ in range(epochs):
        network.train()
        for rows in torch.split(torch.randperm(len(all_of["train"])), BATCH):
            batch = [all_of["train"][int(row)] for row in rows]
            told = _forward(network, arrays, batch)
            loss = loss_of(told, torch.from_numpy(np.concatenate([one.labels for one in batch])))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
            optimizer.step()
        now = exported(network, arrays)
        areas = auc_by_set(all_of["val"], [tokens(now, one) for one in all_of["val"]])
        result = float(np.mean([area["tokens"] for area in areas.values()]))
        if result > max(history):
            best = now
        history.append(result)
    return best, history[1:]


def _network(width: int) -> Any:
    from torch import nn

    made = nn.ModuleDict(
        {
            "a": nn.Linear(width, HIDDEN),
            "b": nn.Linear(HIDDEN, HIDDEN),
            "c": nn.Linear(HIDDEN, 1),
            "drop": nn.Dropout(DROPOUT),
        }
    )
    return made


def _forward(network: Any, arrays: Arrays, batch: Sequence[Example]) -> Any:
    import torch

    inputs = torch.from_numpy(np.concatenate([(one.plain - arrays["mean"]) * arrays["scale"] for one in batch]))
    hidden = torch.relu(network["a"](inputs))
    hidden = torch.relu(network["b"](network["drop"](hidden)))
    return network["c"](network["drop"](hidden)).squeeze(1)


def exported(network: Any, arrays: Arrays) -> Arrays:
    """Arrays as inference reads them, rounded to float16."""
    made = dict(arrays)
    for name in ("a", "b", "c"):
        made[name] = network[name].weight.detach().numpy().T
        made[f"{name}0"] = network[name].bias.detach().numpy()
    made["c"], made["c0"] = made["c"][:, 0], made["c0"][0]
    return {name: np.asarray(value).astype(np.float16).astype(np.float32) for name, value in made.items()}


def tokens(arrays: Arrays, one: Example) -> Floats:
    return logits(arrays, one.plain)


def train_passages(arrays: Arrays, all_of: dict[str, list[Example]]) -> Arrays:
    """The arrays with the head that scores passages, of the step with the highest mean AUC on `val`."""
    import torch

    torch.manual_seed(SEED)
    facts = {part: facts_of(arrays, all_of[part]) for part in ("train", "val")}
    mean = facts["train"].mean(axis=0)
    scale = 1 / (facts["train"].std(axis=0) + 1e-3)
    inputs = torch.from_numpy(((facts["train"] - mean) * scale).astype("f4"))
    labels = torch.tensor([float(bool(one.pair.gold)) for one in all_of["train"]])
    first, last = torch.nn.Linear(inputs.shape[1], PASSAGE_HIDDEN), torch.nn.Linear(PASSAGE_HIDDEN, 1)
    optimizer = torch.optim.AdamW([*first.parameters(), *last.parameters()], lr=5e-3, weight_decay=0.05)
    best, most = arrays, 0.0
    for step in range(1, PASSAGE_STEPS + 1):
        told = last(torch.relu(first(inputs))).squeeze(1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(told, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        optimizer.step()
        if step % 40 == 0:
            made = {"passage_mean": mean, "passage_scale": scale, "r": first.weight.detach().numpy().T,
                    "r0": first.bias.detach().numpy(), "s": last.weight.detach().numpy()[0],
                    "s0": last.bias.detach().numpy()[0]}  # fmt: skip
            now = arrays | {name: np.asarray(one).astype("f2").astype("f4") for name, one in made.items()}
            areas = auc_by_set(all_of["val"], None, scores(now, all_of["val"]))
            result = float(np.mean([area["passages"] for area in areas.values()]))
            if result > most:
                best, most = now, result
    return best


def facts_of(arrays: Arrays, of: Sequence[Example]) -> Floats:
    return np.stack([passage_features(tokens(arrays, one), one.plain, one.rows) for one in of])


def scores(arrays: Arrays, of: Sequence[Example]) -> Floats:
    facts = (facts_of(arrays, of) - arrays["passage_mean"]) * arrays["passage_scale"]
    told: Floats = np.maximum(facts @ arrays["r"] + arrays["r0"], 0.0) @ arrays["s"] + arrays["s0"]
    return told


def auc_by_set(
    of: Sequence[Example], told: Sequence[Floats] | None, passages: Floats | None = None
) -> dict[str, dict[str, float]]:
    """Set -> chance that evidence scores higher than other text of the same set: tokens, passages."""
    from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped, unused-ignore]

    found: dict[str, dict[str, float]] = {}
    for name in sorted({one.pair.set for one in of}):
        places = [at for at, one in enumerate(of) if one.pair.set == name]
        cell = found.setdefault(name, {})
        if told is not None:
            labels = np.concatenate([of[at].labels for at in places])
            cell["tokens"] = float(roc_auc_score(labels, np.concatenate([told[at] for at in places])))
        if passages is not None:
            cell["passages"] = float(roc_auc_score([bool(of[at].pair.gold) for at in places], passages[places]))
    return found


def vote(arrays: Arrays, of: Sequence[Example], threshold: float) -> dict[str, dict[str, float]]:
    """Set -> share of all tokens, and of evidence tokens, in sentences that the vote keeps."""
    sums: dict[str, Floats] = {}
    for one in of:
        over = (1 / (1 + np.exp(-tokens(arrays, one))) > threshold).astype("f4")
        sizes = np.maximum(np.bincount(one.rows), 1)
        kept = (np.bincount(one.rows, weights=over) > 0.5 * sizes)[one.rows]
        row = np.array([kept.sum(), len(kept), (kept * one.labels).sum(), one.labels.sum()], dtype="f4")
        sums[one.pair.set] = sums.get(one.pair.set, np.zeros(4, dtype="f4")) + row
    return {name: {"tokens": float(a / b), "evidence": float(c / d)} for name, (a, b, c, d) in sums.items()}


def report(arrays: Arrays, all_of: dict[str, list[Example]], *, cosine: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in ("val", "other"):
        of = all_of[part]
        found[part] = auc_by_set(of, [tokens(arrays, one) for one in of], scores(arrays, of))
        if cosine:
            best = np.array([one.plain[:, COSINE].max() for one in of])
            found[f"{part} cosine"] = auc_by_set(of, [one.plain[:, COSINE] for one in of], best)
        found[f"{part} vote"] = {str(at): vote(arrays, of, at) for at in (0.05, 0.1, 0.2, 0.5)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the keep head of the compressor provence.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the public sets")
    parser.add_argument("--out", type=Path, required=True, help="where the weights go (.npz)")
    parser.add_argument("--cache", type=Path, help="a folder to keep indexes and vectors in")
    parser.add_argument("--epochs", type=int, default=5)
    given = parser.parse_args()
    inner: Embedder = build("embedder", "minilm", services={})
    cached = CachedEmbedder(inner=inner, folder=given.cache / "vectors" if given.cache else None)
    pairs = read_pairs(given.data, cached, given.cache, (*TRAINED, *OTHERS))
    rarity = rarity_of(pairs)
    arrays: Arrays = {"rarity": rarity}
    done: dict[str, Any] = {"encoder": inner.fingerprint, "pairs": {}}
    made = examples(pairs, rarity, inner)
    for kind, width in (("states", made[0].plain.shape[1]), ("words", WORDS)):
        cut = [replace(one, plain=one.plain[:, :width]) for one in made]
        all_of = {part: [one for one in cut if one.pair.part == part] for part in ("train", "val", "other")}
        done["pairs"] = {part: len(of) for part, of in all_of.items()}
        best, history = train(all_of, given.epochs)
        head = train_passages(best, all_of)
        arrays |= {f"{kind}.{name}": value for name, value in head.items()}
        done[kind] = {"val_auc_by_epoch": history, **report(head, all_of, cosine=kind == "states")}
    stored = {name: value.astype(np.float16) for name, value in arrays.items()}
    np.savez(given.out, model=np.array(inner.fingerprint), **stored)  # type: ignore[arg-type, unused-ignore]
    data = given.out.read_bytes()
    done |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    print(json.dumps(done, indent=1))


if __name__ == "__main__":
    main()
