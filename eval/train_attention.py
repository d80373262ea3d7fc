"""Trains what chooses in the selections dma, chunkllm and sparda, on the bundled model's own attention.

    python -m eval.train_attention --data DIR --out DIR [--cache DIR] [--sequences 64] [--epochs 6]

Writes dma.safetensors, chunkllm.safetensors and sparda.safetensors, which the parameter `weights` of the selections
names, and prints as JSON what each keeps of the attention of texts that were not trained on, beside quest, the same
selections without training, a plain window and the best that any could keep, at the same number of slots. The model
stays as it is. Development halves only. The same data, seed and library versions give the same weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar

import torch
from torch import Tensor

from eval._attention_data import Text, other_texts, recorded, texts_of
from eval._attention_training import FIRST, Seen, boundary_auc, kept_of, loss_of, module_of, seen, train_boundary
from eval.bench._kv_prompts import Loaded, load
from rag.engine.attention import Kept, Memory, Selection, Step, Units
from rag.engine.attention.chunkllm import Chunkllm
from rag.engine.attention.dma import Dma
from rag.engine.attention.quest import Quest
from rag.engine.attention.sink_recent import SinkRecent
from rag.engine.attention.sparda import Sparda

METHODS = ("dma", "chunkllm", "sparda")
SEED, BATCH, RATE = 17, 4, 3e-3
TRAIN_TOKENS, TEST_TOKENS = 1024, 2048
BOUNDARY = 1
"""The layer whose values the chunk adapter reads: they are made of what the bottom layer says."""
DENSITIES = (0.1, 0.25)
State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Oracle(Selection):
    """The tokens with the largest attention of each kv head, the last `local` among what is read."""

    name: ClassVar[str] = "oracle"
    budget: int
    local: int = 64

    def select(self, step: Step, memory: Memory) -> Kept | None:
        far = max(0, step.first + 1 - self.local)
        scores = (step.grouped @ step.key[:, :, None].transpose(-1, -2) * step.scaling).softmax(-1).mean(2)[..., :far]
        index = scores.topk(min(far, self.budget - self.local), dim=-1).indices.sort(dim=-1).values
        return Kept(Units.pages(far, 1), (0, 1), (far,), index=index)


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains what chooses in dma, chunkllm and sparda.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the public sets")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the weights")
    parser.add_argument("--cache", type=Path, help="a folder that keeps the attention, 30 MB a text; default: in --out")
    parser.add_argument("--sequences", type=int, default=64, help="texts to train on, at most")
    parser.add_argument("--tests", type=int, default=12, help="texts of each kind to test on, at most")
    parser.add_argument("--epochs", type=int, default=6)
    given = parser.parse_args()
    torch.set_num_threads(1)  # sums in another order are other sums
    loaded = load()
    given.out.mkdir(parents=True, exist_ok=True)
    cache = given.cache or given.out / "attention"
    rows = torch.arange(8, TRAIN_TOKENS // 16 + 1) * 16 - 1
    texts = texts_of(loaded, given.data, "train", tokens=TRAIN_TOKENS, count=given.sequences)
    paths = [recorded(loaded, text, rows, cache) for text in texts]
    states = train(loaded, paths, rows, given.epochs)
    torch.manual_seed(SEED)
    boundary = train_boundary(paths, texts, BOUNDARY)
    states["chunkllm"] |= {f"boundary.{BOUNDARY}.{name}": one for name, one in boundary.state_dict().items()}
    report: dict[str, Any] = {
        "model": loaded.model.fingerprint, "texts": len(texts), "epochs": given.epochs, "weights": {},
    }  # fmt: skip
    files = {method: given.out / f"{method}.safetensors" for method in METHODS}
    for method, file in files.items():
        report["weights"][method] = save(file, method, states[method], loaded)
    held = texts_of(loaded, given.data, "held", tokens=TRAIN_TOKENS, count=given.tests)
    report["boundary"] = boundary_auc(boundary, [recorded(loaded, one, rows, cache) for one in held], held, BOUNDARY)
    tests = {
        "held": texts_of(loaded, given.data, "held", tokens=TEST_TOKENS, count=given.tests),
        "other": other_texts(loaded, given.data, tokens=TEST_TOKENS, count=given.tests // 2),
    }
    report["kept"] = {kind: test(loaded, of, files, cache) for kind, of in tests.items()}
    print(json.dumps(report, indent=1))


def train(loaded: Loaded, paths: Sequence[Path], rows: Tensor, epochs: int) -> dict[str, State]:
    """Method -> tensors of all layers. The forecast that chooses in a layer is of the one before."""
    model, found = loaded.model, {method: State() for method in METHODS}
    rotary: Tensor = model.frequencies
    for layer in range(model.layers):
        of = [seen(path, layer, rows, rotary) for path in paths]
        for method in METHODS:
            at = layer - 1 if method == "sparda" else layer
            if at < 0:
                continue
            torch.manual_seed(SEED + layer)
            module = module_of(method, of[0].query.shape[0], model.kv_heads, model.head_dim)
            _fit(method, module, of, rotary, epochs)
            found[method] |= {f"layers.{at}.{name}": one for name, one in module.state_dict().items()}
    last = model.layers - 1  # of which no layer reads the forecast, but which makes one
    found["sparda"] |= {f"layers.{last}.forecast.weight": found["sparda"][f"layers.{last - 1}.forecast.weight"]}
    return found


def _fit(method: str, module: torch.nn.Module, of: Sequence[Seen], rotary: Tensor, epochs: int) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=0.01)
    order = [batch for _ in range(epochs) for batch in torch.split(torch.randperm(len(of)), BATCH)]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(order))
    for batch in order:
        loss = torch.stack([loss_of(method, module, of[int(at)], rotary) for at in batch]).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        optimizer.step()
        schedule.step()


def save(file: Path, method: str, state: State, loaded: Loaded) -> dict[str, Any]:
    """float16, with the frequencies by which the model rotates in float32."""
    from safetensors.torch import save_file

    tensors = {name: one.detach().half().contiguous().clone() for name, one in sorted(state.items())}
    tensors["rotary"] = loaded.model.frequencies.float()
    save_file(tensors, file, metadata={"method": method, "model": loaded.model.fingerprint})
    data = file.read_bytes()
    parameters = sum(one.numel() for one in tensors.values())
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "parameters": parameters}


def selections_at(budget: int, files: Mapping[str, Path]) -> dict[str, Selection]:
    """All of them read so many slots in a row."""
    found: dict[str, Selection] = {
        "oracle": Oracle(budget=budget), "quest": Quest(budget=budget),
        "sink-recent": SinkRecent(budget=budget, sink=16, q_block=1),
        "dma, untrained": Dma(keep_window_size=budget),
        "chunkllm, untrained": Chunkllm(budget=budget, trained=False, refresh=1),
        "sparda, untrained": Sparda(budget=budget, trained=False, page_size=32, local=32, q_block=32),
    }  # fmt: skip
    if "dma" in files:
        found["dma"] = Dma(keep_window_size=budget, weights=str(files["dma"]))
    if "chunkllm" in files:
        found["chunkllm"] = Chunkllm(budget=budget, weights=str(files["chunkllm"]), refresh=1)
        found["chunkllm, pages of 16"] = Chunkllm(
            budget=budget, weights=str(files["chunkllm"]), refresh=1, chunk_size=16
        )  # fmt: skip
    if "sparda" in files:
        weights = str(files["sparda"])
        found["sparda"] = Sparda(budget=budget, weights=weights, page_size=32, local=32, q_block=32)
        found["sparda, pages of 16"] = Sparda(budget=budget, weights=weights, page_size=16, local=32, q_block=32)
    return found


def test(loaded: Loaded, texts: Sequence[Text], files: Mapping[str, Path], cache: Path) -> dict[str, Any]:
    """Density -> selection -> mean share of the attention mass, that of the worst text, and of the evidence of needles,
    for tokens in the last quarter of each text and, of needles, for the last."""
    cells: dict[str, dict[str, list[tuple[float, float, bool]]]] = {}
    for text in texts:
        last = len(text.ids) - 1
        asked = text.evidence is not None
        places = torch.tensor([last] if asked else [last - last * at // 16 for at in range(4)][::-1])
        path = recorded(loaded, text, places, cache)
        for density in DENSITIES:
            selections = selections_at(int(density * len(text.ids)), files)
            for name, (mass, evidence) in kept_of(path, text, loaded.model.layers, places, selections).items():
                cells.setdefault(str(density), {}).setdefault(name, []).append((mass, evidence, asked))
    return {
        density: {name: _summary(rows) for name, rows in sorted(of.items())} for density, of in cells.items()
    } | {"layers": f"{FIRST} to {loaded.model.layers - 1}"}  # fmt: skip


def _summary(rows: Sequence[tuple[float, float, bool]]) -> dict[str, float]:
    mass = [row[0] for row in rows if not row[2]]
    needles = [row[1] for row in rows if row[2]]
    found = {"mass": round(mean(mass), 4), "worst": round(min(mass), 4), "texts": len(mass)} if mass else {}
    return found | ({"evidence": round(mean(needles), 4), "needles": len(needles)} if needles else {})


if __name__ == "__main__":
    main()
