"""Blocks made behind a chunk's neighbours: these are exact, answers the same from disk, no trace outlives its text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("faiss")

from rag.answer import Answer  # noqa: E402
from rag.engine.donor import DonorMean  # noqa: E402
from rag.engine.store import Entry, KvStore  # noqa: E402
from rag.errors import ConfigError, MissingError  # noqa: E402
from rag.generators import _neighbours  # noqa: E402
from rag.generators._calibration import calibrated, write_calibration  # noqa: E402
from rag.generators._neighbours import EACH, GROUPS, TOKENS, Behind, Neighbours, between, nearest  # noqa: E402
from rag.generators.local import LocalGenerator  # noqa: E402
from rag.index import Index  # noqa: E402
from rag.pipeline import Pipeline  # noqa: E402
from rag.store.kv import KV_NAME, SHARED_OWNER  # noqa: E402
from rag.store.store import Store  # noqa: E402
from tests.corpora import topic_corpus  # noqa: E402
from tests.unit.test_generators_reuse import doc_ids, folder, laid, seen, written  # noqa: E402
from tests.unit.test_generators_reuse import pipeline as line_of  # noqa: E402

__all__ = ["folder", "seen"]

NEAR = GROUPS * EACH
FILES = {
    "light.txt": "The lighthouse at Cape Arden was built in 1871 from grey granite. Its lamp turns once a minute.",
    "keeper.txt": "Marta Velde has kept the light since 1902. Before her, her uncle Jonas kept it for many years.",
    "ships.txt": "Ships coming from the north see the light at nineteen miles. In fog a bell is struck for them.",
    "soup.txt": "Soup costs four euros in the canteen on Monday. Bread and butter are free with every bowl of it.",
    "rain.txt": "Rain fell on every day of March. The gauge behind the school filled twice and had to be emptied.",
}
WHO, WHEN = "Who kept the light and which ships see the light?", "When do ships see the light that was kept?"


# ------------------------------------------------------------------ neighbours


def brute(vectors: Any, texts: list[Any]) -> list[list[int]]:
    """All cosines in float64, the first of equal texts alone, sorted."""
    unit = vectors.astype(np.float32)
    norms = np.linalg.norm(unit, axis=1, keepdims=True)
    unit = np.where(norms > 0, unit / np.where(norms > 0, norms, 1), 0).astype(np.float64)
    known = [at for at, text in enumerate(texts) if texts.index(text) == at]
    found = []
    for at, text in enumerate(texts):
        others = [one for one in known if texts[one] != text]
        ranked = sorted(others, key=lambda one: (-round(float(np.dot(unit[one], unit[at])), 9), one))
        found.append(ranked[:NEAR])
    return found


@given(seed=st.integers(0, 10_000), count=st.integers(0, 90), texts=st.integers(1, 90), coarse=st.booleans())
@settings(max_examples=60, deadline=None)
def test_neighbours_are_exact(seed: int, count: int, texts: int, coarse: bool) -> None:
    """Coarse vectors have many ties, and many zeros."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((count, 6)).astype(np.float32)
    if coarse:
        vectors = random.integers(-1, 2, (count, 2)).astype(np.float32)
    names = [int(one) for one in random.integers(0, texts, count)]
    found = nearest(vectors, names)
    assert found == brute(vectors, names)
    assert found == nearest(vectors, names)
    for at, near in enumerate(found):
        assert names[at] not in [names[one] for one in near]  # neither itself nor its twin
        assert len({names[one] for one in near}) == len(near) == min(NEAR, len(set(names)) - 1)


def test_a_thousand_equal_vectors_are_ranked_by_row() -> None:
    vectors = np.ones((1_000, 4), dtype=np.float32)
    found = nearest(vectors, list(range(1_000)))
    assert found[999] == list(range(NEAR))
    assert found[3] == [0, 1, 2, 4, 5, 6, 7, 8]


def test_the_nearest_stand_last_and_apart_and_missing_ones_leave_nothing() -> None:
    near = [[at] * (TOKENS + 5) for at in range(NEAR)]
    assert between(near) == [[at + GROUPS] * TOKENS + [at] * TOKENS for at in range(GROUPS)]
    for count in range(NEAR):
        made = between(near[:count])
        assert len(made) == GROUPS
        for at, group in enumerate(made):
            mine = [one for one in (at + GROUPS, at) if one < count]
            assert group == [token for one in mine for token in near[one][:TOKENS]]


@pytest.mark.parametrize("writable", [True, False])
def test_the_table_is_made_once_for_a_state_of_the_index(
    tmp_path: Path, writable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rag.embedders.hashing import HashingEmbedder

    calls: list[int] = []

    def spy(vectors: Any, texts: Any) -> list[list[int]]:
        calls.append(len(texts))
        return nearest(vectors, texts)

    monkeypatch.setattr(_neighbours, "nearest", spy)

    def neighbours() -> Neighbours:
        return Neighbours(lambda text: list(text.encode()))

    corpus = topic_corpus(tmp_path, HashingEmbedder(), writable=writable)
    chunks = corpus.chunks([int(row) for row in corpus.rows()])
    ours = neighbours()
    told = [ours.of(corpus)(chunk.id) for chunk in chunks]
    assert calls == [len(chunks)]
    again = neighbours()
    assert [again.of(corpus)(chunk.id) for chunk in reversed(chunks)] == told[::-1]
    assert len(calls) == (1 if writable else 2)  # a read-only view keeps no file
    _, vectors = corpus.vectors()
    expected = brute(vectors, [chunk.text.strip() for chunk in chunks])
    for chunk, behind, near in zip(chunks, told, expected, strict=True):
        assert behind.sources == tuple(dict.fromkeys(chunks[one].doc_id for one in near))
        assert len(behind.between) == GROUPS
        last = bytes(behind.between[0]).decode()
        source = corpus.document(chunks[near[0]].doc_id).source
        shown = f"\n<document>\n[1] Source: {source}\n{chunks[near[0]].text.strip()}"
        assert shown[: TOKENS // 2] in last
        assert chunk.text.strip() not in last
    changed = topic_corpus(tmp_path, HashingEmbedder(), generation=2, writable=writable)
    ours.of(changed)
    assert len(calls) == (2 if writable else 3)
    unknown = ours.of(changed)("0123456789abcdef:0-5")
    assert unknown == Behind(([], [], [], []))


def test_an_index_without_vectors_is_told_what_to_do(tmp_path: Path) -> None:
    corpus = topic_corpus(tmp_path, None)
    with pytest.raises(ConfigError, match="blocks: donor-mean, or ingest with an embedder"):
        Neighbours(lambda text: [1]).of(corpus)


# ------------------------------------------------------------------ answers


def pipeline(folder: Path, **given: Any) -> Pipeline:
    return line_of(folder, retriever="faiss-dense", **{"blocks": "neighbour-mean", **given})


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return laid(tmp_path / "files", FILES)


def ask_line(line: Pipeline, question: str, index: Path) -> Answer:
    answer = line.ask(question, index)
    assert len(answer.context.pieces) == 3
    assert answer.stats.reused_tokens + answer.stats.computed_tokens == answer.stats.prompt_tokens
    return answer


def entries(index: Path) -> dict[str, Entry]:
    with KvStore(index / KV_NAME, max_bytes=1 << 30) as store:
        return {entry.key: entry for entry in store.entries()}


@pytest.mark.parametrize("given", [{}, {"kv_dtype": "int8"}, {"ram_bytes": 1 << 24}], ids=str)
def test_blocks_loaded_are_the_blocks_made(
    folder: Path, files: Path, tmp_path: Path, seen: list[Any], given: dict[str, Any]
) -> None:
    index, line = tmp_path / "index", pipeline(folder, **given)
    line.index(files, index).close()
    first = ask_line(line, WHO, index)
    assert first.trace[-1].notes["blocks_made"] == 4
    assert first.stats.policy == "chunk: neighbour-mean, first-variance"
    made = seen[-1]
    for other in (line, pipeline(folder, **given)):  # this process, and another one, as it were
        again = ask_line(other, WHO, index)
        assert again.trace[-1].notes["blocks_made"] == 0
        assert torch.equal(seen[-1], made)
    assert again.stats.bytes_loaded > 0
    if "kv_dtype" not in given:  # int8 needs a place to be rounded
        ask_line(pipeline(folder, kv_bytes=0, **given), WHO, index)
        assert torch.equal(seen[-1], made)
    ask_line(pipeline(folder, **{**given, "blocks": "donor-mean"}), WHO, index)
    assert not torch.allclose(seen[-1], made, atol=1e-3)


def test_with_everything_repaired_the_answer_is_exact(
    folder: Path, files: Path, tmp_path: Path, seen: list[Any]
) -> None:
    full, plain, naive = (pipeline(folder, **one) for one in ({"repair": "all"}, {"reuse": "none"}, {}))
    full.index(files, tmp_path / "index").close()
    for question in (WHO, WHEN, WHO):
        texts = [written(ask_line(one, question, tmp_path / "index")) for one in (full, plain, naive)]
        assert texts[0] == texts[1]
        assert torch.allclose(seen[-3], seen[-2], atol=1e-4)
        assert not torch.allclose(seen[-1], seen[-2], atol=1e-3)


def test_a_block_is_the_mean_behind_the_neighbours(folder: Path, files: Path, tmp_path: Path) -> None:
    index, line = tmp_path / "index", pipeline(folder)
    line.index(files, index).close()
    answer = ask_line(line, WHO, index)
    ours = line.generator
    assert isinstance(ours, LocalGenerator)
    chunk_kv, engine = ours._chunk_kv, ours._decoder.required
    prefix = ours._template_ids(ours._template[0])
    with Index.open(index) as opened:
        behind = ours._chunk_kv.neighbours.of(opened.corpus)  # type: ignore[union-attr]
        piece = answer.context.pieces[2]
        ids, told = ours._plain_ids(answer.prompt.segments[6].text), behind(piece.chunk_id)
        assert set(told.sources) == set(doc_ids(index).values()) - {piece.doc_id}
        expected = DonorMean(engine, prefix, chunk_kv.donors).block(ids, told.between)
        shown = zip(chunk_kv.donors, told.between, strict=True)
        flat = [token for donor, text in shown for token in (*donor, *text)]
        from rag.engine.observed import chunk_name

        with KvStore(index / KV_NAME, max_bytes=1 << 30) as store:
            name = f"neighbour-mean {GROUPS} {chunk_name([*prefix, *flat])}"
            held = store.get(ids, engine.fingerprint, name, dtype="fp32")
            assert held is not None
            assert torch.equal(held.k, expected.k)
            assert torch.equal(held.v, expected.v)
            (entry,) = [one for one in store.entries() if one.owners == (piece.doc_id,)]
        assert entry.sources == tuple(sorted(told.sources))
    assert chunk_kv.longest == 4096 - 512 - EACH * TOKENS - max(map(len, chunk_kv.donors))


def test_one_changed_neighbour_makes_another_block(folder: Path, files: Path, tmp_path: Path, seen: list[Any]) -> None:
    """The corpus is the same but for one document that no question finds."""
    index = tmp_path / "index"
    line = pipeline(folder, ram_bytes=1 << 24)
    line.index(files, index).close()
    ask_line(line, WHO, index)
    before = seen[-1]
    (files / "rain.txt").write_text("Snow lay on the roof of the school until April of that year.", encoding="utf-8")
    line.index(files, index).close()
    answer = ask_line(line, WHO, index)  # this object has blocks of the state before in memory
    changed = seen[-1]
    assert answer.trace[-1].notes["blocks_made"] == 2  # the start and the first chunk have no neighbours in them
    assert not torch.equal(changed, before)
    fresh = tmp_path / "fresh"
    pipeline(folder).index(files, fresh).close()
    ask_line(pipeline(folder), WHO, fresh)
    assert torch.equal(seen[-1], changed)


def test_of_a_cut_chunk_the_whole_is_made_behind_its_neighbours(folder: Path, files: Path, tmp_path: Path) -> None:
    index, line = tmp_path / "index", pipeline(folder, cut_pieces="prune")
    line.index(files, index).close()
    with Index.open(index) as opened:
        found = ask_line(pipeline(folder, reuse="none"), WHO, index).context
        last = found.pieces[-1]
        kept = (replace(last.span, end=last.span.start + 40),)
        cut = replace(found, pieces=(*found.pieces[:-1], replace(last, text=last.text[:40], kept=kept)))
        made = line.generator.generate(cut, opened.corpus)
        assert made.notes["blocks_made"] == 4
        (entry,) = [one for one in entries(index).values() if one.owners == (last.doc_id,)]
        assert set(entry.sources) == set(doc_ids(index).values()) - {last.doc_id}
        assert line.generator.generate(found, opened.corpus).notes["blocks_made"] == 0  # whole, it is the same


# ------------------------------------------------------------------ what goes with a document


@pytest.mark.parametrize("blocks", ["neighbour-mean", "donor-mean"])
def test_a_changed_document_takes_its_blobs_and_those_made_behind_it(folder: Path, tmp_path: Path, blocks: str) -> None:
    """Two groups of ten documents whose members are each other's neighbours: one change reaches one group."""
    files, index, line = tmp_path / "files", tmp_path / "index", pipeline(folder, blocks=blocks)
    files.mkdir()
    words = {"sea": "ships harbour bell fog light north", "soup": "canteen soup bread butter bowl monday"}
    for group, told in words.items():
        for number in range(10):
            text = f"{told}, said the {group} report of year {1900 + number}."
            (files / f"{group}{number}.txt").write_text(text, encoding="utf-8")
    line.index(files, index).close()
    with Index.open(index) as opened:
        chunks = opened.corpus.chunks([int(row) for row in opened.corpus.rows()])
        assert isinstance(line.generator, LocalGenerator)
        assert line.generator.prefill_kv(chunks, opened.corpus) == 21
    before, gone = entries(index), doc_ids(index)["sea3.txt"]
    behind = {key for key, entry in before.items() if gone in entry.sources}
    own = {key for key, entry in before.items() if gone in entry.owners}
    assert len(own) == 1
    sea = {one for name, one in doc_ids(index).items() if name.startswith("sea")}
    assert {owner for key in behind for owner in before[key].owners} <= sea
    assert (2 <= len(behind) < 10) if blocks == "neighbour-mean" else not behind
    (files / "sea3.txt").write_text("Olaf Brandt has a dog.", encoding="utf-8")
    line.index(files, index).close()
    assert set(entries(index)) == set(before) - own - behind
    assert not any(gone in (*entry.owners, *entry.sources) for entry in entries(index).values())


def test_a_dead_writer_leaves_nothing_made_behind_documents_that_are_gone(
    folder: Path, files: Path, tmp_path: Path
) -> None:
    index, line = tmp_path / "index", pipeline(folder)
    line.index(files, index).close()
    ask_line(line, WHO, index)
    before = entries(index)
    key = next(key for key, entry in before.items() if entry.sources)
    with KvStore(index / KV_NAME, max_bytes=1 << 30) as store:
        store._ledger.execute("INSERT INTO sources VALUES ('no-such-document', ?)", (key,))
    Store.create_or_open(index).close()
    assert set(entries(index)) == set(before) - {key}
    assert any(entry.owners == (SHARED_OWNER,) for entry in entries(index).values())


# ------------------------------------------------------------------ config and commands


def test_ingest_makes_them_and_asking_loads_them(folder: Path, files: Path, tmp_path: Path) -> None:
    import yaml
    from typer.testing import CliRunner

    from rag.cli.main import app

    index, config = tmp_path / "index", tmp_path / "rag.yaml"

    def ingest(line: Pipeline) -> Any:
        config.write_text(yaml.safe_dump(yaml.safe_load(line.describe())), encoding="utf-8")
        given = ["ingest", str(files), "--index", str(index), "--config", str(config), "--prefill-kv", "--json"]
        result = CliRunner().invoke(app, given)
        return json.loads(result.stdout)["kv_made"] if result.exit_code == 0 else str(result.exception)

    assert [ingest(pipeline(folder)) for _ in range(2)] == [6, 0]
    answer = ask_line(pipeline(folder), WHO, index)
    assert answer.trace[-1].notes["blocks_made"] == 1  # the first one, behind what is before it
    assert answer.stats.bytes_loaded > 0
    (files / "hail.txt").write_text("Hail broke the glass of the lamp in May.", encoding="utf-8")
    assert ingest(pipeline(folder)) == 6  # its own, and those of the others, which have a neighbour more


def test_without_vectors_the_error_names_the_fix(folder: Path, files: Path, tmp_path: Path) -> None:
    line = Pipeline(pipeline(folder).config.merged({"retriever": {"use": "bm25", "k": 3}}, where="test"))
    line.index(files, tmp_path / "index").close()
    with pytest.raises(ConfigError, match="Set blocks: donor-mean"):
        line.ask(WHO, tmp_path / "index")


def test_repairs_by_variance_know_these_blocks_and_calibrations_tell_them_apart(tmp_path: Path) -> None:
    assert LocalGenerator(reuse="chunk", blocks="neighbour-mean", repair="variance").blocks == "neighbour-mean"
    with pytest.raises(ConfigError, match="donor-mean or neighbour-mean"):
        LocalGenerator(reuse="chunk", blocks="solo", repair="variance")
    file = tmp_path / "table.json"
    row = {"policy": "naive", "tokens": 1000, "cost": 0.1, "kl": 0.05}
    write_calibration(file, {"fingerprint": "abc", "blocks": "neighbour-mean", "rows": [row]})
    assert calibrated(str(file), "abc", "neighbour-mean") == [row]
    with pytest.raises(ConfigError, match="blocks: donor-mean"):
        calibrated(str(file), "abc", "donor-mean")


# ------------------------------------------------------------------ SmolLM2


@pytest.mark.models
def test_with_smollm2_the_answer_after_prefill_is_the_one_at_first_use(files: Path, tmp_path: Path) -> None:
    line = pipeline(Path(""), model="", max_new_tokens=12, dtype="auto")
    ahead, asked = tmp_path / "ahead", tmp_path / "asked"
    try:
        for index in (ahead, asked):
            line.index(files, index).close()
        made = ask_line(line, WHO, asked)
    except MissingError as error:
        pytest.skip(str(error))
    with Index.open(ahead) as opened:
        assert line.prefill_kv(opened) == len(FILES) + 1
    loaded = ask_line(line, WHO, ahead)
    assert written(loaded) == written(made)
    assert (made.stats.bytes_loaded, made.trace[-1].notes["blocks_made"]) == (0, 4)
    assert loaded.stats.bytes_loaded > 0
    assert loaded.trace[-1].notes["blocks_made"] == 1
