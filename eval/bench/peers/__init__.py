"""The other frameworks, one file each. They run in child processes, in whatever environment has them installed."""
