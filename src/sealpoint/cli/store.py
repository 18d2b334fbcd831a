"""`sealpoint store init`, `add`, `stat` and `gc`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from sealpoint.cli import notice, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.cli.reading import Reading, reads_checkpoint
from sealpoint.cli.sealing import SealOptions, seals_checkpoint
from sealpoint.errors import UsageError

if TYPE_CHECKING:
    from sealpoint.checkpoint import ChunkAdder, MergeResult, Opening, Sealing
    from sealpoint.chunks.collect import Statistics


@click.group()
def command() -> None:
    """Keep many checkpoints of similar processes: pages that they share are stored only once.

    \b
    Example:
      sealpoint store init /srv/checkpoints --tenant-key tenant.key
      sealpoint dump -t PID --store /srv/checkpoints --tenant-key tenant.key \\
        -o /srv/checkpoints/web.sealed -r keys/recipient.pub --sign keys/signer.key
      sealpoint restore /srv/checkpoints/web.sealed -i keys/identity.key --trust keys/signer.pub
    """


_also_option = click.option(
    "--also",
    multiple=True,
    metavar="DIR",
    help="Another directory with sealed files that refer to this store. Repeatable.",
)


@command.command("init")
@click.argument("directory", metavar="DIR")
@options.tenant_key_option
def init(directory: str, tenant_key: str) -> None:
    """Make a chunk store in DIR, and the tenant key if FILE does not exist yet.

    You need the tenant key to dump into the store, but not to restore from it. The key opens only chunks whose pages
    you already have, but it reveals whether a page that you can guess is in the store: keep it secret.

    \b
    Example:
      sealpoint store init /srv/checkpoints --tenant-key tenant.key
    """
    from sealpoint.chunks.directory import CHUNKS, ChunkDirectory
    from sealpoint.format.stored import Tenant
    from sealpoint.keys import tenant as tenant_file

    if os.path.lexists(os.path.join(directory, CHUNKS)):  # before a key is made for it
        raise UsageError(f"{directory} holds a store already")
    made = not os.path.lexists(tenant_key)
    key = tenant_file.make(tenant_key) if made else tenant_file.load(tenant_key)
    tenant = Tenant(key)
    ChunkDirectory.make(directory, tenant.identifier)
    click.echo(f"store {printable(directory)} of the tenant {tenant.identifier.hex()}")
    if made:
        click.echo(f"tenant key {printable(tenant_key)}: keep a copy, and keep it secret")


@command.command("add")
@click.argument("directory", metavar="DIR")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@options.tenant_key_option
@reads_checkpoint("parents", "stores")
@seals_checkpoint()
@options.json_option
def add(
    *,
    directory: str,
    files: tuple[str, ...],
    tenant_key: str,
    reading: Reading,
    seal: SealOptions,
    as_json: bool,
) -> None:
    """Add sealed files to a store: each becomes a file in DIR that refers to chunks of the store.

    The new file is sealed to the recipients that you name and signed with your key. FILE stays as it is; an increment
    and its parents become one full checkpoint.

    \b
    Example:
      sealpoint store add /srv/checkpoints app.sealed --tenant-key tenant.key -i identity.key \\
        --trust signer.pub -r recipient.pub --sign signer.key
    """
    adding = _Adding(directory, tenant_key, reading.opening(), seal.sealing(), seal.force)
    adding.run(files, as_json=as_json)


@command.command("convert")
@click.argument("old", metavar="OLD")
@click.argument("directory", metavar="NEW")
@options.tenant_key_option
@reads_checkpoint("parents")
@seals_checkpoint()
@options.json_option
def convert(
    *,
    old: str,
    directory: str,
    tenant_key: str,
    reading: Reading,
    seal: SealOptions,
    as_json: bool,
) -> None:
    """Convert the store OLD, and the sealed files in it, to a store NEW of the current version.

    This works as `store add` does. OLD stays as it is until you remove it. Files that NEW already has are skipped, so
    you can run it again. In a store of version 1 the tenant key opens all chunks: use a new key for NEW.

    \b
    Example:
      sealpoint store convert /srv/old /srv/new --tenant-key new.key -i identity.key \\
        --trust signer.pub -r recipient.pub --sign signer.key
    """
    opening = reading.opening(stores=(old,))
    from sealpoint.chunks.collect import statistics
    from sealpoint.chunks.directory import CHUNKS, ChunkDirectory
    from sealpoint.format.stored import Tenant
    from sealpoint.keys import tenant as tenant_file

    adding = _Adding(directory, tenant_key, opening, seal.sealing(), seal.force)
    with ChunkDirectory(old) as store:  # held, so that nobody collects meanwhile
        files = [f.path for f in statistics(store).files]
        if not os.path.lexists(os.path.join(directory, CHUNKS)):
            ChunkDirectory.make(directory, Tenant(tenant_file.load(tenant_key)).identifier)
        todo = tuple(
            f
            for f in files
            if seal.force or not os.path.lexists(f"{directory}/{os.path.basename(f)}")
        )
        adding.run(todo, as_json=as_json)


@dataclass(frozen=True)
class _Adding:
    """How sealed files come into a store."""

    directory: str
    tenant_key: str
    opening: Opening
    sealing: Sealing
    force: bool

    def run(self, files: tuple[str, ...], *, as_json: bool) -> None:
        """Make of each file one in the store's directory.  Raises UsageError, and what opening and sealing raise."""
        names = [os.path.basename(file) for file in files]
        if len(set(names)) != len(names):
            raise UsageError("two of the files have the same name")
        added = []
        for file, name in zip(files, names, strict=True):
            target = os.path.join(self.directory, name)
            with open_store(self.directory, self.tenant_key, self.sealing) as store:
                result = self._add(file, target, store)
            warn_damaged(store)
            values = {
                "file": target,
                "checkpoint": result.checkpoint_id.hex(),
                "origin": result.origin_digest.hex(),
                "file_size": result.file_size,
            }
            added.append(values | described(store))
            if not as_json:
                click.echo(
                    f"{printable(target)}: {notice.show_size(result.file_size)} that refer to "
                    f"{notice.show_size(store.size)} of pages, {in_words(store)}"
                )
        if as_json:
            echo_json(added)

    def _add(self, file: str, target: str, store: ChunkAdder) -> MergeResult:
        from sealpoint.checkpoint import merge
        from sealpoint.cli.bar import Bar
        from sealpoint.store.output import OutputFile

        if os.path.exists(target) and os.path.samefile(file, target):
            raise UsageError(
                f"{file} lies in the store's directory itself", hint="move it elsewhere"
            )
        with self.opening.open(file) as checkpoint:
            opened = checkpoint.whole()
            with OutputFile(target, force=self.force) as out, Bar(f"adding {file}") as bar:
                return merge(opened, out, self.sealing, report=bar, store=store)


@contextmanager
def open_store(
    directory: str,
    tenant_key: str,
    prepared: Sealing,
    observe: Callable[[memoryview], None] | None = None,
) -> Iterator[ChunkAdder]:
    """For adding to it what is sealed as `prepared` says; observe: see ChunkAdder."""
    from sealpoint import keys
    from sealpoint.checkpoint import ChunkAdder
    from sealpoint.chunks.directory import ChunkDirectory
    from sealpoint.format.stored import Tenant
    from sealpoint.keys import tenant as tenant_file

    tenant = Tenant(tenant_file.load(tenant_key))
    if warning := keys.permissions_warning(tenant_key):
        notice.warn(warning)
    suite, compression = prepared.cipher, prepared.compression
    with (
        ChunkDirectory(directory) as opened,
        ChunkAdder(opened, tenant, suite=suite, compression=compression, observe=observe) as adder,
    ):
        yield adder


def described(store: ChunkAdder) -> dict[str, int]:
    """What was added, for JSON."""
    return {
        "referred_size": store.size,
        "chunks_added": store.added,
        "chunks_added_size": store.added_size,
        "chunks_damaged": len(store.damaged),
    }


def in_words(store: ChunkAdder) -> str:
    """What was added."""
    return f"{notice.show_count(store.added, 'new chunk')} of {notice.show_size(store.added_size)}"


def warn_damaged(store: ChunkAdder) -> None:
    """Chunks that do not hold what they should are not referred to."""
    if store.damaged:
        one = min(store.damaged).hex()
        notice.warn(
            f"{len(store.damaged)} chunks of {store.directory.path} are damaged or were tampered with, {one} among "
            "them: their pages were sealed into the file itself (sealpoint store gc removes them once no file refers "
            "to them)"
        )


@command.command("stat")
@click.argument("directory", metavar="DIR")
@_also_option
@options.json_option
def stat(*, directory: str, also: tuple[str, ...], as_json: bool) -> None:
    """Show what a store holds and saves. No key is needed.

    \b
    Example:
      sealpoint store stat /srv/checkpoints
    """
    from sealpoint.chunks.collect import statistics
    from sealpoint.chunks.directory import ChunkDirectory

    with ChunkDirectory(directory) as store:
        found = statistics(store, also)
    if as_json:
        echo_json(_values(directory, found))
        return
    size = notice.show_size
    click.echo(f"checkpoints  {len(found.files)}")
    click.echo(f"chunks       {found.chunks}, {size(found.stored)}")
    click.echo(f"in all       {size(found.together)}")
    saved = f", {1 - found.together / found.alone:.0%} saved" if found.alone else ""
    click.echo(f"alone        {size(found.alone)}{saved}")
    if found.unused_chunks:
        click.echo(f"unused       {found.unused_chunks} chunks, {size(found.unused)}")
    if found.missing:
        notice.warn(f"{found.missing} chunks are missing that the files refer to")


def _values(directory: str, found: Statistics) -> dict[str, Any]:
    return {
        "store": directory,
        "checkpoints": [
            {
                "file": f.path,
                "file_size": f.size,
                "chunks": f.chunks,
                "chunks_size": f.referred,
            }
            for f in found.files
        ],
        "chunks": found.chunks,
        "chunks_size": found.stored,
        "size": found.together,
        "size_alone": found.alone,
        "unused_chunks": found.unused_chunks,
        "unused_size": found.unused,
        "missing_chunks": found.missing,
    }


@command.command("gc")
@click.argument("directory", metavar="DIR")
@_also_option
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@options.json_option
def gc(*, directory: str, also: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Remove the chunks of a store to which no sealed file in DIR refers. No key is needed.

    Files elsewhere do not count unless --also names their directory. If a sealed file there cannot be read, nothing is
    removed. It waits for dumps and adds to the store, and they for it.

    \b
    Example:
      sealpoint store gc /srv/checkpoints --dry-run
    """
    from sealpoint.chunks.collect import collect
    from sealpoint.chunks.directory import ChunkDirectory

    with ChunkDirectory(directory, exclusive=True) as store:
        done = collect(store, also, dry_run=dry_run)
    if as_json:
        values = {
            "files": done.files,
            "chunks_kept": done.kept,
            "chunks_removed": done.removed,
            "freed": done.freed,
            "not_looked_at": done.elsewhere,
        }
        echo_json(values)
        return
    would = "would be " if dry_run else ""
    click.echo(
        f"{done.removed} chunks {would}removed, {notice.show_size(done.freed)}; "
        f"{done.kept} are in use by {done.files} sealed files"
    )
    for path in done.elsewhere:
        click.echo(f"not looked at: {printable(path)}")
