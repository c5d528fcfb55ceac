"""CRC-32C and the masked form of it that guards TFRecords, in NumPy."""

import struct

import numpy as np


def _advance(tables, state):
    """CRC register(s) `state` after the number of zero bytes that `tables` stands for."""
    return tables[0][state & 255] ^ tables[1][state >> 8 & 255] ^ tables[2][state >> 16 & 255] ^ tables[3][state >> 24]


def _advance_tables():
    """Tables for 4, 8, 16 ... zero bytes, each [4, 256] uint32: doubling a step is applying it twice."""
    step = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        step = step >> 1 ^ (step & 1) * np.uint32(0x82F63B78)  # Castagnoli polynomial, bits reversed
    single = np.arange(256, dtype=np.uint32) << np.arange(0, 32, 8, dtype=np.uint32)[:, None]
    tables = [step[single & 255] ^ single >> 8]
    while len(tables) < 32:
        tables.append(_advance(tables[-1], tables[-1]))
    return tables[2:]


_ZEROS = _advance_tables()
_ZEROS8 = [row.tolist() for row in _ZEROS[1]]  # lists: scalar lookups in them are faster than in arrays
_START = struct.pack('<I', 0x641F6454)  # four bytes that take the register from 0 to the initial 0xFFFFFFFF


def crc32c(data):
    """CRC-32C of `data` (bytes) as an int.

    Long data is shortened by a multiple of the polynomial with four terms, y^5685 + y^1362 + y^426 + 1 for
    y = x^32 (found by trial), with plain XORs. Then neighbouring words are folded pairwise.
    """
    words = np.frombuffer(bytes(-len(data) % 4) + _START + data, '<u4')  # leading zeros change nothing
    if len(words) > 5685:
        words, start = words.copy(), 0
        while (count := min(4323, len(words) - 5685 - start)) > 0:
            for term in (1362, 426, 0):
                to = start + 5685 - term
                words[to : to + count] ^= words[start : start + count]
            start += count
        words = words[start:]
    for tables in _ZEROS:
        if len(words) == 1:
            break
        if len(words) % 2:
            words = np.concatenate([np.zeros(1, np.uint32), words])
        first, second = words.reshape(-1, 2).T.copy()
        part = first.view(np.uint8).reshape(-1, 4).T.astype(np.intp)  # `take` is twice as fast as [...]
        for table, index in zip(tables, part):
            second ^= table.take(index)
        words = second
    return int(_advance(_ZEROS[0], words)[0]) ^ 0xFFFFFFFF


def mask(crc):
    """The rotated form in which TFRecords store a checksum."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def length_crc(length):
    """Masked checksum of a record length (below 2^32) as the uint64 that precedes the record."""
    return mask(_advance(_ZEROS8, length ^ 0xFFFFFFFF) ^ 0xFFFFFFFF)
