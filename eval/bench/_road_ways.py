"""The ways from hits to the first token that `rag bench road` compares, and one question taken along each of them.

Times are CPU seconds of shortening, writing the prompt, loading, placing and computing, up to the logits of the first
token. The KV of a question's chunks lies in a store of its own on disk: cold runs find it empty but for the start of
the prompt and fill it, warm ones load from it, and "half" finds every other chunk.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eval.bench._road_contexts import Road
from rag.prompt import build_prompt
from rag.spans.pieces import unchanged

if TYPE_CHECKING:
    from rag.generators._decode import Reading
    from rag.generators._parts import Part
    from rag.generators.local import LocalGenerator
    from rag.protocols import Compressor, Corpus
    from rag.types import CompressedContext

__all__ = ["FULL", "REPAIRED", "Reader", "Taken", "take", "ways_of"]

FULL = "whole, computed"
REPAIRED = "donor-mean + first-variance"
_OWN = ", own blocks"
_SPECS: Mapping[str, dict[str, Any]] = {
    "computed": {"reuse": "none"},
    "solo": {"blocks": "solo", "repair": "naive"},
    "solo + first tokens": {"blocks": "solo", "repair": {"use": "epic", "k": 16, "first": False}},
    "donor-mean": {"blocks": "donor-mean", "repair": "naive"},
    REPAIRED: {"blocks": "donor-mean", "repair": "first-variance"},
}
"""How `local` reads, by name: with chunk reuse except for "computed"."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A way: what shortens the chunks (None: nothing), how they are read, and what the store holds before.

    `own` keeps the shortened pieces as chunks of their own, which only pieces that no question changes are worth.
    """

    name: str
    compressor: str | None
    reading: str
    store: Literal["cold", "half", "warm"] = "warm"
    own: bool = False


def ways_of(rates: Sequence[float]) -> list[Taken]:
    """Cold ways first: they fill the stores of the warm ones."""
    made = [
        Taken(name="whole, solo, cold", compressor=None, reading="solo", store="cold"),
        Taken(name=f"whole, {REPAIRED}, cold", compressor=None, reading=REPAIRED, store="cold"),
        Taken(name=FULL, compressor=None, reading="computed"),
        Taken(name=f"whole, {REPAIRED}, half", compressor=None, reading=REPAIRED, store="half"),
    ]
    reused = [name for name in _SPECS if name != "computed"]
    made += [Taken(name=f"whole, {name}", compressor=None, reading=name) for name in reused]
    for rate in rates:
        prune, stable = f"sentence-prune {rate}", f"stable-prune {rate}"
        made.append(Taken(name=f"{prune}, computed", compressor=prune, reading="computed"))
        made += [Taken(name=f"{prune}, KV pruning, {name}", compressor=prune, reading=name) for name in reused]
        made.append(Taken(name=f"{stable}, computed", compressor=stable, reading="computed"))
    stable = f"stable-prune {max(rates)}"
    own = Taken(name=f"{stable}, own blocks", compressor=stable, reading=REPAIRED, own=True)
    made += [replace(own, name=f"{own.name}, cold", store="cold"), own]
    return made


class _Place:
    """What reuse asks of a corpus: where KV is kept."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory


class Reader:
    """Generators that share a model, one for each entry of _SPECS, and those that keep cut pieces as they are."""

    def __init__(self, base: LocalGenerator) -> None:
        self.by_name: dict[str, LocalGenerator] = {}
        for name, spec in _SPECS.items():
            for kind, cut_pieces in (("", "prune"), (_OWN, "compute")):
                given: dict[str, Any] = {"reuse": "chunk", "cut_pieces": cut_pieces, **spec}
                made = replace(base, **given)
                vars(made).update({one: getattr(base, one) for one in ("_folder", "_loaded", "_counting", "_template")})
                self.by_name[name + kind] = made

    def parts(self, name: str, context: CompressedContext, corpus: Corpus, *, own: bool) -> list[Part]:
        """As `generate` makes them, each chunk with an owner of its own."""
        reader = self.by_name[name + (_OWN if own else "")]
        documents = {piece.doc_id: corpus.document(piece.doc_id) for piece in context.pieces}
        before, after = reader._template
        after += reader.lead
        prompt = build_prompt(context, documents, system=before, after=after)
        _, parts = reader._parts(prompt, after, context, documents)
        chunks = {2 + 2 * number: piece.chunk_id for number, piece in enumerate(context.pieces)}
        return [
            replace(part, owner=chunks[at]) if at in chunks and (part.owner or own) else part
            for at, part in enumerate(parts)
        ]


def take(
    reader: Reader,
    road: Road,
    corpus: Corpus,
    compressors: Mapping[str, Compressor],
    ways: Sequence[Taken],
    draw: random.Random,
) -> list[dict[str, Any]]:
    """A row for every way: seconds and those of shortening, tokens of the context, of what is left, of the prompt and
    of those computed, logp of the answer; kl of the first token and whether it is the same, against FULL."""
    for one in compressors.values():
        one.compress(road.bubble, corpus)  # vectors of its sentences are kept from now on
    cold = [way for way in ways if way.store == "cold"]
    others = [way for way in ways if way.store != "cold"]
    rows: list[dict[str, Any]] = []
    logits: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as folder:
        for way in [*cold, *draw.sample(others, len(others))]:
            row, logits[way.name] = _taken(reader, road, corpus, compressors, way, Path(folder))
            rows.append(row)
    full = logits[FULL].double().log_softmax(-1)
    for row in rows:
        ours = logits[row["way"]].double().log_softmax(-1)
        row["kl"] = float((full.exp() * (full - ours)).sum())
        row["same"] = bool(full.argmax() == ours.argmax())
    return rows


def _taken(
    reader: Reader, road: Road, corpus: Corpus, compressors: Mapping[str, Compressor], way: Taken, folder: Path
) -> tuple[dict[str, Any], Any]:
    generator = reader.by_name[way.reading]
    place: Any = _Place(_store_of(reader, road, way, folder))
    done: Reading | None = None
    while done is None or (way.store == "warm" and done.made):  # another chunk came to be the first: kept from now on
        begin = time.process_time()
        if way.compressor is None:
            context = unchanged(road.bubble, generator.counter, "none")
        else:
            context = compressors[way.compressor].compress(road.bubble, corpus)
        shortened = time.process_time() - begin
        parts = reader.parts(way.reading, context, corpus, own=way.own)
        done = generator._read(parts, place)
        spent = time.process_time() - begin
    row = {
        "way": way.name, "seconds": spent, "compress_seconds": shortened, "prompt": sum(len(one.ids) for one in parts),
        "context": road.bubble.token_count, "left": context.token_count, "computed": done.computed, "made": done.made,
        "logp": _likelihood(done, generator._plain_ids(f" {road.answer}")),
    }  # fmt: skip
    return row, done.logits.cpu()


def _store_of(reader: Reader, road: Road, way: Taken, folder: Path) -> Path:
    """A cold way gets a new folder with the start of the prompt, "half" a copy without every other chunk."""
    blocks = way.reading.partition(" +")[0] + (_OWN if way.own else "")
    warm = folder / blocks
    generator = reader.by_name[way.reading]
    if way.store == "cold":
        warm.mkdir()
        generator._chunk_kv.prepare(generator._template_ids(generator._template[0]), [], warm)
        generator._chunk_kv._donors_before(tuple(generator._template_ids(generator._template[0])))
    if way.store != "half":
        return warm
    from rag.engine.store import KvStore
    from rag.store.kv import KV_NAME

    half = folder / f"{blocks} half"
    shutil.copytree(warm, half)
    with KvStore(half / KV_NAME, max_bytes=generator.kv_bytes) as store:
        for hit in road.bubble.hits[::2]:
            store.drop(hit.chunk.id)
    return half


def _likelihood(done: Reading, answer: Sequence[int]) -> float:
    """Mean ln p of the tokens of the answer."""
    total, logits = 0.0, done.logits
    for at, token in enumerate(answer):
        total += float(logits.double().log_softmax(-1)[token])
        if at + 1 < len(answer):
            logits = done.step(token)
    return total / len(answer)
