"""`rag eval run`: configs asked every question of data sets; results that repeat byte for byte."""
