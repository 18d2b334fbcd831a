"""Numbers and names of format version 1 (docs/spec.md).  Each limit states the attack or mistake that it stops."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final

VERSION: Final = 1
MAGIC: Final = b"\x89SEALPT\n"  # above 0x7f, and a newline: text-mode transfers damage it visibly
TRAILER_MAGIC: Final = b"SEALEND\n"
PRUNE_MAGIC: Final = b"SEALPRN\n"
STORED_MAGIC: Final = b"\x89SEALCK\n"  # of a chunk in a chunk store
LABEL: Final = b"sealpoint/v1"  # first field of every derivation, so that no other protocol can share a key with us

PREAMBLE_SIZE: Final = 64
TRAILER_SIZE: Final = 64
PRUNE_TAIL_SIZE: Final = 64
SLOT_HEAD_SIZE: Final = 64
SLOT_SIZES: Final = range(8 * 1024, 256 * 1024 + 1, 8 * 1024)
DEFAULT_SLOT_SIZE: Final = 24 * 1024  # two and the index: below 0.01 % of a 1 GiB checkpoint
FRAME_HEAD_SIZE: Final = 8
INDEX_ENTRY_SIZE: Final = 40
REFERENCE_SIZE: Final = 72  # to a stored chunk
TAG_SIZE: Final = 16
KEY_SIZE: Final = 32
HASH_SIZE: Final = 32
ID_SIZE: Final = 16

MAX_STANZAS: Final = 64  # bounds the work that a stranger's header can cause
MAX_STANZA_BODY: Final = 4096
MAX_STATEMENT: Final = 64 * 1024  # origin statement, the DSSE envelope as stored
MAX_PRUNE_STATEMENT: Final = 1024 * 1024  # a bit for each of 2^22 frames, in base64 twice
MAX_PRUNE_RECORDS: Final = (
    16 * 1024 * 1024
)  # of one file: what a reader hashes before it knows whether it counts
MAX_CHAIN: Final = 1024  # files: each takes a descriptor and its index
MAX_SEQUENCE: Final = (1 << 64) - 2  # of a slot: the next rekey can always count on
MAX_TIME: Final = 253_402_300_799  # the end of the year 9999: libraries of dates hold no more
CLOCK_TOLERANCE: Final = 300  # seconds by which the clocks of honest machines may differ
MAX_CHUNK: Final = 16 * 1024 * 1024  # the largest buffer that a reader must be ready to allocate
MIN_CHUNK: Final = 4096
MAX_FRAMES: Final = 1 << 22  # 8 TiB at 2 MiB chunks; bounds the index to 160 MiB before it is read
MAX_REFERENCES: Final = 1 << 21  # to stored chunks: 144 MiB of index
MAX_STORED: Final = 1024 * 1024  # plaintext of one stored chunk: buffers of whoever reads it
STORED_VERSION: Final = 2  # of a chunk that is written
STORED_VERSIONS: Final = (1, 2)  # that are read: 1 had its key wrapped under the tenant key alone
STORED_HEAD_SIZE: Final = 144
MIN_STORED_FILE: Final = STORED_HEAD_SIZE + TAG_SIZE
MAX_STORED_FILE: Final = STORED_HEAD_SIZE + MAX_STORED + TAG_SIZE
MAX_OBJECTS: Final = 1 << 18  # per manifest; bounds the manifests
MAX_STREAMS: Final = 2 * MAX_OBJECTS + 2  # bounds the tables that a reader builds from the index
MAX_MANIFEST: Final = 64 * 1024 * 1024  # as encoded; bounds what is decrypted into memory at once
MAX_JSON_VALUES: Final = 24 * MAX_OBJECTS  # 3 bytes of JSON can cost 60 of memory: counted first
MAX_CHUNKS_PER_KEY: Final = 1 << 32
MAX_OBJECT_NUMBER: Final = (1 << 32) - 1
MAX_U64: Final = (1 << 64) - 1

CHUNK_SIZE: Final = 2 * 1024 * 1024  # memory pages and other large objects
PAGE_SIZE: Final = 4096  # of memory, in deltas and stored chunks
PACK_CHUNK_SIZE: Final = 64 * 1024  # packs of small objects and manifests
PAD_GRANULE: Final = 4 * 1024  # packs, manifests, metadata objects: padded, so sizes tell little

METADATA_MANIFEST: Final = 1  # object numbers of the two manifests; no other object may use them
MEMORY_MANIFEST: Final = 2
FIRST_OBJECT: Final = 3


class Suite(IntEnum):
    """AEAD of one sealed file.  There is no negotiation: the reader takes what the preamble says or refuses."""

    AES_256_GCM = 1
    CHACHA20_POLY1305 = 2

    @property
    def label(self) -> str:
        """The name used in statements and on the command line."""
        return {1: "aes-256-gcm", 2: "chacha20-poly1305"}[self.value]


class Role(StrEnum):
    """Which of the two roots protects an object."""

    METADATA = "metadata"
    MEMORY = "memory"

    @property
    def code(self) -> int:
        """The byte that enters key derivations."""
        return 1 if self is Role.METADATA else 2


class Roots(IntEnum):
    """Which roots a stanza wraps: the metadata root alone, or both (metadata first)."""

    METADATA = 1
    BOTH = 3


class StanzaKind(IntEnum):
    """How a stanza wraps the roots (docs/spec.md, Stanzas)."""

    HYBRID = 1  # HPKE, ML-KEM-768 + X25519
    X25519 = 2  # HPKE, DHKEM(X25519)
    P256 = 3  # HPKE, DHKEM(P-256)
    P384 = 4  # HPKE, DHKEM(P-384)
    RSA_OAEP = 5  # RSA-OAEP with SHA-256
    SCRYPT = 6  # passphrase, the only stanza of its slot


class Codec(IntEnum):
    """How the plaintext of one chunk was transformed before encryption."""

    RAW = 0
    ZERO = 1  # all bytes zero; the ciphertext is the tag alone
    LZ4 = 2  # one LZ4 block, no frame
    ZSTD = 3  # one Zstandard frame with its content size


ORIGIN_TYPE: Final = "application/vnd.sealpoint.origin.v1+json"
PRUNE_TYPE: Final = "application/vnd.sealpoint.prune.v1+json"
ENVELOPE_TYPE: Final = "application/vnd.sealpoint.envelope.v1+json"
