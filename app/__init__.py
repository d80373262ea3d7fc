"""The demo app. It holds no logic of its own: everything it shows comes from `rag`."""
