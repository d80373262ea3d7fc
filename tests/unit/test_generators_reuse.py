"""KV reuse through the generator `local`: exact where it says so, counted, kept with the documents it came from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from rag.answer import Answer  # noqa: E402
from rag.config import PipelineConfig  # noqa: E402
from rag.engine import EngineError  # noqa: E402
from rag.engine.repair.auto import Auto  # noqa: E402
from rag.engine.store import KvStore  # noqa: E402
from rag.errors import ConfigError, MissingError  # noqa: E402
from rag.generators import _decode  # noqa: E402
from rag.generators._calibration import write_calibration  # noqa: E402
from rag.generators._decode import STEP  # noqa: E402
from rag.generators._repairs import REPAIRS, build_repair, checked_repair  # noqa: E402
from rag.generators.local import LocalGenerator  # noqa: E402
from rag.pipeline import Pipeline  # noqa: E402
from rag.store.kv import KV_NAME, SHARED_OWNER, check_kv  # noqa: E402
from rag.store.repair import repair  # noqa: E402
from rag.store.store import Store  # noqa: E402
from rag.store.verify import verify  # noqa: E402
from tests.contracts.test_generator import QUESTION, WHOLE, ask, context  # noqa: E402
from tests.unit.test_generators_local import tiny_llama, tokens_of  # noqa: E402

FILES = {
    "light.txt": "The lighthouse at Cape Arden was built in 1871 from grey granite. Its lamp turns once a minute.",
    "keeper.txt": "Marta Velde has kept the light since 1902. Before her, her uncle Jonas kept it for many years.",
    "ships.txt": "Ships coming from the north see the light at nineteen miles. In fog a bell is struck for them.",
}
WHO, WHEN = "Who kept the light and which ships see the light?", "When do ships see the light that was kept?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


def generator(folder: Path, **given: Any) -> LocalGenerator:
    return LocalGenerator(**{"model": str(folder), "dtype": "float32", "max_new_tokens": 10, **given})


def old_path(generator: LocalGenerator, ids: list[int]) -> list[int]:
    """transformers' own cache, one pass over the whole prompt, as generation was before the engine."""
    model, _ = generator._loaded
    random = torch.Generator(device="cpu").manual_seed(generator.seed)
    step, cache, out = torch.tensor([ids]), None, []
    for _ in range(generator.max_new_tokens):
        with torch.inference_mode():
            told = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits, cache = told.logits[0, -1].float(), told.past_key_values
        if generator.temperature:
            token = int(torch.multinomial(torch.softmax(logits / generator.temperature, -1), 1, generator=random))
        else:
            token = int(logits.argmax())
        if token == 256:
            break
        out.append(token)
        step = torch.tensor([[token]])
    return out


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("reuse", ["none", "prefix"])
def test_tokens_are_those_of_transformers(folder: Path, reuse: Any, temperature: float) -> None:
    ours = generator(folder, reuse=reuse, temperature=temperature, max_new_tokens=20)
    shared = [(7 * i) % 250 for i in range(3 * STEP + 5)]
    for length in (1, STEP - 1, STEP, STEP + 1, 3 * STEP + 5, 2 * STEP, STEP):
        for end in ([3, 4], [5]):
            ids = [*shared[:length], *end]
            assert tokens_of(ours, ids) == old_path(ours, ids)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_asked_before_changes_no_bit(folder: Path, dtype: Any) -> None:
    plain, ours = generator(folder, dtype=dtype, reuse="none"), generator(folder, dtype=dtype)
    shared = [(11 * i) % 250 for i in range(5 * STEP)]
    for length in (5 * STEP, 2 * STEP + 9, 4 * STEP, 5 * STEP - 1):
        ids = [*shared[:length], length % 250]
        told, alone = ours._decoder.read(ids, 4), plain._decoder.read(ids, 4)
        assert torch.equal(told.logits, alone.logits)
        assert torch.equal(told.step(9), alone.step(9))
        assert told.reused + told.computed == len(ids)
    assert told.reused == 4 * STEP


def test_a_second_question_over_the_same_documents_reuses_their_prefix(folder: Path) -> None:
    ours, plain = generator(folder), generator(folder, reuse="none")
    first, second = (ask(ours, context(question, *WHOLE)) for question in (QUESTION, "What does soup cost?"))
    assert first.stats.reused_tokens == 0
    assert second.stats.policy == second.notes["reuse"] == "prefix"
    before_the_question = len("".join(part.text for part in second.prompt.segments[:-1]).encode())
    assert second.stats.reused_tokens == before_the_question // STEP * STEP == second.notes["reused"]
    assert second.stats.computed_tokens == second.stats.prompt_tokens - second.stats.reused_tokens
    plainly = ask(plain, context("What does soup cost?", *WHOLE))
    assert (second.text, second.notes["written"]) == (plainly.text, plainly.notes["written"])
    small = generator(folder, pool_bytes=0)
    assert [ask(small, context(QUESTION, *WHOLE)).stats.reused_tokens for _ in range(2)] == [0, 0]


def test_models_that_the_engine_refuses_are_read_by_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = list(b"The quick brown fox")
    expected = tokens_of(generator(folder), ids)

    def refuse(model: Any) -> Any:
        raise EngineError("layers without keys")

    monkeypatch.setattr(_decode, "EngineModel", refuse)
    ours = generator(folder)
    assert tokens_of(ours, ids) == expected
    assert ours._decoder.read(ids, 1).policy == "none"
    with pytest.raises(ConfigError, match="layers without keys"):
        _ = generator(folder, reuse="chunk")._decoder


# ------------------------------------------------------------------ chunks


def pipeline(folder: Path, *, retriever: str = "bm25", **given: Any) -> Pipeline:
    local = {"use": "local", "model": str(folder), "dtype": "float32", "max_new_tokens": 8, "reuse": "chunk", **given}
    return Pipeline(
        PipelineConfig.default().merged(
            {
                "embedder": "hashing", "retriever": {"use": retriever, "k": 3}, "selector": {"use": "top-k"},
                "compressor": "none", "generator": local, "executor": "serial", "sentences": False,
            },
            where="test",
        )
    )  # fmt: skip


def laid(folder: Path, texts: Mapping[str, str]) -> Path:
    """The folder, made, with a file for each text."""
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return laid(tmp_path / "files", FILES)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The logits behind every prompt, as they come."""
    noted: list[Any] = []
    tokens = _decode.Decoder.tokens

    def spy(self: Any, reading: Any, *given: Any, **named: Any) -> Any:
        noted.append(reading.logits)
        return tokens(self, reading, *given, **named)

    monkeypatch.setattr(_decode.Decoder, "tokens", spy)
    return noted


def owners(index: Path) -> dict[str, int]:
    """How many blobs each document owns."""
    with KvStore(index / KV_NAME, max_bytes=1 << 30) as store:
        counted: dict[str, int] = {}
        for entry in store.entries():
            for owner in entry.owners:
                counted[owner] = counted.get(owner, 0) + 1
    return counted


def doc_ids(index: Path) -> dict[str, str]:
    with Store.open(index) as store:
        return {info.source.rpartition("/")[2]: info.id for info in store.documents()}


def written(answer: Answer) -> Any:
    """What the model wrote, before anything in it was checked."""
    return answer.trace[-1].notes.get("written", answer.text)


def ask_line(line: Pipeline, question: str, index: Path) -> Answer:
    answer = line.ask(question, index)
    if isinstance(line.generator, LocalGenerator) and line.generator.model:
        assert "written" in answer.trace[-1].notes, "the tiny model says something of its own"
    assert len(answer.context.pieces) == 3
    assert answer.stats.reused_tokens + answer.stats.computed_tokens == answer.stats.prompt_tokens
    return answer


def test_blocks_are_made_once_and_then_loaded(folder: Path, files: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    pipeline(folder).index(files, index).close()
    assert not (index / KV_NAME).exists()  # only asking needs it
    first = ask_line(pipeline(folder), WHO, index)
    assert (first.stats.reused_tokens, first.stats.bytes_loaded) == (0, 0)
    assert first.trace[-1].notes["blocks_made"] == 4  # the start of the prompt and three chunks
    assert owners(index) == {SHARED_OWNER: 1, **dict.fromkeys(doc_ids(index).values(), 1)}

    again = ask_line(pipeline(folder), WHO, index)  # another process, as it were
    start = len(again.prompt.segments[0].text.encode())
    chunks = sum(len(part.text.encode()) for part in again.prompt.segments if part.chunk_id)
    assert written(again) == written(first)
    assert again.trace[-1].notes["blocks_made"] == 0
    assert again.stats.reused_tokens == start + chunks - again.stats.repaired_tokens
    assert again.stats.repaired_tokens >= 2 * 16  # the first tokens of all chunks but the first
    heads = 2 * 2 * 1 * 16 * 4 * (start + chunks)  # k, v; layers; kv heads; d; bytes
    assert heads <= again.stats.bytes_loaded <= heads + 8 * chunks  # and the variances
    told = again.to_dict()["stats"]
    assert told["policy"] == "chunk: donor-mean, first-variance"
    assert json.loads(json.dumps(told))["repaired_tokens"] == again.stats.repaired_tokens

    other = ask_line(pipeline(folder), WHEN, index)
    assert other.stats.reused_tokens > 0.8 * (start + chunks) - other.stats.repaired_tokens


@pytest.mark.parametrize("given", [{}, {"kv_dtype": "int8", "blocks": "solo", "repair": "naive"}])
def test_answers_do_not_depend_on_what_is_kept(
    folder: Path, files: Path, tmp_path: Path, seen: list[Any], given: Any
) -> None:
    pipeline(folder, **given).index(files, tmp_path / "a").close()
    line = pipeline(folder, **given)
    for question in (WHO, WHEN, WHO):
        ask_line(line, question, tmp_path / "a")
    if "kv_dtype" not in given:  # int8 needs a place to be rounded
        ask_line(pipeline(folder, kv_bytes=0, **given), WHO, tmp_path / "a")
    assert all(torch.equal(logits, seen[0]) for logits in seen[2:])
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)


def test_with_everything_repaired_the_answer_is_exact(
    folder: Path, files: Path, tmp_path: Path, seen: list[Any]
) -> None:
    line, plain, naive = (pipeline(folder, **given) for given in ({"repair": "all"}, {"reuse": "none"}, {}))
    line.index(files, tmp_path / "index").close()
    for question in (WHO, WHEN, WHO):
        texts = [written(ask_line(one, question, tmp_path / "index")) for one in (line, plain, naive)]
        full, exact, approximate = seen[-3:]
        assert texts[0] == texts[1]
        assert torch.allclose(full, exact, atol=1e-4)
        assert not torch.allclose(approximate, exact, atol=1e-3)


def test_every_policy_answers(folder: Path, files: Path, tmp_path: Path) -> None:
    pipeline(folder).index(files, tmp_path / "index").close()
    row = {"policy": {"use": "epic", "k": 4}, "tokens": 1000, "cost": 0.2, "kl": 0.01}
    for name in REPAIRS:
        spec: Any = {"use": "auto", "table": [row]} if name == "auto" else name
        for _ in range(2):
            answer = ask_line(pipeline(folder, repair=spec), WHO, tmp_path / "index")
        expected = 'auto ({"k": 4, "use": "epic"})' if name == "auto" else name
        assert answer.stats.policy.endswith(f", {expected}")
        assert answer.trace[-1].notes["blocks_made"] == 0


def test_a_changed_document_takes_exactly_its_blobs_along(folder: Path, files: Path, tmp_path: Path) -> None:
    index, line = tmp_path / "index", pipeline(folder)
    line.index(files, index).close()
    for question in (WHO, WHEN):
        ask_line(line, question, index)
    before, ids = owners(index), doc_ids(index)
    (files / "keeper.txt").write_text("Olaf Brandt has kept the light since 1955. He has a dog.", encoding="utf-8")
    line.index(files, index).close()
    gone = ids["keeper.txt"]
    assert owners(index) == {owner: count for owner, count in before.items() if owner != gone}
    answer = ask_line(line, WHO, index)
    assert doc_ids(index)["keeper.txt"] in owners(index)
    assert answer.trace[-1].notes["blocks_made"] >= 1
    (files / "ships.txt").unlink()
    line.index(files, index, delete_missing=True).close()
    assert ids["ships.txt"] not in owners(index)
    assert set(owners(index)) == {SHARED_OWNER, *doc_ids(index).values()}


def test_two_documents_share_a_blob_until_both_are_gone(folder: Path, files: Path, tmp_path: Path) -> None:
    index, line = tmp_path / "index", pipeline(folder)
    (files / "ships.txt").unlink()
    twin = "a/keeper.txt"
    (files / "a").mkdir()
    (files / twin).write_text(FILES["keeper.txt"] + "\n", encoding="utf-8")  # another document, the same chunk
    line.index(files, index).close()
    ask_line(line, WHO, index)
    with KvStore(index / KV_NAME, max_bytes=1 << 30) as store:
        shared = [entry for entry in store.entries() if len(entry.owners) == 2]
        files_before = len(store)
    if not shared:  # one of them stood first, and so has a block of its own kind
        ask_line(line, "lighthouse granite lamp built light", index)
        with KvStore(index / KV_NAME, max_bytes=1 << 30) as store:
            shared, files_before = [e for e in store.entries() if len(e.owners) == 2], len(store)
    assert shared
    (files / twin).unlink()
    line.index(files, index, delete_missing=True).close()
    with KvStore(index / KV_NAME, max_bytes=1 << 30) as store:
        assert {entry.key for entry in shared} <= {entry.key for entry in store.entries()}
        assert len(store) <= files_before


def test_a_dead_writer_leaves_no_blobs_of_documents_that_are_gone(folder: Path, files: Path, tmp_path: Path) -> None:
    index, line = tmp_path / "index", pipeline(folder)
    line.index(files, index).close()
    ask_line(line, WHO, index)
    with KvStore(index / KV_NAME, max_bytes=1 << 30) as store:
        (block,) = [entry for entry in store.entries() if entry.owners == (SHARED_OWNER,)]
        store._ledger.execute("INSERT INTO owners VALUES ('no-such-document', ?)", (block.key,))
    Store.create_or_open(index).close()
    assert "no-such-document" not in owners(index)
    assert owners(index)[SHARED_OWNER] == 1


def test_a_flipped_byte_is_named_and_computed_anew(folder: Path, files: Path, tmp_path: Path) -> None:
    index, line = tmp_path / "index", pipeline(folder)
    line.index(files, index).close()
    expected = written(ask_line(line, WHO, index))
    report = verify(index)
    assert (report.ok, report.checked["kv"]) == (True, 4)

    def flip() -> Path:
        file = sorted((index / KV_NAME / "blobs").iterdir())[0]
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(data)
        return file

    file = flip()
    (problem,) = verify(index).problems
    assert file.name in problem
    answer = ask_line(line, WHO, index)
    assert (written(answer), answer.trace[-1].notes["blocks_made"]) == (expected, 1)
    assert verify(index).ok

    flip()
    assert any("1 damaged" in line for line in repair(index).fixed)
    assert verify(index).ok
    assert ask_line(line, WHO, index).trace[-1].notes["blocks_made"] == 1
    (index / KV_NAME / "ledger.sqlite").write_bytes(b"no database" * 100)
    assert len(check_kv(index)) == 1
    assert written(ask_line(line, WHO, index)) == expected  # nothing is kept, and everything works


def test_the_cap_holds(folder: Path, files: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    pipeline(folder).index(files, index).close()
    whole = written(ask_line(pipeline(folder), WHO, index))
    sizes = [file.stat().st_size for file in (index / KV_NAME / "blobs").iterdir()]
    cap = sum(sizes) - 1
    small = ask_line(pipeline(folder, kv_bytes=cap), WHO, index)
    left = [file.stat().st_size for file in (index / KV_NAME / "blobs").iterdir()]
    assert 0 < sum(left) <= cap
    assert written(small) == whole


def test_blocks_can_be_made_ahead(folder: Path, files: Path, tmp_path: Path) -> None:
    from rag.index import Index

    line, index = pipeline(folder), tmp_path / "index"
    line.index(files, index).close()
    with Index.open(index) as opened:
        chunks = opened.corpus.chunks([int(row) for row in opened.corpus.rows()])
        local = line.generator
        assert isinstance(local, LocalGenerator)
        assert local.prefill_kv(chunks, opened.corpus) == 4
        assert local.prefill_kv(chunks, opened.corpus) == 0
    assert ask_line(line, WHO, index).trace[-1].notes["blocks_made"] == 1  # the first one, behind what is before it
    with pytest.raises(ConfigError, match="reuse: chunk"):
        generator(folder).prefill_kv([], opened.corpus)


def test_ingest_makes_them_and_cache_clears_them(folder: Path, files: Path, tmp_path: Path) -> None:
    import yaml
    from typer.testing import CliRunner

    from rag.cli.main import app

    index, config = str(tmp_path / "index"), tmp_path / "rag.yaml"

    def call(*given: str) -> tuple[int, Any]:
        result = CliRunner().invoke(app, [*given, "--index", index, "--json"])
        return result.exit_code, json.loads(result.stdout) if result.exit_code == 0 else str(result.exception)

    def ingest(line: Pipeline) -> tuple[int, Any]:
        config.write_text(yaml.safe_dump(yaml.safe_load(line.describe())), encoding="utf-8")
        return call("ingest", str(files), "--config", str(config), "--prefill-kv")

    code, told = ingest(pipeline(folder, reuse="prefix"))
    assert code != 0
    assert "reuse: chunk" in told
    assert not Path(index).exists()
    assert [ingest(pipeline(folder))[1]["kv_made"] for _ in range(2)] == [4, 0]
    assert call("cache", "stats")[1]["cache"]["kv"]["bytes"] > 4 * 128
    assert call("verify")[1]["checked"]["kv"] == 4
    assert call("cache", "clear", "--kind", "kv")[1]["freed"]["kv"] > 4 * 128
    assert call("verify")[1]["checked"]["kv"] == 0
    assert ingest(pipeline(folder))[1]["kv_made"] == 4


def test_pieces_that_were_cut_are_computed(folder: Path) -> None:
    cut = dataclasses.replace(WHOLE[0], kept=(dataclasses.replace(WHOLE[0].span, end=WHOLE[0].span.end - 3),))
    ours = generator(folder, reuse="chunk")
    assert ask(ours, context(QUESTION, cut)).notes["blocks_made"] == 1  # the start alone
    assert ask(ours, context(QUESTION, WHOLE[0])).notes["blocks_made"] == 2


# ------------------------------------------------------------------ parameters


def test_the_table_of_policies_is_that_of_the_engine() -> None:
    for name, parameters in REPAIRS.items():
        if name != "auto":
            assert tuple(field.name for field in dataclasses.fields(build_repair(name))) == parameters  # type: ignore[arg-type]
    row = {"policy": "naive", "tokens": 1000, "cost": 0.1, "kl": 0.5}
    better = {"policy": {"use": "epic", "k": 8}, "tokens": 1000, "cost": 0.3, "kl": 0.01}
    policy = build_repair({"use": "auto", "bound": 0.02, "table": [row, better]})
    assert isinstance(policy, Auto)
    assert policy.choose(1000) == ('{"k": 8, "use": "epic"}', 0.01)
    assert checked_repair({"use": "epic", "k": 3, "first": True}) == ("epic", {"k": 3, "first": True})


def test_auto_reads_a_calibration_of_its_model(folder: Path, tmp_path: Path) -> None:
    ours = generator(folder, reuse="chunk", repair="auto")
    with pytest.raises(ConfigError, match="rag bench kv --calibrate FILE"):
        ask(ours, context(QUESTION, *WHOLE))
    engine = ours._decoder.required
    file = tmp_path / "calibration.json"
    good = {"policy": {"use": "epic", "k": 2}, "tokens": 1000, "cost": 0.3, "kl": 0.04, "agreement": 0.96}
    cheap = {"policy": "naive", "tokens": 1000, "cost": 0.1, "kl": 0.05, "agreement": 0.94}
    write_calibration(file, {"fingerprint": engine.fingerprint, "blocks": "donor-mean", "rows": [good, cheap]})
    spec: dict[str, Any] = {"use": "auto", "table": str(file)}
    policy = build_repair(spec, engine.fingerprint)
    assert isinstance(policy, Auto)
    assert policy.choose(900) == ('{"k": 2, "use": "epic"}', 0.04)
    loose = build_repair({**spec, "floor": 0.9}, engine.fingerprint)
    assert isinstance(loose, Auto)
    assert loose.choose(900) == ("naive", 0.05)
    assert ask(generator(folder, reuse="chunk", repair=spec), context(QUESTION, *WHOLE)).stats.repaired_tokens > 0
    with pytest.raises(ConfigError, match="has nothing about this model"):
        build_repair(spec, engine.fingerprint, "solo")
    for text in ("", "[]", '{"format": 2, "tables": []}', '{"format": 1, "tables": [{"rows": []}]}'):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError):
            build_repair(spec, engine.fingerprint)


def test_auto_makes_no_blocks_where_nothing_fits(folder: Path, files: Path, tmp_path: Path) -> None:
    row = {"policy": "naive", "tokens": 100, "cost": 0.1, "kl": 0.5}
    pipeline(folder).index(files, tmp_path / "index").close()
    index = tmp_path / "index"
    answer = ask_line(pipeline(folder, repair={"use": "auto", "table": [row]}), WHO, index)
    assert answer.stats.policy.endswith("auto (all)")
    assert answer.trace[-1].notes["blocks_made"] <= 1  # the start of every prompt
    assert written(answer) == written(ask_line(pipeline(folder, reuse="none"), WHO, index))


@pytest.mark.parametrize(
    "wrong",
    [
        {"reuse": "all"}, {"repair": "magic"}, {"repair": {"k": 3}}, {"repair": {"use": "epic", "n": 3}},
        {"repair": {"use": "epic", "k": "3"}}, {"repair": {"use": "epic", "k": True}},
        {"repair": {"use": "auto", "table": []}},
        {"repair": {"use": "auto", "table": [{"policy": "naive"}]}}, {"repair": {"use": "auto", "table": 3}},
        {"blocks": "solo"}, {"blocks": "mean"}, {"pool_bytes": -1}, {"kv_bytes": -1}, {"kv_dtype": "int4"},
        {"repair": {"use": "auto", "table": [{"policy": "auto", "tokens": 1, "cost": 1, "kl": 1}]}},
        {"repair": {"use": "auto", "table": [{"policy": "naive", "tokens": "1", "cost": 1, "kl": 1}]}},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_parameters_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="local: "):
        LocalGenerator(**wrong)


def test_a_range_that_the_engine_refuses_is_a_config_error(folder: Path) -> None:
    ours = generator(folder, reuse="chunk", repair={"use": "variance", "share": 3})
    with pytest.raises(ConfigError, match="share"):
        ask(ours, context(QUESTION, *WHOLE))


# ------------------------------------------------------------------ SmolLM2


@pytest.mark.models
def test_reuse_with_smollm2(files: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"

    def line(**given: Any) -> Pipeline:
        return pipeline(Path(""), **{"model": "", "max_new_tokens": 16, **given})

    plain, prefix, chunk = line(reuse="none"), line(reuse="prefix"), line(reuse="chunk")
    try:
        plain.index(files, index).close()
        for question in (WHO, WHEN):
            expected, told = ask_line(plain, question, index), ask_line(prefix, question, index)
            assert written(told) == written(expected)
            ask_line(chunk, question, index)
    except MissingError as error:
        pytest.skip(str(error))
    prompt = ask_line(prefix, WHO, index).stats
    assert prompt.reused_tokens == (prompt.prompt_tokens - 1) // STEP * STEP
    again = ask_line(chunk, WHO, index)
    assert again.trace[-1].notes["blocks_made"] == 0
    assert again.stats.reused_tokens > again.stats.prompt_tokens // 3
    ids = [(97 * i) % 40_000 + 20 for i in range(2 * STEP + 7)]
    whole = LocalGenerator(reuse="none", dtype="bfloat16")._decoder
    known = LocalGenerator(reuse="prefix", dtype="bfloat16")._decoder
    for end in (5, 6):
        reading, alone = known.read([*ids, end], 4), whole.read([*ids, end], 4)
        assert torch.equal(reading.logits, alone.logits)  # in bfloat16 too
    assert reading.reused == 2 * STEP
    exact = line(reuse="chunk", repair="all")
    assert written(ask_line(exact, WHO, index)) == written(ask_line(plain, WHO, index))


@pytest.mark.models
def test_a_calibration_of_the_bundled_model_comes_with_the_package(files: Path, tmp_path: Path) -> None:
    ours = LocalGenerator(reuse="chunk", repair="auto", dtype="bfloat16", max_new_tokens=4)
    try:
        engine = ours._decoder.required
    except MissingError as error:
        pytest.skip(str(error))
    policy = build_repair("auto", engine.fingerprint)
    assert isinstance(policy, Auto)
    assert policy.choose(1000)[1] <= policy.bound
    cheap = build_repair({"use": "auto", "bound": 9.0, "floor": 0.0}, engine.fingerprint)
    assert isinstance(cheap, Auto)
    assert cheap.choose(1000)[0] == "naive"
    index = tmp_path / "index"
    line = pipeline(Path(""), model="", max_new_tokens=4, reuse="chunk", repair="auto", dtype="bfloat16")
    line.index(files, index).close()
    assert "auto (" in ask_line(line, WHO, index).stats.policy
