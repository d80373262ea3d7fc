"""What the processor can do."""

from __future__ import annotations

from pathlib import Path

__all__ = ["cpu_has_bf16"]

_INFO = Path("/proc/cpuinfo")


def cpu_has_bf16() -> bool:
    """True on x86 CPUs that multiply bfloat16 in hardware. Elsewhere bf16 is emulated and slower than fp32."""
    try:
        text = _INFO.read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    flags: list[str] = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return "avx512_bf16" in flags or "amx_bf16" in flags
