"""`rag eval compress`: what is left of a context when it is made shorter."""
