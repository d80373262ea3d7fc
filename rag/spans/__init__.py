"""Parts of chunks: sentences of hits, how well they answer a question, and choosing them under a budget.

Selectors choose them from hits, compressors from what was selected: the same units, scores and counts.
"""
