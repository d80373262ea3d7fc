"""What `attention: auto` chooses from a calibration: by length, scaled, dense where nothing was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rag.errors import ConfigError
from rag.generators._attention_calibration import choose, scaled, write_attention_calibration

QUEST = {"use": "quest", "budget": 1000, "prefill": True}


@pytest.fixture
def table(tmp_path: Path) -> str:
    rows = [
        {"tokens": 2000, "spec": None},
        {"tokens": 4000, "spec": QUEST},
        {"tokens": 8000, "spec": {"use": "chunk-block", "density": 0.25}},
    ]
    write_attention_calibration(tmp_path / "t.json", {"fingerprint": "abc", "name": "small", "rows": rows})
    return str(tmp_path / "t.json")


def test_the_length_decides(table: str) -> None:
    assert choose("abc", 1000, table) is None  # shorter than what was measured
    assert choose("abc", 3999, table) is None  # as at 2,000
    assert choose("abc", 4000, table) == QUEST
    assert choose("abc", 6000, table) == QUEST | {"budget": 1500}
    assert choose("small", 8500, table) == {"use": "chunk-block", "density": 0.25}
    assert choose("abc", 8801, table) is None  # past what was measured
    assert choose("other", 4000, table) is None


def test_only_slots_are_scaled() -> None:
    spec = {"use": "hip", "keeps": [400, 200], "q_block": 64, "budget_decode": -1, "top_k": 100}
    assert scaled(spec, 1.5) == spec | {"keeps": [600, 300], "top_k": 150}


def test_without_a_table_the_one_of_the_package_is_read() -> None:
    assert choose("a model nobody measured", 8000) is None


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", '{"format": 2, "tables": []}',
        '{"format": 1, "tables": [{"fingerprint": "a", "rows": [{"tokens": 1}]}]}',
    ],
)  # fmt: skip
def test_what_is_no_calibration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.json is no calibration .*rag bench attention --calibrate writes one"):
        choose("a", 10, str(tmp_path / "bad.json"))


def test_a_calibration_is_checked_before_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a row has tokens and spec"):
        write_attention_calibration(
            tmp_path / "t.json", {"fingerprint": "a", "rows": [{"tokens": 1, "spec": {"budget": 3}}]}
        )
    write_attention_calibration(tmp_path / "t.json", {"fingerprint": "a", "rows": []})
    assert json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))["format"] == 1
    assert choose("a", 10, str(tmp_path / "t.json")) is None
