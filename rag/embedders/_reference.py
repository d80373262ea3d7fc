"""The reference runtime: any encoder that sentence-transformers can load, run on token ids."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rag.embedders._batches import Ids, Runtime
from rag.embedders._files import EncoderFiles
from rag.errors import missing_extra

if TYPE_CHECKING:
    from rag.protocols import Vectors

__all__ = ["ReferenceEncoder"]


class ReferenceEncoder(Runtime):
    """sentence-transformers behind the interface of the light runtimes. Code from the model's folder never runs."""

    most_tokens = 1 << 20

    def __init__(self, files: EncoderFiles, *, bf16: bool) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise missing_extra("sentence-transformers", "local", "embedder minilm with this model") from error
        logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
        self._model = SentenceTransformer(
            str(files.folder),
            device="cpu",
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True, "dtype": "bfloat16" if bf16 else "float32"},
        )
        self._pad = int(files.config.get("pad_token_id") or 0)
        self.dimension = int(self._model.get_embedding_dimension() or 0)

    def encode(self, batch: Sequence[Ids]) -> Vectors:
        import torch

        length = max(len(one) for one in batch)
        ids = torch.full((len(batch), length), self._pad)
        mask = torch.zeros((len(batch), length), dtype=torch.long)
        for row, one in enumerate(batch):
            ids[row, : len(one)] = torch.tensor(one)
            mask[row, : len(one)] = 1
        with torch.inference_mode():
            features = self._model({"input_ids": ids, "attention_mask": mask})
        vectors: Vectors = features["sentence_embedding"].float().numpy()
        return vectors
