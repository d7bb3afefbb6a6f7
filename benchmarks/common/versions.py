"""Versions of what results depend on, and the hardware, for records."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@cache
def versions() -> dict[str, str]:
    """Versions of what results depend on."""
    found = {"python": platform.python_version()}
    for package in ("torch", "transformers", "nnsight", "reroute-bench"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


@cache
def hardware(device: str) -> str:
    """Name of the card or processor behind a torch device, such as "cuda:0" or "cpu"."""
    if device.startswith("cuda"):
        import torch  # Here, for whoever has a model on a card has imported it.

        return str(torch.cuda.get_device_name(device))
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
