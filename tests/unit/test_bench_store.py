"""`rag bench store` with fake stores in real processes: one that keeps its word, one that does not."""

from __future__ import annotations

import ast
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import eval.bench.store as bench
from eval.bench._children import Contender
from eval.bench._report import Settings
from eval.bench._store_children import Server, run_fresh
from eval.bench._store_corpus import BATCH, StoreCorpus, make_corpus
from eval.bench._store_flips import _flip
from eval.bench._store_kills import kill_rows
from eval.bench.peers._store import digest

SOUND = """
import hashlib, json, os, time
PACKAGES = ("numpy",)
MODULES = ("json", "numpy")
SETTINGS = "a file of JSON behind its checksum"
ACKNOWLEDGED = "renamed"
ATOMIC, CHECKED, EACH_BATCH, SAME_IS_NEW = True, True, True, False

def load(vectors, options):
    return vectors, options["batch"]

def read(store):
    if not (store / "rows").exists():
        return {}
    head, body = (store / "rows").read_bytes().split(b"\\n", 1)
    if CHECKED and hashlib.sha256(body).hexdigest().encode() != head:
        raise ValueError("damaged")
    return json.loads(body.decode("ascii", "replace"))

def write(store, rows):
    store.mkdir(parents=True, exist_ok=True)
    body = json.dumps(rows).encode()
    fresh = store / ("rows.%d" % os.getpid() if ATOMIC else "rows")
    fresh.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\\n" + body)
    fresh.replace(store / "rows")

def ingest(encoder, documents, store, tell):
    held, files = read(store), sorted(documents.glob("*.txt"))
    for at in range(0, len(files), encoder[1]):
        for path in files[at : at + encoder[1]]:
            new = path.read_text().split("\\n\\n")
            if held.get(path.name) != new:
                encoder[0].embed(new)
            held[path.name] = held.get(path.name, []) + new if SAME_IS_NEW else new
        tell.persist()
        if EACH_BATCH:
            write(store, held)
        tell.stored(min(at + encoder[1], len(files)))
        time.sleep(0.05)
    write(store, held)

def delete(encoder, documents, store, name):
    write(store, {key: texts for key, texts in read(store).items() if key != name})

def rows(encoder, store):
    pairs = [(name, text) for name, texts in read(store).items() for text in texts]
    return {"parts": {"rows": len(pairs), "again": len(pairs)}, "rows": pairs}

def search(encoder, store, questions, k):
    pairs = rows(encoder, store)["rows"]
    return [[(name, text, 1.0) for name, text in pairs if text == question][:k] for question in questions]
"""
LOSING = SOUND.replace(
    "CHECKED, EACH_BATCH, SAME_IS_NEW = True, True, True, False",
    "CHECKED, EACH_BATCH, SAME_IS_NEW = True, False, False, True",
)
"""Says `stored` after every batch, writes at the end alone, checks nothing, and stores everything twice."""

FAILING = SOUND.replace("def rows(encoder, store):", "def rows(encoder, store):\n    os.kill(os.getpid(), 11)")


@pytest.fixture
def make(tmp_path: Path):
    def make(name: str, code: str = SOUND, role: Any = "peer") -> Contender:
        module = tmp_path / f"{name}.py"
        module.write_text(code)
        return Contender(name=name, role=role, module=module)

    return make


@pytest.fixture
def corpus() -> StoreCorpus:
    return make_corpus(3 * BATCH, 0)


def job_for(corpus: StoreCorpus, folder: Path, task: str) -> dict[str, Any]:
    return {
        "task": task,
        "store": str(folder / "store"),
        "documents": str(corpus.write(folder / "documents")),
        "vectors": str(corpus.write_vectors(folder / "vectors")),
        "options": corpus.options(),
    }


# ---------------------------------------------------------------------- the whole


@pytest.mark.slow
def test_a_store_that_keeps_its_word_and_one_that_does_not(make) -> None:
    settings = Settings(documents=4 * BATCH, rounds=1, kills=4, quiet=True)
    gone = make("gone", SOUND.replace('("json", "numpy")', '("no_such_framework",)'))
    report = bench.run(settings, [make("ours", role="ours"), make("losing", LOSING), gone])
    assert json.loads(json.dumps(report)) == report
    assert {"bench", "machine", "versions", "seed", "results", "claims", "settings"} <= set(report)
    rows = {(row["name"], row["measure"]): row for row in report["results"]}

    costs = rows["ours", "costs"]
    assert (costs["rows"], costs["embedded"]) == (256, 256)
    assert (costs["unchanged_embedded"], costs["changed_embedded"]) == (0, 3)
    assert (costs["duplicate_rows_after_unchanged"], costs["stale_rows_after_change"]) == (0, 0)
    assert (costs["rows_after_delete"], costs["hits_after_delete"]) == (0, 0)
    assert costs["deleted_text_on_disk"] == {"before": ["rows"], "after": []}
    costs = rows["losing", "costs"]
    assert (costs["duplicate_rows_after_unchanged"], costs["stale_rows_after_change"]) == (256, 4)
    assert costs["ours_over_this"]["documents_per_second"] > 0

    sound, losing = rows["ours", "kills"], rows["losing", "kills"]
    assert sound["kills"] == 4
    for name in ("documents_lost", "failed_to_open", "missing_after_resume", "duplicated_after_resume"):
        assert sound[name] == 0
    assert losing["documents_lost"] == losing["documents_acknowledged"] > 0
    assert rows["losing", "two writers"]["documents_lost"] > 0
    assert (rows["ours", "flips"]["refused"], rows["ours", "flips"]["other_answers"]) == (4, 0)
    assert rows["losing", "flips"]["other_answers_and_no_word"] > 0
    assert rows["gone", "costs"]["status"] == "absent"
    assert "no_such_framework" in rows["gone", "costs"]["reason"]

    claims = {one["claim"]: one["holds"] for one in report["claims"]}
    assert claims["acknowledged documents lost in 4 kills and after resuming"]
    assert claims["stores that failed to open or to resume"]


@pytest.mark.slow
def test_the_claims_fail_when_ours_loses(make) -> None:
    settings = Settings(documents=2 * BATCH, rounds=1, kills=4, quiet=True)
    report = bench.run(settings, [make("ours", LOSING, role="ours")])
    failed = [one["claim"] for one in report["claims"] if not one["holds"]]
    assert "acknowledged documents lost in 4 kills and after resuming" in failed
    assert "duplicate rows after an unchanged re-ingest" in failed
    assert "stale rows after a change" in failed


def test_without_kills_only_costs_are_measured(make) -> None:
    settings = Settings(documents=3, rounds=1, kills=0, quiet=True)
    report = bench.run(settings, [make("ours", role="ours")])
    assert {row["measure"] for row in report["results"]} == {"costs"}
    assert not [one for one in report["claims"] if "kills" in one["claim"]]


def test_what_cannot_be_measured_never_holds(make, tmp_path: Path) -> None:
    report = bench._claims([{"name": "ours", "role": "ours", "measure": "kills", "status": "failed", "reason": "x"}])
    assert not any(one["holds"] for one in report)
    assert len(report) == 10


def test_a_store_that_loses_is_reported_as_losing(make, corpus, tmp_path: Path) -> None:
    rows = kill_rows([make("losing", LOSING)], corpus, tmp_path, kills=2, threads=1, seed=0, tell=lambda text: None)
    kills = next(row for row in rows if row["measure"] == "kills")
    assert kills["kills"] == 2
    assert kills["documents_lost"] == kills["documents_acknowledged"] > 0


def test_a_store_that_fails_unharmed_is_a_row_of_its_own(make, corpus, tmp_path: Path) -> None:
    broken = make("broken", SOUND.replace("held[path.name] =", "held['x'] ="))
    asked = [broken, make("sound")]
    rows = kill_rows(asked, corpus, tmp_path, kills=1, threads=1, seed=0, tell=lambda text: None)
    statuses = [(row["name"], row["measure"], row["status"]) for row in rows]
    assert statuses == [("broken", "kills", "failed"), ("sound", "kills", "ok"), ("sound", "two writers", "ok")]


# ---------------------------------------------------------------------- processes


def test_a_crash_is_an_event_and_the_server_lives_on(make, corpus, tmp_path: Path) -> None:
    with Server(make("failing", FAILING), 1) as server:
        for _ in range(2):
            end = server.run(job_for(corpus, tmp_path, "inspect"))
            assert end == {"event": "crashed", "reason": "killed by SIGSEGV"}
        end = server.run({**job_for(corpus, tmp_path, "inspect"), "vectors": "/no/such/folder"})
        assert end["event"] == "failed"
        assert "FileNotFoundError" in end["reason"]


def test_a_killed_writer_has_told_what_is_durable(make, corpus, tmp_path: Path) -> None:
    with Server(make("sound"), 1) as server:
        job = job_for(corpus, tmp_path, "write")
        running = server.start(job)
        next(event for event in running.follow() if event["event"] == "stored")
        running.kill()
        assert running.finish()["reason"] == "killed by SIGKILL"
        stored = max(event["done"] for event in running.events if event["event"] == "stored")
        found = server.run({**job, "task": "inspect"})
        assert {name for name, _ in found["rows"]} >= set(list(corpus.texts)[:stored])


def test_a_fresh_process_ends_in_one_event(make, corpus, tmp_path: Path) -> None:
    end = run_fresh(make("sound"), job_for(corpus, tmp_path, "first"), 1)
    assert end["event"] == "done"
    assert end["ingest"]["embedded"] == 4 * len(corpus.texts)
    assert end["versions"]["numpy"]
    end = run_fresh(replace(make("sound"), python="/no/such/python"), job_for(corpus, tmp_path, "first"), 1)
    assert end["event"] == "failed"


# ---------------------------------------------------------------------- corpus, flips, files


def test_the_corpus_is_the_same_for_the_same_seed_and_grows_at_its_end() -> None:
    few, many = make_corpus(5, 1), make_corpus(9, 1)
    assert list(many.texts.items())[:5] == list(few.texts.items())
    assert make_corpus(5, 2).texts != few.texts
    paragraphs = [paragraph for text in many.texts.values() for paragraph in text.split("\n\n")]
    assert len({digest(one) for one in paragraphs}) == len(paragraphs) == 36
    assert max(map(len, paragraphs)) <= many.chunk_chars < 2 * min(map(len, paragraphs))
    name, text = many.changed
    kept = {digest(one) for one in text.split("\n\n")} & {digest(one) for one in many.texts[name].split("\n\n")}
    assert (len(text.split("\n\n")), len(kept)) == (3, 2)
    assert [many.marker in text for text in many.texts.values()] == [False] * 8 + [True]


def test_a_flip_changes_one_byte_of_a_large_file(tmp_path: Path) -> None:
    for name, size in (("a", 900), ("b", 800), ("c", 700), ("small", 1)):
        (tmp_path / name).write_bytes(bytes(size))
    seen = set()
    for seed in range(30):
        file, at, before, after = _flip(tmp_path, random.Random(seed))
        seen.add(file.name)
        assert file.read_bytes()[at] == after != before
        file.write_bytes(bytes(file.stat().st_size))
    assert seen == {"a", "b", "c"}


def test_the_contenders_import_nothing_of_ours_and_say_what_stored_means() -> None:
    asked = bench.contenders()
    assert [one.role for one in asked].count("ours") == 1
    for one in asked:
        assert {"settings", "acknowledged", "options"} <= set(bench._declared(one))
    driver = Path(bench.__file__).parent / "peers" / "_store.py"
    for path in {one.module for one in asked if one.role == "peer"} | {driver}:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in names} & {"rag", "eval", "chunkers", "retrievers", "compressors"}


@pytest.mark.slow
def test_ours_loses_nothing() -> None:
    pytest.importorskip("faiss")
    settings = Settings(documents=2 * BATCH, rounds=1, kills=3, quiet=True)
    report = bench.run(settings, [one for one in bench.contenders() if one.role == "ours"])
    held = {one["claim"] for one in report["claims"] if one["holds"]}
    assert any("documents lost in" in one for one in held)
    assert {"stores that failed to open or to resume", "documents lost by two writers at once"} <= held
    assert {"of them not found by rag verify", "stale rows after a change"} <= held
    kills = next(row for row in report["results"] if row["measure"] == "kills")
    assert kills["kills"] > 0
    assert kills["duplicated_after_resume"] == 0
