"""The parser room: one file per format, chosen by suffix (see `_choose.py`)."""
