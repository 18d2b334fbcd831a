"""`sealpoint secrets`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sealpoint.cli import notice, numbers, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.cli.reading import ANY_KIND, Reading, reads_checkpoint
from sealpoint.names import text

if TYPE_CHECKING:
    from sealpoint.inspect.secrets import Exposure, Secret


@click.command()
@click.argument("file", metavar="FILE|DIR|-")
@click.option(
    "--pid", "pids", type=numbers.PID, multiple=True, help="Only this process. Repeatable."
)
@click.option(
    "--reveal",
    is_flag=True,
    help="Print the secrets themselves. RISK: terminals and logs keep them.",
)
@click.option(
    "--fail-on",
    multiple=True,
    metavar="KIND",
    help='End with exit code 5 if one of this kind is found; "any", or "grave" for all but guesses. Repeatable.',
)
@reads_checkpoint(*ANY_KIND)
@options.json_option
def command(
    *,
    file: str,
    pids: tuple[int, ...],
    reveal: bool,
    fail_on: tuple[str, ...],
    as_json: bool,
    reading: Reading,
) -> None:
    """Report which secrets a checkpoint exposes: keys, tokens and passwords in memory, environment and other objects.

    Secrets are masked. Memory is decrypted chunk by chunk and searched in RAM. What is found looks like a secret;
    it is not tried out. There may be secrets that are not found.

    \b
    Example:
      sealpoint secrets app.sealed -i keys/identity.key --trust keys/signer.pub
      sealpoint secrets app.sealed --json --fail-on grave -i keys/identity.key --trust keys/signer.pub
    """
    from sealpoint.cli.bar import Bar
    from sealpoint.errors import PolicyError, UsageError
    from sealpoint.inspect.detectors import KINDS
    from sealpoint.inspect.secrets import Survey
    from sealpoint.inspect.source import images, split_place

    if unknown := set(fail_on) - {"any", "grave", *KINDS}:
        raise UsageError(
            f"there is no kind {min(unknown)!r}",
            hint="kinds are: any, grave, " + ", ".join(sorted(KINDS)),
        )
    path, directory = split_place(file)
    with reading.source(path) as opened, Bar(f"scanning {file}") as bar:
        survey = Survey(reveal=reveal, progress=bar.counter())
        survey.images(images(opened, directory), list(pids) or None)
        if not pids:
            survey.objects(opened)
    exposure = survey.exposure
    if as_json:
        echo_json(_values(file, exposure))
    else:
        _print(file, exposure, reveal=reveal)
    wanted = {"any": bool(exposure.counts), "grave": any(f.grave for f in exposure.findings)}
    if failing := [k for k in fail_on if wanted.get(k) or exposure.counts.get(k)]:
        raise PolicyError(f"{file} exposes secrets that --fail-on names: {', '.join(failing)}")


def _values(file: str, exposure: Exposure) -> dict[str, Any]:
    return {
        "file": file,
        "scanned": exposure.scanned,
        "counts": dict(sorted(exposure.counts.items())),
        "unlisted": exposure.unlisted,
        "findings": [
            {
                "kind": f.kind,
                "grave": f.grave,
                "name": f.name,
                "size": f.size,
                "shown": f.shown,
                "occurrences": f.occurrences,
                "places": [
                    {"pid": p.pid, "address": f"{p.address:#x}", "mapping": p.within}
                    if p.pid
                    else {"object": p.within, "offset": p.address}
                    for p in f.places
                ],
                **({"value": text(f.value)} if f.value else {}),
            }
            for f in exposure.findings
        ],
    }


def _print(file: str, exposure: Exposure, *, reveal: bool) -> None:
    size = notice.show_size(exposure.scanned)
    if not exposure.counts:
        click.echo(f"{printable(file)}: nothing that looks like a secret in {size}")
        return
    click.echo(f"{'KIND':<15} {'TIMES':>5} {'BYTES':>5}  {'WHAT':<36} WHERE")
    for finding in sorted(exposure.findings, key=lambda f: (not f.grave, f.kind)):
        place = finding.places[0]
        where = (
            f"{place.pid} {place.address:#x}" if place.pid else f"{place.within} +{place.address}"
        )
        if place.pid and place.within:
            where += f" {place.within}"
        click.echo(
            f"{finding.kind:<15} {finding.occurrences:>5} {finding.size:>5}  "
            f"{printable(_what(finding)):<36} {printable(where)}"
        )
        if reveal:
            click.echo(f"    {printable(finding.value)}")
    if exposure.unlisted:
        click.echo(f"and {exposure.unlisted} more that are not listed")
    total = sum(exposure.counts.values())
    click.echo(f"\n{printable(file)}: {total} that look like secrets in {size}")


def _what(finding: Secret) -> str:
    masked = finding.shown + "…" if finding.shown else ""
    name = finding.name if len(finding.name) <= 36 else finding.name[:35] + "…"
    return " ".join(filter(None, (name, masked))) or "…"
