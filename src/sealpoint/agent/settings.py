"""How the agent works: what it watches, where it puts what it has sealed, and what it keeps there."""

from __future__ import annotations

from typing import Final, NamedTuple

WATCHED: Final = ("/var/lib/kubelet/checkpoints", "/var/lib/kubelet/pod-checkpoints")
STATE: Final = "/var/lib/sealpoint/agent"
LISTEN: Final = "127.0.0.1:9467"
MAX_SIZE: Final = 1 << 40
MIN_FREE: Final = 1 << 30
COMMIT_TIMEOUT: Final = 600.0


class Retention(NamedTuple):
    """What stays in the store of each container: the newest `last`, of `age` seconds at most, `size` bytes in all.

    0: no limit.  The newest one always stays.
    """

    last: int = 0
    age: float = 0.0
    size: int = 0

    @property
    def limits(self) -> bool:
        """Whether anything is ever removed."""
        return bool(self.last or self.age or self.size)


class Settings(NamedTuple):
    """watch: directories; store: a directory, s3://bucket/prefix or oci://registry/name; state: of the queue.

    listen: (address, port) of metrics and health, None for none.  spool: a directory for the ciphertext on its way into
    a store, None for memory.  max_size: bytes of an archive, larger ones are refused; min_free: bytes that stay free
    where the agent writes.  commit_timeout: seconds that a store may need for its acknowledgement.  every: seconds from
    one look into the directories to the next, when nothing is told of them.
    """

    watch: tuple[str, ...]
    store: str
    state: str = STATE
    listen: tuple[str, int] | None = None
    spool: str | None = None
    unconditional: bool = False
    max_size: int = MAX_SIZE
    min_free: int = MIN_FREE
    commit_timeout: float = COMMIT_TIMEOUT
    retention: Retention = Retention()
    every: float = 10.0
