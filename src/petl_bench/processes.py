"""What can be known of the process and its machine before anything heavy is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def is_main_process() -> bool:
    """Whether this process prints and writes: the only one, or the first that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0


def gpu_may_be_there() -> bool:
    """False where the system has no GPU driver, which is found out without importing torch."""
    if sys.platform != "linux":
        return True
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg"))
