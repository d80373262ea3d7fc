"""Repair policies: what is computed again of what is reused. One file each, named like the policy.

Most name reused tokens (`TokenRepair`), from the layout alone or by a look at the question. Others place the blocks in
another way, read them in another way, or choose anew in every layer (`RepairPolicy`).
"""

from rag.engine.repair._base import RepairPolicy, TokenRepair

__all__ = ["RepairPolicy", "TokenRepair"]
