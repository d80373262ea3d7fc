"""`rag bench NAME --out FILE`: speed and quality against the peers, interleaved in one run."""

from __future__ import annotations
