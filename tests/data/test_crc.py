"""The masked checksum against its plain definition."""

import google_crc32c
import numpy as np

from src.data.crc import masked_crc


def bitwise_crc(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def mask(crc):
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_masked_crc():
    known = {
        b'': 0,
        b'a': 0xC1D04330,
        b'123456789': 0xE3069283,
        bytes(32): 0x8A9136AA,
        b'\xff' * 32: 0x62A8AB43,
        bytes(range(32)): 0x46DD794E,
    }
    assert {data: masked_crc(data) for data in known} == {data: mask(crc) for data, crc in known.items()}
    assert masked_crc(memoryview(b'0123456789')[1:]) == mask(0xE3069283)
    assert google_crc32c.implementation == 'c'  # in Python it takes a thousand times as long
    data = np.random.default_rng(0).bytes(60000)
    sizes = [*range(40), 255, 256, 257, 5000, 60000]
    assert all(masked_crc(data[:n]) == mask(bitwise_crc(data[:n])) for n in sizes)
