"""Flows: lines of nodes that route, branch and loop over the slots of a pipeline.

    flow = Flow(name="crag", nodes=(Retrieve(), Route(by=Grade(), cases={"incorrect": (Abstain(),)}, ...), ...))
    answer = flow.run(pipeline, "Who approves travel?", "my-index")

The same as YAML, with `use:` specs as in the pipeline's own file; `Flow.load("crag")` takes one of those that are
shipped (rag/sample/flows). A flow is checked when it is made: unknown names, ports that nothing fills, loops without
an end. A run is deterministic for a deterministic pipeline, and everything that it did is on its trace.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rag.answer import Answer, Generation
from rag.errors import ConfigError, UsageError
from rag.flow.feedback import Feedback
from rag.flow.judges import Answered, Asked, Confident, Grade, Parts, Settled, Topic
from rag.flow.nodes import Branch, Judge, Loop, Node, Route, run_all
from rag.flow.queries import Expand, Narrow, Rewrite
from rag.flow.spec import check_nodes, nodes_from, to_spec
from rag.flow.state import Budget, Run, State
from rag.flow.steps import Abstain, Adjust, Compress, Generate, Refine, Retrieve, Select, Widen
from rag.flow.timing import Needs
from rag.flow.tree import Tree
from rag.index import Index
from rag.types import Bubble, CompressedContext

if TYPE_CHECKING:
    from rag.pipeline import Pipeline
    from rag.protocols import Filter

__all__ = [
    "Abstain",
    "Adjust",
    "Answered",
    "Asked",
    "Branch",
    "Budget",
    "Compress",
    "Confident",
    "Expand",
    "Feedback",
    "Flow",
    "Generate",
    "Grade",
    "Judge",
    "Loop",
    "Narrow",
    "Needs",
    "Node",
    "Parts",
    "Refine",
    "Retrieve",
    "Rewrite",
    "Route",
    "Select",
    "Settled",
    "Topic",
    "Tree",
    "Widen",
    "shipped_flows",
]

_KEYS = ("flow", "summary", "budget", "nodes")


def shipped_flows() -> dict[str, Path]:
    """Name -> file of the flows that come with the package."""
    folder = Path(__file__).parent.parent / "sample" / "flows"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


@dataclass(frozen=True, kw_only=True)
class Flow:
    """Nodes, and what they may cost. Made from Python or YAML, both ways round."""

    name: str
    nodes: tuple[Node, ...]
    summary: str = ""
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        have, runs = check_nodes(self.nodes, f"flow {self.name}: nodes", frozenset())
        if "generation" not in have:
            raise ConfigError(f"flow {self.name}: no way through it is sure to end in an answer; add generate")
        if runs > self.budget.steps:
            raise ConfigError(
                f"flow {self.name}: up to {runs} node runs, and budget.steps allows {self.budget.steps}. "
                "Lower max_rounds, max_queries or limit, or raise budget.steps"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str = "flow") -> Flow:
        """The flow that plain values describe."""
        for key in values:
            if key not in _KEYS:
                raise ConfigError(f"{where}: unknown key {key!r}; keys: {', '.join(_KEYS)}")
        name, budget = values.get("flow"), values.get("budget") or {}
        if not isinstance(name, str) or not isinstance(budget, Mapping):
            raise ConfigError(f"{where}: needs flow: NAME, and budget is a mapping, not {name!r} and {budget!r}")
        known = asdict(Budget())
        for key, value in budget.items():
            if key not in known or isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"{where}: budget is numbers for {', '.join(known)}, not {key}: {value!r}")
        nodes = nodes_from(values.get("nodes"), f"{where}: nodes")
        return cls(name=name, nodes=nodes, summary=str(values.get("summary", "")), budget=Budget(**budget))

    @classmethod
    def from_yaml(cls, path: str | Path) -> Flow:
        """The flow of a YAML file."""
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read the flow {path}: {error.strerror or error}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, Mapping):
            raise ConfigError(f"{path}: expected a mapping with flow and nodes, not {type(values).__name__}")
        return cls.from_dict(values, where=str(path))

    @classmethod
    def load(cls, name: str | Path) -> Flow:
        """A flow by its file, or by the name of one that is shipped."""
        shipped = shipped_flows()
        if not Path(name).is_file() and str(name) not in shipped:
            raise ConfigError(f"no flow file {str(name)!r}, and no shipped flow of that name: {', '.join(shipped)}")
        return cls.from_yaml(name if Path(name).is_file() else shipped[str(name)])

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what is as by default is left out."""
        default = asdict(Budget())
        budget = {key: value for key, value in asdict(self.budget).items() if value != default[key]}
        return {
            "flow": self.name,
            **({"summary": self.summary} if self.summary else {}),
            **({"budget": budget} if budget else {}),
            "nodes": [to_spec(node) for node in self.nodes],
        }

    def to_yaml(self) -> str:
        """The YAML that gives this flow back."""
        return str(yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=False, allow_unicode=True))

    def run(
        self,
        pipeline: Pipeline,
        question: str,
        index: Index | str | Path,
        *,
        where: Filter | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Answer:
        """As `Pipeline.ask`, along this flow. The answer's trace has one line for every node that ran."""
        if not question.strip():
            raise UsageError("the question is empty; write one")
        if isinstance(index, str | Path):
            with Index.open(index) as opened:
                return self.run(pipeline, question, opened, where=where, clock=clock)
        from rag.replay import about

        run = Run(pipeline, index, self.budget, clock)
        end = run_all(self.nodes, State(question=question, query=question, where=where), run)
        answer = _answer(end, run)
        facts = about(answer, index.corpus)
        kept = {**answer.to_dict(), **facts, "config": pipeline.config.to_dict(), "flow": self.to_dict()}
        return replace(answer, run_id=index.store.add_run(kept))


def _answer(end: State, run: Run) -> Answer:
    """What the last state holds; an abstention has an empty context, since nothing of it was used."""
    made = end.generation or Generation(text="")
    empty = Bubble(question=end.question, hits=(), token_count=0, budget=0, decisions=())
    context = end.context or CompressedContext(
        question=end.question, pieces=(), token_count=0, source_token_count=0, compressor="none"
    )
    return Answer(
        question=end.question,
        text=made.text,
        citations=made.citations,
        sentences=made.sentences,
        supported=made.supported,
        context=context,
        bubble=end.bubble or empty,
        prompt=made.prompt,
        stats=made.stats,
        trace=tuple(run.trace),
        candidates=end.hits,
    )
