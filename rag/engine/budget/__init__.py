"""What of a prompt stays in the cache when its bytes are limited. One file each, named like the policy."""

from rag.engine.budget._base import KvBudget, prefill_within

__all__ = ["KvBudget", "prefill_within"]
