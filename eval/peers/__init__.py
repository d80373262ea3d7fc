"""`rag eval peers`: the retrieval of other frameworks, on the same questions, with the same embedder and reader."""
