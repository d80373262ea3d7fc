"""`rag serve` with a language model in the process: through the server an answer is what it is without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

pytest.importorskip("uvicorn", reason="chunkwise[serve] is not installed")

from rag import Pipeline
from rag.config import PipelineConfig
from rag.index import Index
from tests.e2e.served import bearer, chat, make_home, question, serving

pytestmark = pytest.mark.models
CONFIG: dict[str, Any] = {
    "embedder": "hashing",
    "retriever": "bm25",
    "generator": {"use": "local", "max_new_tokens": 24, "dtype": "float32"},
}


def test_an_answer_through_the_server_is_the_answer_in_the_process(tmp_path: Path) -> None:
    make_home(tmp_path)
    (tmp_path / "rag.yaml").write_text(yaml.safe_dump(CONFIG))
    asked = question("travel")
    with Index.open(tmp_path / "idx") as index:
        here = Pipeline(PipelineConfig.from_dict(CONFIG)).ask(asked, index)
    with serving(tmp_path) as served:
        url, who = f"{served.url}/v1/chat/completions", bearer("operator")
        whole = httpx.post(url, json=chat(asked), headers=who, timeout=120).json()
        streamed = httpx.post(url, json=chat(asked, stream=True), headers=who, timeout=120).text
    assert here.stats.new_tokens > 0
    assert whole["choices"][0]["message"]["content"] == here.text
    cited = [(one["doc_id"], one["start"], one["end"]) for one in whole["rag"]["citations"]]
    assert cited == [(one.doc_id, one.span.start, one.span.end) for one in here.citations]
    assert whole["usage"]["prompt_tokens"] == here.stats.prompt_tokens
    events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    deltas = [one["choices"][0]["delta"].get("content") or "" for one in events if one["choices"]]
    assert "".join(deltas) == here.text
