"""Coding of one chunk before encryption: raw, all-zero, LZ4 or Zstandard.

Compression comes before encryption, so the length of a ciphertext tells how compressible its chunk was;
docs/security.md discusses that side channel, and the policy "none" turns it off (all-zero chunks included).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
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
    """Encodes chunks by one policy.  One instance per thread.

    level: for the policy "auto", called for each chunk: what to compress with, and zstd's level.  compressible: whether
    the last chunk was one that compression makes smaller, or with "auto" would.
    """

    def __init__(
        self, policy: str, level: Callable[[], tuple[str, int]] = lambda: ("lz4", 0)
    ) -> None:
        if policy not in POLICIES:
            raise UsageError(
                f"unknown compression {policy!r}", hint="one of: " + ", ".join(POLICIES)
            )
        self._policy = policy
        self._level = level
        self._zstd: dict[int, Any] = {}
        self.compressible = False

    def encode(self, data: memoryview) -> tuple[Codec, Coded]:
        """The codec to record and the bytes to encrypt; `data` itself where nothing is gained."""
        self.compressible = False
        if self._policy == "none" or not data:
            return Codec.RAW, data
        if is_zero(data):
            return Codec.ZERO, b""
        policy, level = self._level() if self._policy == "auto" else (self._policy, _ZSTD_LEVEL)
        if self._policy == "auto" and not self._gains(data, policy):
            return Codec.RAW, data
        self.compressible = True
        if policy == "none":
            return Codec.RAW, data
        if policy == "zstd":
            return self._keep_if_smaller(Codec.ZSTD, self._compress_zstd(data, level), data)
        return self._keep_if_smaller(Codec.LZ4, _compress_lz4(data), data)

    def _keep_if_smaller(self, codec: Codec, coded: bytes, data: memoryview) -> tuple[Codec, Coded]:
        if len(coded) <= len(data) * _GAIN:
            return codec, coded
        self.compressible = False
        return Codec.RAW, data

    def _compress_zstd(self, data: memoryview, level: int) -> bytes:
        compressor = self._zstd.get(level)
        if compressor is None:
            import zstandard

            compressor = zstandard.ZstdCompressor(level=level, write_content_size=True)
            self._zstd[level] = compressor
        compressed: bytes = compressor.compress(data)
        return compressed

    def _gains(self, data: memoryview, policy: str) -> bool:
        """Whether a sample of the chunk shrinks.  zstd also gains where LZ4 does not: text in base64, for instance."""
        size = len(data)
        if size <= 4 * _SAMPLE:
            return True
        places = (0, size // 2 - _SAMPLE // 2, size - _SAMPLE)
        sample = memoryview(b"".join(data[at : at + _SAMPLE] for at in places))
        coded = (
            self._compress_zstd(sample, _ZSTD_LEVEL) if policy == "zstd" else _compress_lz4(sample)
        )
        return len(coded) <= len(sample) * _GAIN


def _compress_lz4(data: memoryview) -> bytes:
    import lz4.block

    compressed: bytes = lz4.block.compress(data, store_size=False)
    return compressed


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
