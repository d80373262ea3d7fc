"""Finds plugins by name and builds them from specs.

A spec is a name (`"semantic"`) or a mapping with `use` (`{"use": "semantic", "max_tokens": 256}`). Rooms are found
through the entry-point group `rag.rooms` (kind = package); inside a room, file `parent_child.py` is the plugin
`parent-child`. Third parties declare single classes in the groups `rag.chunker`, `rag.retriever`, ... Both are
looked up the same way, and nothing is imported before it is used.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, get_type_hints

from rag.errors import ConfigError

__all__ = ["KINDS", "Parameter", "PluginInfo", "Spec", "build", "catalogue", "check", "describe", "load", "spec_name"]

Spec = str | Mapping[str, Any]

KINDS = {
    "parser": "Parser",
    "chunker": "Chunker",
    "metric": "Metric",
    "embedder": "Embedder",
    "retriever": "Retriever",
    "selector": "Selector",
    "compressor": "Compressor",
    "generator": "Generator",
    "executor": "Executor",
}
"""Kind -> name of its protocol in rag.protocols."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A hyper-parameter of a plugin, as `rag plugins` shows it."""

    name: str
    type: str
    default: Any
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class PluginInfo:
    """What the catalogue knows of one plugin."""

    kind: str
    name: str
    summary: str
    parameters: tuple[Parameter, ...]


@cache
def _declared() -> Any:
    """Every entry point of every installed package, read once: there may be hundreds of small files to open.

    Python 3.11 and 3.12 disagree on its type, not on `select`.
    """
    return entry_points()


@cache
def catalogue(kind: str) -> Mapping[str, str]:
    """Plugin name -> `module` or `module:Class` of every plugin of `kind`, sorted by name; no plugin is imported."""
    if kind not in KINDS:
        raise ConfigError(f"unknown plugin kind {kind!r}{_hint(kind, KINDS)}; kinds: {', '.join(KINDS)}")
    found: dict[str, str] = {}
    for room in _declared().select(group="rag.rooms"):
        if room.name != kind:
            continue
        for module in pkgutil.iter_modules(import_module(room.value).__path__):
            if not module.name.startswith("_") and not module.ispkg:
                found[module.name.replace("_", "-")] = f"{room.value}.{module.name}"
    for single in _declared().select(group=f"rag.{kind}"):
        found.setdefault(single.name, single.value)
    return dict(sorted(found.items()))


def load(kind: str, name: str, *, path: str = "") -> type[Any]:
    """The class of plugin `name`; ConfigError with the nearest known name when there is none."""
    known = catalogue(kind)
    if name not in known:
        names = ", ".join(known) or "none installed"
        raise ConfigError(f"{path or kind}: unknown {kind} {name!r}{_hint(name, known)}; known: {names}")
    module_name, _, class_name = known[name].partition(":")
    module = import_module(module_name)
    if class_name:
        plugin: type[Any] = getattr(module, class_name)
        return plugin
    public = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and value.__module__ == module_name
        and not value.__name__.startswith("_")
        and dataclasses.is_dataclass(value)
        and value.__name__.endswith(KINDS[kind])
    ]
    if len(public) != 1:
        raise ConfigError(f"{module_name} must hold exactly one public {KINDS[kind]} dataclass, it holds {len(public)}")
    return public[0]


def build(kind: str, spec: Spec, *, services: Mapping[str, Any], path: str = "") -> Any:
    """The plugin that `spec` describes, its nested plugins built first. `path` starts every error message.

    `services` maps a service name to the object, or to a function without arguments that makes it when asked for.
    """
    path = path or kind
    name, given = spec_name(spec, path=path), _parameters(spec)
    plugin = load(kind, name, path=path)
    fields = {field.name: field for field in dataclasses.fields(plugin) if field.init}
    open_names = [n for n, field in fields.items() if not field.metadata.get("service")]
    for key in given:
        if key not in open_names:
            raise ConfigError(
                f"{path}: {name} has no parameter {key!r}{_hint(key, open_names)}; "
                f"parameters: {', '.join(open_names) or 'none'}"
            )
    hints = get_type_hints(plugin)
    arguments: dict[str, Any] = {}
    for key, field in fields.items():
        if field.metadata.get("service"):
            if key not in services and field.default is not dataclasses.MISSING:
                continue
            arguments[key] = _service(key, services, path=path, plugin=name)
        elif "nested" in field.metadata:
            value = given.get(key, field.default)
            arguments[key] = _nested(field.metadata["nested"], value, services=services, path=f"{path}.{key}")
        elif key in given:
            arguments[key] = _checked(given[key], hints[key], path=f"{path}.{key}")
    try:
        return plugin(**arguments)
    except TypeError as error:
        raise ConfigError(f"{path}: {name} cannot be built: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def check(kind: str, spec: Spec, *, path: str = "") -> None:
    """ConfigError when `spec` cannot be built: names, parameters and ranges are checked, no model is loaded."""
    from rag.embedders.hashing import HashingEmbedder
    from rag.tokens import WordCounter

    build(kind, spec, services={"counter": WordCounter(), "embedder": HashingEmbedder()}, path=path)


def describe(kind: str, name: str) -> PluginInfo:
    """Summary and hyper-parameters of a plugin; services are left out, since the pipeline fills them."""
    plugin = load(kind, name)
    hints = get_type_hints(plugin)
    parameters = tuple(
        Parameter(
            name=field.name,
            type=_type_name(hints[field.name]),
            default=_default(field),
            kind=field.metadata.get("nested", ""),
        )
        for field in dataclasses.fields(plugin)
        if field.init and not field.metadata.get("service")
    )
    summary = (inspect.getdoc(plugin) or "").split("\n", 1)[0]
    return PluginInfo(kind=kind, name=name, summary=summary, parameters=parameters)


def spec_name(spec: Spec, *, path: str = "") -> str:
    """The plugin name inside a spec."""
    if isinstance(spec, str):
        return spec
    if isinstance(spec, Mapping) and isinstance(spec.get("use"), str):
        return str(spec["use"])
    raise ConfigError(f"{path}: expected a plugin name or a mapping with 'use', not {spec!r}")


def _parameters(spec: Spec) -> dict[str, Any]:
    return {} if isinstance(spec, str) else {key: value for key, value in spec.items() if key != "use"}


def _service(name: str, services: Mapping[str, Any], *, path: str, plugin: str) -> Any:
    if name not in services:
        raise ConfigError(f"{path}: {plugin} needs the service {name!r}, which this pipeline does not have")
    value = services[name]
    return value() if inspect.isfunction(value) or inspect.ismethod(value) else value


def _nested(kind: str, value: Any, *, services: Mapping[str, Any], path: str) -> Any:
    if value is None or isinstance(value, str | Mapping):
        return None if value is None else build(kind, value, services=services, path=path)
    if not isinstance(value, Sequence):
        raise ConfigError(f"{path}: expected a {kind} or a list of them, not {value!r}")
    return tuple(build(kind, item, services=services, path=f"{path}[{at}]") for at, item in enumerate(value))


def _checked(value: Any, expected: Any, *, path: str) -> Any:
    """`value` as the field's type; YAML lists become tuples, integers pass for floats, nothing else is bent."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    adapter: TypeAdapter[Any] = TypeAdapter(expected, config=ConfigDict(strict=False, str_strip_whitespace=False))
    try:
        if isinstance(value, bool) and bool not in (expected, *getattr(expected, "__args__", ())):
            raise ConfigError(f"{path}: expected {_type_name(expected)}, not {value!r}")
        return adapter.validate_python(tuple(value) if isinstance(value, list) else value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ConfigError(f"{path}: expected {_type_name(expected)}, not {value!r} ({reason})") from error


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return list(field.default) if isinstance(field.default, tuple) else field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def _hint(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""
