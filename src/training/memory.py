"""Whether a training fits into the memory, estimated before it is compiled."""

from __future__ import annotations

from pathlib import Path

from src.errors import InputError

# Peak of a float32 step on the CPU with MindSpore 2.8 (`python -m benchmarks.memory`), within 12 % of what was measured:
# 4.4 and 6.9 GB for the whole network at 299 x 299 with batches of 2 and 16, 3.4 to 3.6 GB at 75 x 75 with 32.
BASE = 0.6e9
PER_WEIGHT = 50  # weight, gradient, optimizer state, and copies in the compiled graph
WORKSPACE = 1.25e9  # of the convolutions at 299 x 299
PER_IMAGE = 0.18e9  # at 299 x 299


def training_bytes(weights: int, batch_size: int, image_size: int) -> float:
    """Estimate of the bytes that a training step takes, for a network with so many `weights`."""
    return BASE + PER_WEIGHT * weights + (WORKSPACE + PER_IMAGE * batch_size) * (image_size / 299) ** 2


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


def check(weights: int, batch_size: int, image_size: int, ranks: int, free: int | None = None) -> None:
    """InputError, naming a batch that fits, if `ranks` processes with batches of `batch_size` images of `image_size` pixels
    need more than `free` bytes, by default those that are left."""
    free = free_bytes() if free is None else free
    need = ranks * training_bytes(weights, batch_size, image_size)
    if need <= free:
        return
    fits = int(((free / ranks - training_bytes(weights, 0, image_size)) / PER_IMAGE) * (299 / image_size) ** 2)
    remedy = f'--batch_size {fits} fits' if fits > 0 else 'a smaller --image_size or --block_counts is needed'
    raise InputError(
        f'batch_size {batch_size} at image_size {image_size} needs about {need / 1e9:.1f} GB for {ranks} '
        f'rank(s) on this machine, {free / 1e9:.1f} GB are free; {remedy}'
    )
