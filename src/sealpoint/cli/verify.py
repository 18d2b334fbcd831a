"""`sealpoint verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sealpoint import config as configuration
from sealpoint.cli import encrypted, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.errors import NoTrustedSignerGivenError

if TYPE_CHECKING:
    from sealpoint.keys import Identity


@click.command()
@click.argument("file", metavar="FILE|-")
@options.trust_options
@options.identity_options
@options.store_option
@options.expect_options
@options.max_size_option
@options.json_option
def command(
    *,
    file: str,
    trust: tuple[str, ...],
    allow_unsigned: bool,
    allow_expired: bool,
    identities: tuple[str, ...],
    passphrase_file: str | None,
    stores: tuple[str, ...],
    workloads: tuple[str, ...],
    expect: tuple[str, ...],
    max_size: int | None,
    as_json: bool,
) -> None:
    """Check structure, header, both signed statements and the hash of every frame; no decryption key is needed.

    Chunks of a store that it refers to are compared with their hashes, too, if the store is beside it or named.
    With -i every chunk and both manifests are authenticated, too. FILE may be the directory of a CRIUsec dump: then -i
    is needed, and what that format cannot detect is said. Without a signer to trust, the signers are named and
    the command ends with exit code 8: intact, but you have not said whom to trust.

    \b
    Example:
      sealpoint verify app.sealed --trust keys/signer.pub
    """
    if encrypted.is_dump(file):
        options.refuse_expectation(file, workloads, expect)
        access: dict[str, Any] = {
            "trust": trust,
            "allow_expired": allow_expired,
            "identities": identities,
            "passphrase_file": passphrase_file,
        }
        encrypted.verify(file, as_json=as_json, allow_unsigned=allow_unsigned, access=access)
        return
    options.check_standard_input(file, passphrase_file)
    config = configuration.load()
    from sealpoint.checkpoint import pages_file
    from sealpoint.checkpoint.expectation import Expectation
    from sealpoint.checkpoint.opening import Opening
    from sealpoint.checkpoint.progress import Progress
    from sealpoint.checkpoint.with_chunks import WithChunks, check_references
    from sealpoint.cli.bar import Bar

    policy = options.trust_policy(
        trust, config, allow_unsigned=allow_unsigned, allow_expired=allow_expired, names_only=True
    )

    def keys() -> list[Identity]:
        options.protect()
        return options.load_identities(identities, options.Passphrases(passphrase_file), config)

    opening = Opening(
        policy,
        keys,
        stores=stores,
        limit=max_size,
        expected=Expectation.of(workloads, expect),
        alone=True,
        lenient=True,
        unproven=True,
    )
    with (
        opening.open(file) as checkpoint,
        Bar(f"verifying {file}") as bar,
    ):
        authentic = checkpoint.authentic
        done = 0

        def progress(size: int) -> None:
            nonlocal done
            done += size
            bar(Progress(done, authentic.origin.frames_size))

        opened = checkpoint.file() if identities else None
        if opened is None or not opened.has_memory or authentic.prune is not None:
            authentic.check_frames(progress)
        done = 0
        references = authentic.index.references
        finder = checkpoint.top.chunk_finder()
        chunks_checked = bool(references and finder.stores)
        if chunks_checked and not isinstance(opened, WithChunks):
            check_references(authentic, finder, progress)
            done = 0
        if isinstance(opened, WithChunks) and not chunks_checked:
            opened = opened.own
        if opened is not None:
            opened.verify_all(progress)
        pages = pages_file.reference(opened) if opened is not None else None
        pages_checked = isinstance(opened, pages_file.WithPages)
    signers = [{"name": s.name, "key": s.key_id, "trusted": s.trusted} for s in checkpoint.signers]
    depth = "every frame matches the signed index"
    if chunks_checked:
        chunks = options.show_count(references, "stored chunk")
        depth += f", and so {'does' if references == 1 else 'do'} {chunks} that it refers to"
    if opened is not None:
        what = "every chunk" if opened.has_memory else "every metadata chunk"
        depth += f", {what} is authentic"
    if pages_checked:
        depth += ", those of the pages beside it too"
    if as_json:
        values = {
            "file": file,
            "checkpoint": authentic.origin.checkpoint_id.hex(),
            "frames": authentic.origin.frames,
            "bytes": authentic.file.size,
            "signers": signers,
            "chunks_authenticated": opened is not None,
            "stored_chunks": references,
            "stored_chunks_checked": chunks_checked,
            "pages_elsewhere": pages is not None,
            "pages_checked": pages_checked,
            "interrupted_rekey": authentic.interrupted,
            "freed": 0 if authentic.prune is None else authentic.prune.freed,
        }
        echo_json(values)
    else:
        click.echo(f"{printable(file)}: intact: {depth}")
        for signer in signers:
            trusted = " (trusted)" if signer["trusted"] else ""
            click.echo(f"signed by {printable(str(signer['name']))}{trusted}, key {signer['key']}")
        if not signers:
            click.echo("signed by nobody")
    if references and not chunks_checked:
        options.warn(
            f"what it refers to in a store was not checked ({options.show_count(references, 'chunk')}): "
            "no store is beside it (--store DIR)"
        )
    if pages is not None and not pages_checked:
        options.warn(f"its memory was not checked: {pages_file.missing(pages).message}")
    if authentic.prune is not None:
        options.warn(
            f"{options.show_size(authentic.prune.freed)} of it were freed for checkpoint "
            f"{authentic.prune.child.checkpoint_id.hex()}: only that one, or one that continues it, restores"
        )
    if authentic.interrupted:
        options.warn("a rekey was interrupted; finish it with: sealpoint rekey FILE --repair")
    if not any(s.trusted for s in checkpoint.signers) and not allow_unsigned:
        raise NoTrustedSignerGivenError(
            "intact, but no trusted signer was given"
            if signers
            else "intact, but not signed: anyone who can write the file could have made it",
            hint="say whom to believe with --trust" if signers else None,
        )
