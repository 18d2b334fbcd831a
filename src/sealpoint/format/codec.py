"""Coding of one chunk before encryption: raw, all-zero, LZ4 or Zstandard.

Compression comes before encryption, so the length of a ciphertext tells how compressible its chunk was;
docs/security.md discusses that side channel, and the policy "none" turns it off (all-zero chunks included).
"""

from __future__ import annotations

import functools
from typing import Any, Final

from sealpoint.errors import FileError, UsageError
from sealpoint.format.constants import Codec

POLICIES: Final = ("auto", "none", "lz4", "zstd")
_SAMPLE: Final = 4096  # bytes; three samples decide whether a chunk is worth compressing at all
_GAIN: Final = 7 / 8  # a chunk is stored compressed only if it shrinks to this share or less
_ZSTD_LEVEL: Final = 1

Coded = bytes | memoryview


@functools.lru_cache(maxsize=2)  # at most two chunks of memory, whatever sizes a file asks for
def _zeros(size: int) -> bytearray:
    return bytearray(size)


def is_zero(data: memoryview) -> bool:
    """Whether every byte is zero.

    A bytearray compares with any buffer by memcmp, which stops at the first difference; two memoryviews would be
    compared item by item.
    """
    return len(data) > 0 and not data[0] and not data[-1] and _zeros(len(data)) == data


class Coder:
    """Encodes chunks by one policy.  One instance per thread."""

    def __init__(self, policy: str) -> None:
        if policy not in POLICIES:
            raise UsageError(
                f"unknown compression {policy!r}", hint="one of: " + ", ".join(POLICIES)
            )
        self._policy = policy
        self._zstd: Any = None

    def encode(self, data: memoryview) -> tuple[Codec, Coded]:
        """The codec to record and the bytes to encrypt; `data` itself where nothing is gained."""
        if self._policy == "none" or not data:
            return Codec.RAW, data
        if is_zero(data):
            return Codec.ZERO, b""
        if self._policy == "zstd":
            return self._keep_if_smaller(Codec.ZSTD, self._compress_zstd(data), data)
        if self._policy == "auto" and not _worth_it(data):
            return Codec.RAW, data
        return self._keep_if_smaller(Codec.LZ4, _compress_lz4(data), data)

    @staticmethod
    def _keep_if_smaller(codec: Codec, coded: bytes, data: memoryview) -> tuple[Codec, Coded]:
        if len(coded) <= len(data) * _GAIN:
            return codec, coded
        return Codec.RAW, data

    def _compress_zstd(self, data: memoryview) -> bytes:
        if self._zstd is None:
            import zstandard

            self._zstd = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_content_size=True)
        compressed: bytes = self._zstd.compress(data)
        return compressed


def _compress_lz4(data: memoryview) -> bytes:
    import lz4.block

    compressed: bytes = lz4.block.compress(data, store_size=False)
    return compressed


def _worth_it(data: memoryview) -> bool:
    size = len(data)
    if size <= 4 * _SAMPLE:
        return True
    sample = b"".join(
        data[at : at + _SAMPLE] for at in (0, size // 2 - _SAMPLE // 2, size - _SAMPLE)
    )
    return len(_compress_lz4(memoryview(sample))) <= len(sample) * _GAIN


def decode_into(out: memoryview, codec: Codec, coded: memoryview) -> None:
    """Fill `out`, whose length is the chunk's authenticated plaintext length.  Raises FileError.

    `coded` is authentic but its maker may be hostile: the output never exceeds `out`.
    """
    if codec is Codec.RAW:
        plain: Any = coded
    elif codec is Codec.ZERO:
        plain = _zeros(len(out)) if not coded else b""
    elif codec is Codec.LZ4:
        plain = _decompress_lz4(coded, len(out))
    else:
        plain = _decompress_zstd(coded, len(out))
    if len(plain) != len(out):
        raise FileError("a compressed chunk does not have the length that it claims")
    out[:] = plain


def _decompress_lz4(coded: memoryview, size: int) -> bytes:
    import lz4.block

    try:
        plain: bytes = lz4.block.decompress(coded, uncompressed_size=size)
    except (lz4.block.LZ4BlockError, ValueError):
        raise FileError("a compressed chunk cannot be decompressed") from None
    return plain


def _decompress_zstd(coded: memoryview, size: int) -> bytes:
    import zstandard

    try:
        # The library allocates what the frame claims: check the claim first.
        if zstandard.frame_content_size(coded) != size:
            raise FileError("a compressed chunk does not have the length that it claims")
        plain: bytes = zstandard.ZstdDecompressor().decompress(
            coded, max_output_size=size, allow_extra_data=False
        )
    except zstandard.ZstdError:
        raise FileError("a compressed chunk cannot be decompressed") from None
    return plain
