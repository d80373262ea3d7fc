"""Nodes as frozen dataclasses, how one is run, and the three that hold others: route, branch, loop.

The patterns are those of Modular RAG (Gao et al., arXiv 2407.21059): linear, conditional, branching before and after
retrieval, iterative and adaptive loops; the recursive one is in rag/flow/tree.py.

Deviations: branches run one after the other, not in parallel, so a run is the same on any machine; the paper's
adaptive loop stops when the output is not acceptable, ours when it is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from rag.answer import Generation
from rag.errors import ConfigError, RagError
from rag.flow.merges import ensemble, fuse
from rag.flow.state import Run, State, Verdict
from rag.prompt import NOT_FOUND

__all__ = ["MOST_ROUNDS", "Branch", "Judge", "Loop", "Node", "Route", "nodes_field", "run_all"]

MOST_ROUNDS = 20
Notes = Mapping[str, Any]


def nodes_field(default: Any = ()) -> Any:
    """A field that holds nodes, or with a mapping as default labels -> nodes."""
    kind = "cases" if default is dict else "nodes"
    if default is dict:
        return field(default_factory=dict, metadata={"flow": kind})
    return field(default=default, metadata={"flow": kind})


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Puts a label on a state. `labels` are all that it may give."""

    use: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...]: ...

    @abstractmethod
    def judge(self, state: State, run: Run) -> Verdict: ...


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node. `needs` and `gives` name the ports of State that it reads and fills.

    `on_error`: what a failure (RagError, OSError) does: `abort` the flow, `skip` the node, or run `fallback` instead.
    """

    use: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    gives: ClassVar[tuple[str, ...]] = ()

    on_error: Literal["abort", "skip", "fallback"] = "abort"
    fallback: tuple[Node, ...] = nodes_field()

    def __post_init__(self) -> None:
        if self.on_error not in ("abort", "skip", "fallback"):
            raise ConfigError(f"{self.use}: on_error must be abort, skip or fallback, not {self.on_error!r}")
        if bool(self.fallback) != (self.on_error == "fallback"):
            raise ConfigError(f"{self.use}: on_error: fallback and fallback nodes belong together")

    @abstractmethod
    def run(self, state: State, run: Run, path: str) -> tuple[State, Notes]:
        """The state after this node, and what to note in the trace; `path` names its place."""


def run_all(nodes: tuple[Node, ...], state: State, run: Run, path: str = "") -> State:
    """One node after the other, each on the trace and under its failure policy."""
    for node in nodes:
        state = _run_one(node, state, run, f"{path}{node.use}")
    return state


def _run_one(node: Node, state: State, run: Run, path: str) -> State:
    started, before = run.clock(), _size(state, node.needs)
    try:
        after, notes = node.run(state, run, path)
    except (RagError, OSError) as error:
        if node.on_error == "abort":
            raise
        run.note(path, node.use, started, (before, 0), {"failed": str(error), "then": node.on_error})
        return run_all(node.fallback, state, run, f"{path}/fallback/")
    shown = {name: value for name, value in notes.items() if name != "plugin"}
    run.note(path, notes.get("plugin", node.use), started, (before, _size(after, node.gives)), shown)
    return after


def _size(state: State, ports: tuple[str, ...]) -> int:
    """How much the first of the ports holds: hits, queries, chunks, pieces or citations; 1 for the question."""
    if not ports:
        return 1
    value = getattr(state, ports[0])
    for name in ("hits", "pieces", "citations"):
        value = getattr(value, name, value)
    return len(value) if isinstance(value, tuple) else int(bool(value))


def _judged(judge: Judge, state: State, run: Run, path: str) -> tuple[State, Verdict]:
    started = run.clock()
    verdict = judge.judge(state, run)
    run.note(path, judge.use, started, (1, 1), {"label": verdict.label, "score": verdict.score, **verdict.notes})
    return replace(state, label=verdict.label), verdict


@dataclass(frozen=True, kw_only=True)
class Route(Node):
    """Runs the nodes of the case that the judge names; `otherwise` for a label without a case."""

    use: ClassVar[str] = "route"

    by: Judge = field(metadata={"flow": "judge"})
    cases: Mapping[str, tuple[Node, ...]] = nodes_field(dict)
    otherwise: tuple[Node, ...] = nodes_field()

    def __post_init__(self) -> None:
        super().__post_init__()
        for label in self.cases:
            if label not in self.by.labels:
                known = ", ".join(self.by.labels)
                raise ConfigError(f"route: {self.by.use} never says {label!r}; it says: {known}")

    def run(self, state: State, run: Run, path: str) -> tuple[State, Notes]:
        state, verdict = _judged(self.by, state, run, f"{path}.by")
        taken = self.cases.get(verdict.label, self.otherwise)
        return run_all(taken, state, run, f"{path}[{verdict.label}]/"), {"case": verdict.label}


@dataclass(frozen=True, kw_only=True)
class Branch(Node):
    """Runs `do` once for each query (before retrieval) or hit (after it), `limit` at most, and merges what came out.

    `rrf` fuses the hits of the branches by reciprocal rank, `best` counts beside the first branch the highest rank
    only (for the parts of a question), `ensemble` weighs their answers (REPLUG).
    """

    use: ClassVar[str] = "branch"

    over: Literal["queries", "hits"]
    do: tuple[Node, ...] = nodes_field()
    merge: Literal["rrf", "best", "ensemble"] = "rrf"
    limit: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.over not in ("queries", "hits") or self.merge not in ("rrf", "best", "ensemble"):
            raise ConfigError(
                f"branch: over queries or hits, merge rrf, best or ensemble, not {self.over!r}, {self.merge!r}"
            )
        if not self.do or not 1 <= self.limit <= MOST_ROUNDS:
            raise ConfigError(f"branch: needs nodes in `do` and a limit of 1 to {MOST_ROUNDS}, not limit={self.limit}")

    def run(self, state: State, run: Run, path: str) -> tuple[State, Notes]:
        items: tuple[Any, ...] = (state.queries if self.over == "queries" else state.hits)[: self.limit]
        ends: list[State] = []
        stopped = ""
        for at, item in enumerate(items, start=1):
            stopped = run.spent() if ends else ""
            if stopped:
                break
            start = replace(state, query=item, hits=()) if self.over == "queries" else replace(state, hits=(item,))
            ends.append(run_all(self.do, start, run, f"{path}#{at}/"))
        if not ends:  # nothing was found: no hits, or no answer
            empty = Generation(text=NOT_FOUND) if self.merge == "ensemble" else state.generation
            return replace(state, generation=empty), {"branches": 0}
        merged, notes = ensemble(state, ends, run) if self.merge == "ensemble" else fuse(state, ends, run, self.merge)
        return merged, {"branches": len(ends), "merge": self.merge, **({"budget": stopped} if stopped else {}), **notes}


@dataclass(frozen=True, kw_only=True)
class Loop(Node):
    """Runs `do` until the judge gives one of the labels in `accept`, `max_rounds` times at most.

    `keep: best` ends with the round that the judge scored highest, `last` with the last one.
    """

    use: ClassVar[str] = "loop"

    do: tuple[Node, ...] = nodes_field()
    until: Judge = field(metadata={"flow": "judge"})
    accept: tuple[str, ...]
    max_rounds: int
    keep: Literal["last", "best"] = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.max_rounds, bool) or not 1 <= self.max_rounds <= MOST_ROUNDS:
            raise ConfigError(f"loop: max_rounds must be between 1 and {MOST_ROUNDS}, not {self.max_rounds}")
        wrong = [label for label in self.accept if label not in self.until.labels]
        if wrong or not self.accept or not self.do:
            known = ", ".join(self.until.labels)
            raise ConfigError(f"loop: needs `do`, and `accept` from what {self.until.use} says ({known}), not {wrong}")

    def run(self, state: State, run: Run, path: str) -> tuple[State, Notes]:
        best: tuple[float, State] | None = None
        ended, rounds = "max_rounds", 0
        while rounds < self.max_rounds:
            stopped = run.spent() if rounds else ""
            if stopped:
                ended = f"budget {stopped}"
                break
            rounds += 1
            run.rounds += 1
            state = run_all(self.do, state, run, f"{path}#{rounds}/")
            state, verdict = _judged(self.until, state, run, f"{path}#{rounds}.until")
            if best is None or verdict.score > best[0]:
                best = (verdict.score, state)
            if verdict.label in self.accept:
                ended = f"accepted: {verdict.label}"
                break
            state = replace(state, previous=state.generation.text if state.generation else "")
        if self.keep == "best" and best is not None and not ended.startswith("accepted"):
            state = best[1]
        return state, {"rounds": rounds, "ended": ended}
