"""Which checkpoint is expected: storage can put another file of the same signer in the place of the one that was meant.

What is compared is signed: workload and checkpoint id by the origin statement, of which the origin digest is the hash.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

from sealpoint.errors import PolicyError, UsageError
from sealpoint.format.constants import ID_SIZE
from sealpoint.format.reader import AuthenticFile

_DIGEST_SIZE: Final = 32
_REFERENCE: Final = re.compile(rf"[0-9a-f]{{{2 * ID_SIZE}}}|[0-9a-f]{{{2 * _DIGEST_SIZE}}}")


class Expectation(NamedTuple):
    """Of each that is not empty, the checkpoint must be one.

    workloads: names; references: checkpoint ids and origin digests, in lower-case hex.
    """

    workloads: tuple[str, ...] = ()
    references: tuple[str, ...] = ()

    @classmethod
    def of(cls, workloads: Sequence[str], references: Sequence[str]) -> Self:
        """From what a user names.  Raises UsageError: no id and no digest."""
        found = tuple(r.strip().lower() for r in references)
        for reference in found:
            if not _REFERENCE.fullmatch(reference):
                raise UsageError(
                    f"{reference!r} is neither a checkpoint id nor an origin digest",
                    hint="an id has 32 hexadecimal digits, a digest 64; sealpoint info and dump --json show them",
                )
        if "" in workloads:
            raise UsageError("the expected workload needs a name")
        return cls(tuple(workloads), found)

    def check(self, authentic: AuthenticFile) -> None:
        """Raises PolicyError if it is another checkpoint."""
        origin, reference = authentic.origin, authentic.reference
        if self.workloads and origin.workload not in self.workloads:
            is_of = f"of workload {origin.workload!r}" if origin.workload else "of no workload"
            raise PolicyError(
                f"another checkpoint was expected: this one is {is_of}, not of {_listed(self.workloads)}",
                hint="someone may have swapped the files; sealpoint info shows what a file is",
            )
        own = {reference.checkpoint_id.hex(), reference.origin_digest.hex()}
        if self.references and own.isdisjoint(self.references):
            raise PolicyError(
                f"another checkpoint was expected: this one is {reference.checkpoint_id.hex()} (origin "
                f"{reference.origin_digest.hex()}), not {' or '.join(self.references)}",
                hint="someone may have swapped the files; sealpoint info shows what a file is",
            )


ANY: Final = Expectation()


def _listed(names: Sequence[str]) -> str:
    return " or ".join(repr(name) for name in names)
