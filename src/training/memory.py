"""Whether a training fits into the memory, estimated before it is compiled."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from src.errors import InputError


class Peak(NamedTuple):
    """Bytes of a float32 process on the CPU with MindSpore 2.8, within 12 % of what was measured."""

    per_weight: float
    workspace: float  # of the convolutions at 299 x 299
    per_image: float  # at 299 x 299
    base: float = 0.6e9

    def bytes(self, weights: int, batch_size: int, image_size: int) -> float:
        """Estimate for a network with so many `weights`."""
        images = self.workspace + self.per_image * batch_size
        return self.base + self.per_weight * weights + images * (image_size / 299) ** 2


# Peaks of training runs on a CPU: 3.8, 4.9 and 6.9 GB for the whole network at 299 x 299 with batches of 2, 8 and
# 16; 2.8 to 3.3 GB at 75 x 75 with 32, the more the more often it is saved. The allocator of scripts/environment.sh makes it
# 0.2 GB less. For each weight there are its gradient, the optimizer's state, and copies in the compiled graph.
TRAINING = Peak(50, 0.9e9, 0.2e9)
# Of a training on cached features, while it computes them: 3.4 GB at 299 x 299 with batches of 64, 1.0 GB at 75 x 75
# with 32.
FEATURES = Peak(6, 1.25e9, 0.02e9)


def free_bytes() -> int:
    """Bytes that this machine, or the container around this process, has left."""
    found = [
        1024 * int(line.split()[1])
        for line in Path('/proc/meminfo').read_text().splitlines()
        if line.startswith('MemAvailable')
    ]
    try:  # control group, version 2
        group = Path('/sys/fs/cgroup')
        found.append(int((group / 'memory.max').read_text()) - int((group / 'memory.current').read_text()))
    except (OSError, ValueError):  # another version, or no limit
        pass
    return min(found)


def check(peak: Peak, weights: int, batch_size: int, image_size: int, ranks: int, free: int | None = None) -> None:
    """InputError, naming a batch that fits, if `ranks` processes with batches of `batch_size` images of `image_size` pixels
    need more than `free` bytes, by default those that are left."""
    free = free_bytes() if free is None else free
    need = ranks * peak.bytes(weights, batch_size, image_size)
    if need <= free:
        return
    fits = int(((free / ranks - peak.bytes(weights, 0, image_size)) / peak.per_image) * (299 / image_size) ** 2)
    remedy = f'--batch_size {fits} fits' if fits > 0 else 'a smaller --image_size or --block_counts is needed'
    raise InputError(
        f'batch_size {batch_size} at image_size {image_size} needs about {need / 1e9:.1f} GB for {ranks} '
        f'rank(s) on this machine, {free / 1e9:.1f} GB are free; {remedy}'
    )
