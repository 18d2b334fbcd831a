"""`sealpoint verify`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from sealpoint.cli import encrypted, notice, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.cli.reading import Reading, reads_checkpoint
from sealpoint.errors import NoTrustedSignerGivenError

if TYPE_CHECKING:
    from sealpoint.checkpoint import OpenedCheckpoint, SealedPart
    from sealpoint.cli.bar import Bar
    from sealpoint.format.opened import OpenFile
    from sealpoint.format.statement import ParentRef


@click.command()
@click.argument("file", metavar="FILE|-")
@reads_checkpoint("stores", "expect", "max_size")
@options.json_option
def command(*, file: str, reading: Reading, as_json: bool) -> None:
    """Check structure, header, both signed statements and the hash of every frame. You need no key for this.

    If FILE refers to chunks of a store, they are compared with their hashes, if the store is beside FILE or named. With
    -i, every chunk and both manifests are authenticated as well. FILE may be the directory of a CRIUsec dump; this
    needs -i, and the command lists what that format cannot detect. If you name no signer to trust, the command shows
    the signers and ends with exit code 8: the file is intact, but you have not said whom to trust.

    \b
    Example:
      sealpoint verify app.sealed --trust keys/signer.pub
    """
    if encrypted.is_dump(file):
        reading.refuse_expectation(file)
        encrypted.verify(file, reading, as_json=as_json)
        return
    from sealpoint.cli.bar import Bar

    policy = reading.policy(names_only=True)
    how = {"alone": True, "lenient": True, "unproven": True}
    with reading.open(file, policy, **how) as checkpoint, Bar(f"verifying {file}") as bar:
        found = _check(checkpoint, bar, with_keys=bool(reading.identities))
    if as_json:
        echo_json(found.values(file))
    else:
        _print(file, found)
    _warn(found)
    signers = found.checkpoint.signers
    if not any(s.trusted for s in signers) and not reading.allow_unsigned:
        raise NoTrustedSignerGivenError(
            "intact, but no trusted signer was given"
            if signers
            else "intact, but not signed: anyone who can write the file could have made it",
            hint="name the signers to trust with --trust" if signers else None,
        )


@dataclass(frozen=True)
class _Found:
    """How far an intact file was checked.

    opened: with the keys, None without.  references: to chunks of a store.  pages: beside the file, None if none are.
    parts: the sealed files inside it, and whether the keys open all of them, too.
    """

    checkpoint: OpenedCheckpoint
    opened: OpenFile | None
    references: int
    chunks_checked: bool
    pages: ParentRef | None
    pages_checked: bool
    parts: tuple[SealedPart, ...]
    parts_opened: bool

    @property
    def depth(self) -> str:
        """In words."""
        depth = "every frame matches the signed index"
        if self.chunks_checked:
            chunks = notice.show_count(self.references, "stored chunk")
            verb = "does" if self.references == 1 else "do"
            depth += f", and so {verb} {chunks} that it refers to"
        if self.opened is not None:
            what = "every chunk" if self.opened.has_memory else "every metadata chunk"
            depth += f", {what} is authentic"
        if self.pages_checked:
            depth += ", those of the pages beside it too"
        if self.parts:
            inside = notice.show_count(len(self.parts), "sealed file")
            what = "every chunk" if self.parts_opened else "every frame"
            depth += f", and {what} of {inside} inside it"
        return depth

    def values(self, file: str) -> dict[str, Any]:
        """For JSON."""
        authentic = self.checkpoint.authentic
        return {
            "file": file,
            "checkpoint": authentic.origin.checkpoint_id.hex(),
            "frames": authentic.origin.frames,
            "bytes": authentic.file.size,
            "signers": [
                {"name": s.name, "key": s.key_id, "trusted": s.trusted}
                for s in self.checkpoint.signers
            ],
            "chunks_authenticated": self.opened is not None,
            "stored_chunks": self.references,
            "stored_chunks_checked": self.chunks_checked,
            "pages_elsewhere": self.pages is not None,
            "pages_checked": self.pages_checked,
            "parts": [
                {
                    "name": part.name,
                    "checkpoint": part.authentic.origin.checkpoint_id.hex(),
                    "signers": [{"name": s.name, "trusted": s.trusted} for s in part.signers],
                }
                for part in self.parts
            ],
            "interrupted_rekey": authentic.interrupted,
            "freed": 0 if authentic.prune is None else authentic.prune.freed,
        }


def _check(checkpoint: OpenedCheckpoint, bar: Bar, *, with_keys: bool) -> _Found:
    """Everything within reach.  Raises FileError, IdentityError."""
    from sealpoint.checkpoint import WithChunks, check_references, parts, separate_pages

    authentic = checkpoint.authentic
    total = authentic.origin.frames_size
    opened = checkpoint.file() if with_keys else None
    if opened is None or not opened.has_memory or authentic.prune is not None:
        authentic.check_frames(bar.counter(total))
    references = authentic.index.references
    finder = checkpoint.top.chunk_finder()
    chunks_checked = bool(references and finder.stores)
    if chunks_checked and not isinstance(opened, WithChunks):
        check_references(authentic, finder, bar.counter(total))
    if isinstance(opened, WithChunks) and not chunks_checked:
        opened = opened.own
    if opened is not None:
        opened.verify_all(bar.counter(total))
    pages = separate_pages.reference(opened) if opened is not None else None
    pages_checked = isinstance(opened, separate_pages.WithPages)
    inside = tuple(checkpoint.parts()) if with_keys else ()
    keys = checkpoint.identities() if with_keys else ()
    unlocked = [parts.verify(part, keys, bar.counter(total)) for part in inside]
    return _Found(
        checkpoint, opened, references, chunks_checked, pages, pages_checked, inside, all(unlocked)
    )


def _print(file: str, found: _Found) -> None:
    click.echo(f"{printable(file)}: intact: {found.depth}")
    for signer in found.checkpoint.signers:
        trusted = " (trusted)" if signer.trusted else ""
        click.echo(f"signed by {printable(signer.name)}{trusted}, key {signer.key_id}")
    if not found.checkpoint.signers:
        click.echo("not signed")
    for part in found.parts:
        who = ", ".join(
            printable(s.name) + (" (trusted)" if s.trusted else "") for s in part.signers
        )
        click.echo(f"{printable(part.name)} inside: {f'signed by {who}' if who else 'not signed'}")


def _warn(found: _Found) -> None:
    """Of what was not checked, and of what limits the use of the file."""
    from sealpoint.checkpoint import separate_pages

    authentic = found.checkpoint.authentic
    if found.references and not found.chunks_checked:
        notice.warn(
            f"what it refers to in a store was not checked ({notice.show_count(found.references, 'chunk')}): "
            "no store is beside it (--store DIR)"
        )
    if found.pages is not None and not found.pages_checked:
        notice.warn(f"its memory was not checked: {separate_pages.missing(found.pages).message}")
    if authentic.prune is not None:
        notice.warn(
            f"{notice.show_size(authentic.prune.freed)} of it were freed for checkpoint "
            f"{authentic.prune.child.checkpoint_id.hex()}: only that one, or one that continues it, restores"
        )
    if authentic.interrupted:
        notice.warn("a rekey was interrupted; finish it with: sealpoint rekey FILE --repair")
