"""LlamaIndex's SentenceSplitter without overlap.

`counter`: `fast` is a function that tokenises without offsets, `encode` the plain call of the tokenizer, and
`transformers` the `encode` of a fast tokenizer of transformers, which is how its documentation sets one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

PACKAGES = ("llama-index-core", "transformers", "tokenizers")
MODULES = ("llama_index.core.node_parser", "tokenizers")


def load(tokens: Any, options: dict[str, Any]) -> Callable[[str], Any]:
    from llama_index.core import Document
    from llama_index.core.node_parser import SentenceSplitter
    from llama_index.core.schema import MetadataMode

    encode = tokens.ids
    if options["counter"] == "encode":
        encode = lambda text: tokens.tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
    if options["counter"] == "transformers":
        import transformers

        wrapper: Any = transformers.PreTrainedTokenizerFast
        whole = wrapper(tokenizer_object=tokens.tokenizer)
        encode = lambda text: whole.encode(text, add_special_tokens=False)  # noqa: E731
    splitter = SentenceSplitter(chunk_size=tokens.max_tokens, chunk_overlap=0, include_metadata=False, tokenizer=encode)

    def split(text: str) -> Any:
        nodes: Any = splitter.get_nodes_from_documents([Document(text=text)])
        return [(node.get_content(MetadataMode.NONE), node.start_char_idx, node.end_char_idx) for node in nodes]

    return split
