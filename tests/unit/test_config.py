from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml

from rag import PipelineBuilder, PipelineConfig
from rag.config import json_schema, resolve
from rag.errors import ConfigError

BM25 = {"chunker": {"use": "fixed", "max_tokens": 50}, "embedder": "hashing", "retriever": "bm25"}


def test_yaml_builder_and_dict_give_one_config(tmp_path: Path) -> None:
    (tmp_path / "rag.yaml").write_text(
        "version: 1\nchunker: {use: fixed, max_tokens: 50}\nembedder: hashing\nretriever: bm25\n"
    )
    from_yaml = PipelineConfig.from_yaml(tmp_path / "rag.yaml")
    built = PipelineBuilder().chunker("fixed", max_tokens=50).embedder("hashing").retriever("bm25")
    assert from_yaml == built.config == PipelineConfig.from_dict(BM25)
    (tmp_path / "again.yaml").write_text(from_yaml.to_yaml())
    assert PipelineConfig.from_yaml(tmp_path / "again.yaml") == from_yaml
    assert yaml.safe_load(built.describe()) == from_yaml.to_dict()


def test_the_builder_never_changes_and_checks_at_the_call() -> None:
    start = PipelineBuilder()
    assert start.chunker("fixed") is not start
    assert start == PipelineBuilder()
    with pytest.raises(ConfigError, match=r"no parameter 'max_token' \(did you mean 'max_tokens'"):
        start.chunker("fixed", max_token=5)
    with pytest.raises(ConfigError, match="unknown retriever"):
        start.retriever("elastic")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chunkr": "fixed"}, r"rag\.yaml: unknown key 'chunkr' \(did you mean 'chunker'\?\); keys: version, chunker"),
        ({"version": 2}, "version must be 1, not 2"),
        ({"selector": {"use": "top-k", "budget": -4}}, "selector: .*budget"),
        ({"retriever": {"use": "hybrid", "parts": ["bm26"]}}, r"retriever\.parts\[0\]: unknown retriever 'bm26'"),
    ],
)
def test_wrong_configs_name_the_place_and_the_fix(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PipelineConfig.from_dict(values, where="rag.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "chunker: [unclosed\n", "just words"])
def test_broken_yaml_is_a_config_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "rag.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"rag\.yaml"):
        PipelineConfig.from_yaml(tmp_path / "rag.yaml")
    with pytest.raises(ConfigError, match="cannot read the config"):
        PipelineConfig.from_yaml(tmp_path / "absent.yaml")


def test_layers_and_their_origins(tmp_path: Path) -> None:
    (tmp_path / "rag.yaml").write_text("retriever: bm25\nselector: {use: top-k, budget: 700}\n")
    resolved = resolve(
        directory=tmp_path,
        index_config={"chunker": "sentence", "retriever": "hybrid"},
        environ={"RAG__SELECTOR__BUDGET": "300", "PATH": "/bin"},
        overrides={"chunker": "fixed"},
    )
    assert resolved.config.retriever == "bm25"
    assert resolved.config.selector == {"use": "top-k", "budget": 300}
    assert resolved.config.chunker == "fixed"
    assert resolved.origins["retriever"] == "rag.yaml"
    assert resolved.origins["selector"] == "environment"
    assert resolved.origins["chunker"] == "command line"
    assert resolved.origins["generator"] == "default"


def test_a_project_may_keep_its_config_in_pyproject(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.rag]\nretriever = "bm25"\n')
    assert resolve(directory=tmp_path, environ={}).config.retriever == "bm25"


def test_environment_errors_name_the_variable() -> None:
    with pytest.raises(ConfigError, match=r"RAG__SELCTOR__BUDGET: unknown slot 'selctor'"):
        resolve(environ={"RAG__SELCTOR__BUDGET": "1"})


def test_the_schema_accepts_what_the_config_accepts_and_refuses_the_rest() -> None:
    schema = json_schema()
    jsonschema.validate(PipelineConfig.from_dict(BM25).to_dict(), schema)
    jsonschema.validate({"retriever": {"use": "hybrid", "parts": ["bm25", {"use": "faiss-dense"}]}}, schema)
    for wrong in ({"chunkr": "fixed"}, {"chunker": "fxed"}, {"chunker": {"use": "fixed", "max_token": 3}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_how_to_run_comes_from_every_layer(tmp_path: Path) -> None:
    (tmp_path / "rag.yaml").write_text(
        "executor: {use: threads, workers: 3}\nlimits: {max_pages: 5}\nnear_duplicates: skip\n"
    )
    environ = {"RAG__LIMITS__MAX_CELLS": "9", "RAG__EXECUTOR__WORKERS": "2", "RAG__DUPLICATE_THRESHOLD": "0.8"}
    config = resolve(directory=tmp_path, environ=environ).config
    assert config.executor == {"use": "threads", "workers": 2}
    assert config.limits == {"max_pages": 5, "max_cells": 9}
    assert (config.near_duplicates, config.duplicate_threshold) == ("skip", 0.8)
    assert resolve(directory=tmp_path, environ={"RAG__EXECUTOR": "processes"}).config.executor == "processes"
    assert PipelineConfig.from_dict(yaml.safe_load(config.to_yaml())) == config
    jsonschema.validate(config.to_dict(), json_schema())
    built = PipelineBuilder().executor("threads", workers=2).limits(max_pages=5).limits(max_cells=9).config
    assert (built.executor, built.limits) == (config.executor, config.limits)
    assert not {"executor", "limits"} & config.for_index().keys()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"limits": {"max_page": 5}}, "unknown limit 'max_page' .did you mean 'max_pages'"),
        ({"limits": 5}, "expected a mapping of limits"),
        ({"limits": {"max_pages": 0}}, "max_pages must be a whole number > 0"),
        ({"executor": "process"}, "unknown executor 'process' .did you mean 'processes'"),
        ({"near_duplicates": "delete"}, "near_duplicates is one of report, skip, off, not 'delete'"),
        ({"duplicate_threshold": 2}, "between 0.5 and 1, not 2"),
    ],
)
def test_wrong_ways_to_run_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PipelineConfig.from_dict(values)
