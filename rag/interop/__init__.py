"""Chunkwise inside of other frameworks: retrievers and splitters for LangChain, LlamaIndex and Haystack, TREC and BEIR.

Each module imports its own framework and nothing of the others, so that importing one of them costs that one only:
`rag.interop.langchain`, `rag.interop.llama_index`, `rag.interop.haystack`, `rag.interop.chonkie`, `rag.interop.trec`.
Ids, offsets and scores are those of Chunkwise everywhere.
"""
