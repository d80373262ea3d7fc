"""Sparse attention by name: what a config may say, checked without torch, and the selection that it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from rag.errors import ConfigError

if TYPE_CHECKING:
    from rag.engine.attention import Selection

__all__ = ["EXECUTORS", "SELECTIONS", "Attention", "build_selection", "check_attention", "checked_attention"]

Attention = str | Mapping[str, Any]
"""A name, or a mapping of `use`, the selection's parameters and `executor`."""

SELECTIONS: Mapping[str, tuple[str, ...]] = {
    "dense": (),
    "auto": ("table",),
    "sink-recent": ("budget", "sink", "q_block"),
    "chunk-block": (
        "density", "anchor", "floor", "prior_weight", "prior_share", "score", "context", "question_dense", "refresh",
        "split", "longer_than", "dense_layers", "heads", "head_weight", "voters",
    ),
    "dhsa": ("budget_prefill", "budget_decode", "block_size", "local_tokens", "pooling", "sink", "q_block"),
    "dma": ("keep_window_size", "local", "strength", "trained", "weights", "q_block"),
    "tokenselect": ("top_k", "n_init", "n_local", "threshold", "prefill", "q_block"),
    "quest": ("budget", "page_size", "dense_layers", "prefill", "q_block"),
    "flexprefill": ("gamma", "tau", "min_budget", "block_size"),
    "hip": ("sink", "window", "chunk_sizes", "keeps", "q_block", "q_stride", "refresh"),
    "hisa": ("top_k", "top_m", "block_size", "q_block"),
    "longheads": ("attention_length", "chunk_size", "q_block"),
    "chunkllm": ("budget", "chunk_size", "sink", "local", "refresh", "weights", "trained", "q_block"),
    "sparda": ("budget", "page_size", "init_blocks", "local", "dense_layers", "weights", "trained", "q_block"),
    "token-skip": ("keep", "start", "every", "least", "probes", "sink", "local", "q_block"),
    "compact": ("inner", "q_block"),
    "mac": ("inner", "threshold", "capacity", "amend"),
    "share": ("inner", "layers", "start"),
}  # fmt: skip
"""Name -> parameters, those of the class in `rag.engine.attention` of that name."""
EXECUTORS = ("auto", "dense_mask", "gather", "flex", "triton")


class _Settings(Protocol):
    @property
    def attention(self) -> Attention: ...
    @property
    def batch(self) -> str: ...


def check_attention(given: _Settings) -> None:
    """ConfigError for what cannot be read, and for a batch that sparse attention cannot be read in."""
    name, _, _ = checked_attention(given.attention)
    if given.batch == "shared" and name != "dense":
        raise ConfigError(
            f"local: batch shared reads several questions in one pass, and attention {name} reads each prompt in its "
            "own way. Set batch: auto, which then writes them one by one, or attention: dense"
        )


def checked_attention(spec: Attention, *, inner: bool = False) -> tuple[str, dict[str, Any], str]:
    """(name, parameters, executor); ConfigError for unknown ones. Ranges are the selection's to check. `inner`: of a
    selection in another one, which has no executor and cannot be `auto`."""
    given: dict[str, Any] = {"use": spec} if isinstance(spec, str) else dict(spec)
    name: Any = given.pop("use", None)
    names = [one for one in SELECTIONS if not (inner and one == "auto")]
    if not isinstance(name, str) or name not in names:
        raise ConfigError(f"local: attention must be one of {', '.join(names)}, not {name!r}")
    executor = "auto" if inner else given.pop("executor", "auto")
    if executor not in EXECUTORS:
        raise ConfigError(f"local: attention: executor must be one of {', '.join(EXECUTORS)}, not {executor!r}")
    for key, value in given.items():
        if key not in SELECTIONS[name]:
            known = ", ".join(SELECTIONS[name]) or "none"
            raise ConfigError(f"local: attention {name} has no parameter {key!r}; parameters: {known}")
        if key == "inner":
            checked_attention(value, inner=True)
        elif not isinstance(value, int | float | str) and not _numbers(value, deep=key == "heads"):
            raise ConfigError(f"local: attention {name}: {key} cannot be {value!r}")
    return name, given, executor


def _numbers(value: Any, *, deep: bool = False) -> bool:
    return isinstance(value, Sequence) and all(_numbers(one) if deep else isinstance(one, int) for one in value)


def build_selection(spec: Attention, *, inner: bool = False) -> Selection:
    """The selection; ConfigError where a parameter is out of its range."""
    from rag.engine.errors import EngineError

    name, given, _ = checked_attention(spec, inner=inner)
    values: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in given.items()}
    if "inner" in given:
        values["inner"] = build_selection(given["inner"], inner=True)
    kind = getattr(import_module(f"rag.engine.attention.{name.replace('-', '_')}"), _class_name(name))
    try:
        made: Selection = kind(**values)
    except (EngineError, TypeError) as error:  # of a text where a number has to be
        raise ConfigError(f"local: attention {name}: {error}") from error
    return made


def _class_name(name: str) -> str:
    special = {"tokenselect": "TokenSelect", "flexprefill": "FlexPrefill", "longheads": "LongHeads"}
    return special.get(name) or "".join(part.capitalize() for part in name.split("-"))
