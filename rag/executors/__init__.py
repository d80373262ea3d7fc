"""Where the per-file work of an ingestion runs: one file, one executor."""
