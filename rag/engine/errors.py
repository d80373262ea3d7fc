"""What the engine raises on purpose. Callers above it turn these into errors of their own."""

from __future__ import annotations

__all__ = ["EngineError", "InterruptedPrefillError"]


class EngineError(Exception):
    """A model, a cache or a block cannot do what was asked; the message says what can."""


class InterruptedPrefillError(EngineError):
    """`keep_going` said no. The cache stays valid: `prefill` with it goes on, a sparse pass with it starts again."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__(f"stopped after {done} of {total} tokens")
        self.done = done
        self.total = total
