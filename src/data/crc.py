"""CRC-32C in the masked form that TFRecords and TensorFlow's checkpoints store."""

from __future__ import annotations

import google_crc32c  # has a C implementation on x86-64 and aarch64, and warns where it has to compute in Python
import numpy as np


def masked_crc(data: bytes | memoryview) -> int:
    """The checksum of `data`, rotated and shifted as TensorFlow does it: below 2^32."""
    # Of all other buffers google_crc32c takes only NumPy's without a copy.
    crc = google_crc32c.value(data if isinstance(data, bytes) else np.frombuffer(data, np.uint8))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
