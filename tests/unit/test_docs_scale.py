"""docs/scale.md is a plan made of measured costs: its tables are their arithmetic, and nothing else.

`python -m tests.unit.test_docs_scale` prints the plan table for the unit costs that stand in the page.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "scale.md"
SIZES = (10**6, 10**7, 10**8, 10**9)
CORES, SHARD, RATE, HOT = 64, 10**7, 100, 0.001


def unit_costs(page: str) -> dict[str, float]:
    """Name -> figure, of the table of unit costs."""
    rows = re.findall(r"^\| `([a-z_]+)` \| ([0-9,.]+) \|", page, re.MULTILINE)
    return {name: float(figure.replace(",", "")) for name, figure in rows}


def plan(cost: dict[str, float]) -> list[str]:
    """The rows of the plan, one figure for every size."""
    chunk_kv = cost["tokens_a_chunk"] * cost["kv_bytes_a_token"]
    rows = {
        "documents": lambda n: f"{_short(n / cost['chunks_a_document'])}",
        "CPU hours to read, cut and embed": lambda n: _short(n / cost["chunks_a_cpu_second"] / 3600),
        f"hours on {CORES} cores (`executor: ray`)": lambda n: _short(n / cost["chunks_a_cpu_second"] / 3600 / CORES),
        "hours of one writer, if it is one index": lambda n: _short(n / cost["stored_chunks_a_second"] / 3600),
        f"indexes of {_short(SHARD)} chunks": lambda n: _short(max(1, n // SHARD)),
        "index on disk (SQLite, FTS5, vectors)": lambda n: _bytes(n * cost["index_bytes_a_chunk"]),
        "PostgreSQL on disk (pgvector)": lambda n: _bytes(n * cost["pg_bytes_a_chunk"]),
        "of it the graph, which should be in memory": lambda n: _bytes(n * cost["pg_graph_bytes_a_chunk"]),
        "hours to fill PostgreSQL, one writer": lambda n: _short(n / cost["pg_chunks_a_second"] / 3600),
        f"KV of {HOT:.1%} of the chunks": lambda n: _bytes(n * HOT * chunk_kv),
    }
    return [f"| {name} | {' | '.join(make(size) for size in SIZES)} |" for name, make in rows.items()]


def serving(cost: dict[str, float]) -> str:
    """The sentence on questions."""
    each = 1000 / cost["search_ms_at_a_million"]
    return f"{each:.1f} questions a second and core; {RATE} a second take {-(-RATE // each):.0f} cores"


def _short(number: float) -> str:
    for size, unit in ((10**9, " G"), (10**6, " M"), (10**4, " k")):
        if number >= size:
            return f"{number / (1000 if unit == ' k' else size):.3g}{unit}"
    return f"{number:,.3g}" if number < 1000 else f"{number:,.0f}"


def _bytes(number: float) -> str:
    for size, unit in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} B"


def test_the_tables_are_the_arithmetic_of_the_costs() -> None:
    page = PAGE.read_text()
    cost = unit_costs(page)
    for row in plan(cost):
        assert row in page, row
    assert serving(cost) in " ".join(page.split())


def test_costs_that_are_in_results_are_those() -> None:
    cost = unit_costs(PAGE.read_text())
    kept = json.loads((ROOT / "eval/bench/results/kv_load_batch.json").read_text())
    assert cost["kv_bytes_a_token"] == kept["model"]["token_bytes"]


def test_it_says_that_it_is_a_plan() -> None:
    head = PAGE.read_text().split("## ")[0]
    assert "plan, not a measurement" in head


if __name__ == "__main__":
    costs = unit_costs(PAGE.read_text())
    print("\n".join(plan(costs)), serving(costs), sep="\n\n")
