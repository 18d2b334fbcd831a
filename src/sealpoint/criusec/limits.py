"""What the CRIUsec format does not do, in sentences for people.  docs/criusec.md says it at length."""

from __future__ import annotations

from typing import Final

UNDETECTED: Final = (
    "who made it: nothing is signed, and the public key is enough to make a dump that opens",
    "records and images that were exchanged, repeated or left out, within the dump",
    "pages exchanged between processes at the same address, and changes that cancel out in pairs",
    "a changed IV of the pages: memory then decrypts to noise",
)
VISIBLE: Final = (
    "which pages are equal, within and across processes",
    "names and kinds of images with their pids, numbers and sizes of records",
    "network addresses, routes and rules, nftables, statistics, and unlinked files of 12 KiB and more",
)
