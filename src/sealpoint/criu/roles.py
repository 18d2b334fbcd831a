"""Which role protects which image: the normative table of docs/spec.md.

Metadata is what an analyst may see without seeing memory; everything else, and whatever is unknown, is memory.
"""

from __future__ import annotations

import re
from typing import Final

from sealpoint.format.constants import Role

SUMMARY_NAME: Final = "sealpoint-summary.json"

_METADATA: Final = re.compile(
    r"(?:(?:checkpoint|pre-checkpoint)/)?"
    r"(?:inventory\.img|pstree\.img|ids-\d+\.img|files\.img|fdinfo-\d+\.img|mountpoints-\d+\.img|netdev-\d+\.img"
    r"|cgroup\.img|utsns-\d+\.img|timens-\d+\.img|stats-(?:dump|restore)|"
    + re.escape(SUMMARY_NAME)
    + ")",
    re.ASCII,
)


def role_of(name: str) -> Role:
    """The role of an object by its name: an image at the root of a checkpoint or of an engine's archive."""
    return Role.METADATA if _METADATA.fullmatch(name) else Role.MEMORY


def is_pages(name: str) -> bool:
    """Whether an object is memory pages, which a restore verifies while it serves them."""
    return re.fullmatch(r"pages-\d+\.img", name, re.ASCII) is not None
