"""`sealpoint info`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from sealpoint.cli import encrypted, notice, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.cli.reading import Reading, reads_checkpoint

if TYPE_CHECKING:
    from sealpoint.checkpoint import OpenedCheckpoint
    from sealpoint.format.opened import OpenFile


@click.command()
@click.argument("file", metavar="FILE|-")
@reads_checkpoint("max_size")
@options.json_option
def command(*, file: str, reading: Reading, as_json: bool) -> None:
    """Show what a sealed file says about itself: the public header without a key, processes and objects with one.

    Signatures are checked, frames are not: use verify for that. Signers are judged by --trust, and with a key by the
    configuration as well; --allow-unsigned opens a stranger's file all the same. FILE may also be the directory of a
    CRIUsec dump.

    \b
    Example:
      sealpoint info app.sealed
      sealpoint info app.sealed -i keys/identity.key --json
    """
    if encrypted.is_dump(file):
        encrypted.info(file, as_json=as_json)
        return
    # What a stranger's file says of itself may be shown; the private key opens it only if its signers are believed.
    asks = bool(reading.trust or (reading.identities and reading.names_trust))
    policy = reading.policy(anyone=not asks)
    with reading.open(file, policy, alone=True, unproven=True) as checkpoint:
        values = _public(checkpoint)
        if reading.identities:
            values |= _private(checkpoint.own())
    if as_json:
        echo_json(values)
    else:
        _print(file, values)


def _public(checkpoint: OpenedCheckpoint) -> dict[str, Any]:
    from sealpoint.checkpoint import describe_stanza

    authentic = checkpoint.authentic
    origin = authentic.origin
    parent = origin.parent
    return {
        "checkpoint": origin.checkpoint_id.hex(),
        "kind": origin.kind,
        "suite": origin.suite.label,
        "captured": origin.captured,
        "tool": origin.tool,
        "workload": origin.workload,
        "parent": None
        if parent is None
        else {"checkpoint": parent.checkpoint_id.hex(), "origin": parent.origin_digest.hex()},
        "chain": {"root": origin.chain_root.hex(), "sequence": origin.chain_sequence},
        "pruned": None
        if authentic.prune is None
        else {
            "child": {
                "checkpoint": authentic.prune.child.checkpoint_id.hex(),
                "origin": authentic.prune.child.origin_digest.hex(),
            },
            "frames": sum(1 for _ in authentic.prune.positions()),
            "freed": authentic.prune.freed,
        },
        "signers": [
            {"name": s.name, "key": s.key_id, "trusted": s.trusted} for s in checkpoint.signers
        ],
        "header_sequence": authentic.slot.sequence,
        "interrupted_rekey": authentic.interrupted,
        "recipients": [
            {
                "name": describe_stanza(s),
                "fingerprint": s.fingerprint.hex(),
                "opens": "memory" if s.roots == 3 else "metadata",
            }
            for s in authentic.slot.stanzas
        ],
        "file_size": authentic.file.size,
        "stored_chunks": {
            "chunks": authentic.index.references,
            "size": sum(
                authentic.index.reference(n).length for n in range(authentic.index.references)
            ),
        },
        "frames": origin.frames,
    }


def _private(opened: OpenFile) -> dict[str, Any]:
    from sealpoint.checkpoint import summary, whole
    from sealpoint.criu.roles import SUMMARY_NAME
    from sealpoint.format.constants import Role

    entry = opened.entries.get(SUMMARY_NAME)
    overview = summary.decode(opened.read_bytes(entry)) if entry is not None else {}
    metadata = opened.manifests[Role.METADATA]
    return {
        "layout": metadata.properties.get("layout", "dump"),
        "kinds": whole.recorded(metadata.properties),
        "processes": overview.get("tasks", []),
        "container": overview.get("container", {}),
        "objects": [
            {"name": e.name, "role": e.role.value, "size": e.size}
            for e in sorted(opened.entries.values(), key=lambda e: e.name)
        ],
        "memory_objects": len(metadata.memory),
        "memory_size": sum(metadata.memory.values()),
    }


def _print(file: str, values: dict[str, Any]) -> None:
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(min(values["captured"], 1 << 40)))
    rows = [
        ("file", f"{file}, {notice.show_size(values['file_size'])} in {values['frames']} frames"),
        ("checkpoint", values["checkpoint"]),
        ("kind", f"{values['kind']}, {values['suite']}"),
        ("captured", f"{when} by {values['tool']}"),
    ]
    if values["workload"]:
        rows.append(("workload", values["workload"]))
    if values["parent"]:
        rows.append(("parent", values["parent"]["checkpoint"]))
        rows.append(
            ("chain", f"number {values['chain']['sequence']} after {values['chain']['root']}")
        )
    if values["pruned"]:
        freed = notice.show_size(values["pruned"]["freed"])
        rows.append(
            ("freed", f"{freed}; restores only through {values['pruned']['child']['checkpoint']}")
        )
    if values["stored_chunks"]["chunks"]:
        chunks = values["stored_chunks"]
        size = notice.show_size(chunks["size"])
        rows.append(("refers to", f"{chunks['chunks']} chunks in a store, {size}"))
    rows += [
        ("signed by", signer["name"] + (" (trusted)" if signer["trusted"] else ""))
        for signer in values["signers"] or [{"name": "nobody", "trusted": False}]
    ]
    rows += [("sealed to", recipient["name"]) for recipient in values["recipients"]]
    if values["interrupted_rekey"]:
        rows.append(
            ("header", "a rekey was interrupted; finish it with: sealpoint rekey FILE --repair")
        )
    for prefix, kind in values.get("kinds", {}).items():
        rows.append(("images", f"{prefix}: {kind}" if prefix else kind))
    for name, value in rows:
        click.echo(f"{name:<11} {printable(value)}")
    if "objects" in values:
        _print_contents(values)


def _print_contents(values: dict[str, Any]) -> None:
    if values["processes"]:
        click.echo(f"\n{'PID':>8} {'PARENT':>8} {'MEMORY':>12}  COMMAND")
        for task in values["processes"]:
            memory = notice.show_size(int(task["memory"]))
            click.echo(
                f"{task['pid']:>8} {task['parent']:>8} {memory:>12}  {printable(task['command'])}"
            )
    click.echo(f"\n{'SIZE':>12}  {'ROLE':<9} OBJECT")
    for item in values["objects"]:
        size = notice.show_size(item["size"])
        click.echo(f"{size:>12}  {item['role']:<9} {printable(item['name'])}")
    hidden = values["memory_objects"] - sum(o["role"] == "memory" for o in values["objects"])
    if hidden:
        size = notice.show_size(values["memory_size"])
        click.echo(f"{size:>12}  {'memory':<9} ({hidden} objects that this identity cannot open)")
