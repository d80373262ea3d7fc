"""`rag eval select`: how much of the evidence a selector keeps within a token budget."""
