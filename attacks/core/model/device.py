"""What a device can be asked: to finish its work, and how much memory it took."""

from __future__ import annotations

import resource
import sys
from abc import ABC, abstractmethod

import torch


class OnDevice(ABC):
    """Something that computes on one device."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where inputs go."""

    def synchronise(self) -> None:
        """Wait until the device has done all work it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def reset_peak_memory(self) -> None:
        """Start a new measurement of `peak_memory`, where the device can."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory(self) -> int:
        """Bytes: the device's peak since the last reset, or the process's peak on a CPU."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
