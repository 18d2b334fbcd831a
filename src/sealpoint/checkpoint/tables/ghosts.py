"""Files that a process held open without a name, which a restore makes again for a moment.

CRIU writes each beside its old place, as NAME.cr.ID.ghost, opens it and removes it.  A CRIU that is killed cannot:
their contents would stay there in the clear, and the next restore would fail on them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from sealpoint.criu import schema
from sealpoint.format.opened import OpenFile

_REMAPS = "remap-fpath.img"
_FILES = "files.img"
_GHOST = 1  # RemapType


class Ghosts:
    """To be made before CRIU starts: what is there already is not CRIU's.

    Out of scope: files in mount namespaces of the tree's own, whose paths mean something else here.
    """

    def __init__(self, checkpoint: OpenFile) -> None:
        """Raises FileError."""
        self._paths = [path for path in _paths(checkpoint) if not os.path.lexists(path)]

    def remove(self) -> None:
        """After CRIU has ended: remove what it left."""
        for path in self._paths:
            try:
                os.unlink(path)
            except OSError:
                continue  # the usual case: CRIU removed it


def _paths(checkpoint: OpenFile) -> Iterator[bytes]:
    if _REMAPS not in checkpoint.entries or _FILES not in checkpoint.entries:
        return
    data = checkpoint.read_bytes(checkpoint.entry(_REMAPS))
    remaps = schema.records(data, "remap_file_path_entry", _REMAPS)
    ghosts = {remap.orig_id: remap.remap_id for remap in remaps if remap.remap_type == _GHOST}
    if not ghosts:
        return
    data = checkpoint.read_bytes(checkpoint.entry(_FILES))
    for file in schema.records(data, "file_entry", _FILES):
        if file.id in ghosts and file.reg.name.startswith(b"/"):
            yield b"%s.cr.%x.ghost" % (file.reg.name, ghosts[file.id])
