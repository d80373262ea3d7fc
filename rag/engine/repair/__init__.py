"""Repair policies: which reused tokens are computed again. One file each, named like the policy.

A policy sees the layout, the model and the assembled cache, so it may look at the question; it must leave the cache as
it was. Policies that know their list before the question use the layout alone.
"""

from rag.engine.repair._base import RepairPolicy

__all__ = ["RepairPolicy"]
