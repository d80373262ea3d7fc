"""Keys and values that hold a trace of other documents are not served to tenants that may not see those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="chunkwise[serve] is not installed")
pytest.importorskip("prometheus_client", reason="chunkwise[serve] is not installed")

from rag.config import PipelineConfig
from rag.errors import ConfigError
from rag.server.app import create_app
from rag.server.auth import OPERATOR, Caller, Tokens
from rag.server.engine import Engine
from rag.server.limits import ServerLimits
from rag.server.metrics import Metrics
from tests.e2e.served import CONFIG, make_home


def test_blocks_made_behind_other_documents_are_refused_where_tenants_see_parts(tmp_path: Path) -> None:
    home = make_home(tmp_path)

    def served(tokens: Tokens, **given: Any) -> None:
        generator = {"use": "local", "reuse": "chunk", "blocks": "neighbour-mean", **given}
        lines = {"a": PipelineConfig.from_dict(CONFIG)}
        lines["near"] = PipelineConfig.from_dict({**CONFIG, "generator": generator})
        create_app(Engine(home / "idx", lines, ServerLimits(), Metrics()), tokens, version="0")

    everything = {"ab": OPERATOR, "cd": Caller(tenant="auditors", where=None)}
    served(Tokens(callers={}))
    served(Tokens(callers=everything))
    acme = Caller(tenant="acme", where={"meta.tenant": "acme"})
    for parted in (Tokens(callers={**everything, "ef": one}) for one in (acme, Caller(tenant="blind"))):
        for setting, told in (({}, "blocks: neighbour-mean"), ({"repair": "cache-craft"}, "repair: cache-craft")):
            with pytest.raises(ConfigError, match=f"near: {told} makes keys"):
                served(parted, **setting)
        for harmless in ({"blocks": "donor-mean"}, {"reuse": "prefix"}):
            served(parted, **harmless)
