"""PREFIX.mask: which tokens of a pair are trained on. docs/data.md describes the format.

    "CNCLMASK", u64 version = 1, u64 tokens, u64 tokens that are trained on, u64 CRC-32 of the pair, u8[tokens] 0 or 1

all little-endian. The .idx beside it has version 2, so that no program reads the pair and passes over the mask. The
CRC-32 (zlib's) says that the mask is of this pair: of the whole .idx, the length of the .bin as u64, and 64 blocks of
64 KiB spread evenly over the .bin (all of it where it is no longer than that).
"""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

MAGIC = b"CNCLMASK"
VERSION = 1
HEADER_BYTES = 40
MASKED_INDEX_VERSION = 2  # of an .idx that a mask belongs to
_BLOCKS = 64
_BLOCK_BYTES = 64 * 1024


def header(tokens: int, trained: int, checksum: int) -> bytes:
    """What stands in front of the bytes of the tokens."""
    return MAGIC + struct.pack("<QQQQ", VERSION, tokens, trained, checksum)


def pair_checksum(index: bytes, tokens: BinaryIO, token_bytes: int) -> int:
    """The CRC-32 of a pair."""
    checksum = zlib.crc32(struct.pack("<Q", token_bytes), zlib.crc32(index))
    if token_bytes <= _BLOCKS * _BLOCK_BYTES:
        begins, length = [0], token_bytes
    else:
        last, length = token_bytes - _BLOCK_BYTES, _BLOCK_BYTES
        begins = [last // (_BLOCKS - 1) * block for block in range(_BLOCKS - 1)] + [last]
    for begin in begins:
        tokens.seek(begin)
        checksum = zlib.crc32(tokens.read(length), checksum)
    return checksum
