"""Sentence encoders: the bundled all-MiniLM-L6-v2, or any other model of sentence-transformers."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from rag.embedders._batches import Ids, Runtime, encode_all
from rag.embedders._cpu import cpu_has_bf16
from rag.embedders._files import EncoderFiles, find_folder, read_files
from rag.embedders._within import encode_within, frame_of
from rag.errors import ConfigError, InputError, missing_extra
from rag.protocols import Embedder, TokenCounter
from rag.tokens import TokenizerCounter, load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

    from rag.protocols import Vectors

_RUNTIMES = ("auto", "torch", "numpy", "sentence-transformers")


@dataclass(frozen=True, kw_only=True)
class MinilmEmbedder(Embedder):
    """Sentence embeddings (Reimers and Gurevych, arXiv 1908.10084) with all-MiniLM-L6-v2 or another local model.

    `model` is "" (the bundled MiniLM), a folder, or a hub id. A plain BERT with mean pooling runs in this package's
    own forward pass, in torch or NumPy; every other model runs in sentence-transformers. `runtime` "auto" embeds
    chunks with torch where it is installed and questions with NumPy always, so that a question loads no torch and
    has the same vector whatever ran before. `precision` "auto" is bf16 with torch on a CPU with bf16 instructions
    (avx512_bf16 or amx_bf16), else fp32; set it to one value for an index that moves between machines.

    Measured on 46 chunks of 1,000 characters (one core of an AMD EPYC with avx512_bf16 and no AMX, chunks per CPU
    second, runs interleaved): sentence-transformers as it comes 14.0, torch fp32 18.1, torch bf16 47.6, NumPy 15.8.
    Cosine with sentence-transformers: 1.000000 for fp32; mean 0.99995, lowest 0.99992 for bf16.
    """

    model: str = ""
    runtime: Literal["auto", "torch", "numpy", "sentence-transformers"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    batch_tokens: int = 2048
    overlong: Literal["error", "window"] = "error"

    def __post_init__(self) -> None:
        if self.runtime not in _RUNTIMES:
            raise ConfigError(f"minilm: runtime is one of {', '.join(_RUNTIMES)}, not {self.runtime!r}")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ConfigError(f"minilm: precision is auto, fp32 or bf16, not {self.precision!r}")
        if self.precision == "bf16" and self.runtime == "numpy":
            raise ConfigError("minilm: precision bf16 needs the runtime torch or auto; numpy has fp32 only")
        if self.overlong not in ("error", "window"):
            raise ConfigError(f"minilm: overlong is error or window, not {self.overlong!r}")
        if self.batch_tokens < 1:
            raise ConfigError(f"minilm: batch_tokens must be >= 1, not {self.batch_tokens}")

    @property
    def dimension(self) -> int:
        return int(self._files.config["hidden_size"]) if self._is_light else self._runtime.dimension

    @cached_property
    def fingerprint(self) -> str:
        pooling = "mean" if self._files.light else "own"
        return f"minilm:{self._files.digest()}:{pooling}:{self._files.max_tokens}:{self._precision}"

    def agrees_with(self, fingerprint: str) -> bool:
        """Precisions agree: bfloat16 and float32 vectors of one text have a cosine of 0.9999 (measured)."""
        return fingerprint.rpartition(":")[0] == self.fingerprint.rpartition(":")[0]

    @cached_property
    def counter(self) -> TokenCounter:
        tokenizer = self._tokenizer
        prompts = (self._files.text_prompt, self._files.question_prompt)
        spent = tokenizer.num_special_tokens_to_add(False) + max(
            len(tokenizer.encode(prompt, add_special_tokens=False).ids) for prompt in prompts
        )
        # WordPiece over BERT's pre-tokeniser never joins across white space; other tokenisers may
        additive = (
            type(tokenizer.model).__name__ == "WordPiece"
            and type(tokenizer.pre_tokenizer).__name__ == "BertPreTokenizer"
        )
        name = self.model or "all-MiniLM-L6-v2"
        return TokenizerCounter(tokenizer, name=name, limit=self._files.max_tokens - spent, additive=additive)

    def embed(self, texts: Sequence[str]) -> Vectors:
        return self._encode([self._files.text_prompt + text for text in texts], self.overlong, self._runtime)

    @property
    def reads_within(self) -> bool:
        """Only this package's own forward pass gives vectors of single tokens."""
        return self._is_light

    def embed_within(self, pieces: Sequence[tuple[str, int, int]]) -> Vectors:
        if not self.reads_within:
            return super().embed_within(pieces)  # raises
        frame = frame_of(self._tokenizer, self._files.text_prompt, self._files.max_tokens)
        return encode_within(self._runtime, self._tokenizer, frame, pieces, self.batch_tokens)

    def embed_question(self, text: str) -> Vectors:
        asked = self.light
        vector: Vectors = asked._encode([asked._files.question_prompt + text], "window", asked._runtime)[0]
        return vector

    @cached_property
    def light(self) -> MinilmEmbedder:
        """The same model where it starts fastest: NumPy in fp32, for a few short texts beside a question."""
        if not self._is_light or self.runtime != "auto":
            return self
        twin = replace(self, runtime="numpy", precision="fp32")
        vars(twin).update(_files=self._files, _tokenizer=self._tokenizer)  # read once for both
        return twin

    def _encode(self, texts: Sequence[str], overlong: str, runtime: Runtime) -> Vectors:
        import numpy as np

        from rag.vectors import as_unit

        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        windows = [self._windows(*pair, overlong) for pair in zip(texts, encodings, strict=True)]
        flat = encode_all(runtime, [ids for one in windows for ids in one], self.batch_tokens)
        if len(flat) == len(texts):
            return flat
        matrix = np.zeros((len(texts), runtime.dimension), dtype=np.float32)
        row = 0
        for at, one in enumerate(windows):
            for ids in one:  # a window counts by its tokens, so a short last one weighs little
                matrix[at] += len(ids) * flat[row]
                row += 1
        return as_unit(matrix)

    def _windows(self, text: str, encoding: Encoding, overlong: str) -> list[Ids]:
        """The ids of `text` with special tokens, in windows that the model can read."""
        tokenizer, most = self._tokenizer, self._files.max_tokens
        room = most - tokenizer.num_special_tokens_to_add(False)
        if len(encoding.ids) > room:
            if overlong == "error":
                raise InputError(
                    f"embedder minilm: a text of {len(encoding.ids)} tokens is over the limit of {room}; it starts "
                    f"with {text[:60]!r}. Cut it into smaller chunks, or set overlong: window to average its windows"
                )
            encoding.truncate(room)
        parts = [encoding, *encoding.overflowing]
        return [tuple(tokenizer.post_process(part, None, True).ids) for part in parts]

    @cached_property
    def _files(self) -> EncoderFiles:
        return read_files(find_folder(self.model))

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return load_tokenizer(self._files.folder / "tokenizer.json")

    @property
    def _is_light(self) -> bool:
        return self._files.light and self.runtime != "sentence-transformers"

    @cached_property
    def _has_torch(self) -> bool:
        return importlib.util.find_spec("torch") is not None

    @property
    def _precision(self) -> str:
        if self.precision != "auto":
            return self.precision
        with_torch = self._is_light and self._has_torch and self.runtime != "numpy"
        return "bf16" if with_torch and cpu_has_bf16() else "fp32"

    @cached_property
    def _runtime(self) -> Runtime:
        if not self._is_light:
            from rag.embedders._reference import ReferenceEncoder

            return ReferenceEncoder(self._files, bf16=self._precision == "bf16")
        if self.runtime == "numpy" or (self.runtime == "auto" and self._precision == "fp32" and not self._has_torch):
            from rag.embedders._bert_numpy import NumpyBert

            return NumpyBert(self._files)
        if not self._has_torch:
            raise missing_extra("torch", "local", "embedder minilm with runtime torch or precision bf16")
        from rag.embedders._bert_torch import TorchBert

        return TorchBert(self._files, bf16=self._precision == "bf16")
