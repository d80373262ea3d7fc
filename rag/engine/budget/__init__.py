"""What of a prompt stays in the cache when its bytes are limited. One file each, named like the policy."""

from rag.engine.budget._base import KvBudget, observed_prefill, prefill_within, shrink

__all__ = ["KvBudget", "observed_prefill", "prefill_within", "shrink"]
