"""How good are chunkers? Retrieval at matched sizes, conformance to the laws, and what it costs; peers included."""
