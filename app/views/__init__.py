"""One file for each view; a view is `show(desk)` and draws what `rag` gives."""
