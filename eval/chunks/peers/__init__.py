"""Other chunkers, one file per package: run by `_drive.py` in whatever environment has them."""
