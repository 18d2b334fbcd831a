"""`sealpoint doctor`."""

from __future__ import annotations

from dataclasses import asdict

import click

from sealpoint.cli import notice, options
from sealpoint.cli.printable import echo_json, printable
from sealpoint.errors import SystemEnvironmentError


@click.command()
@click.option(
    "--thaw",
    "target",
    metavar="PID|CGROUP",
    help="Check nothing; let a process run again that a killed CRIU or engine left frozen.",
)
@options.json_option
def command(*, target: str | None, as_json: bool) -> int:
    """Check what works on this machine, what leaks, and what is missing.

    Tries the real things: dumps and restores a process, mounts, seals and opens in memory. Changes nothing. Exit code 0
    if nothing fails, else 6.

    \b
    Example:
      sealpoint doctor --json
    """
    if target is not None:
        _thaw(target, as_json=as_json)
        return 0
    notice.protect()
    from sealpoint.machine.survey import survey

    findings = []
    for finding in survey():
        findings.append(finding)
        if not as_json:
            click.echo(f"{finding.level:<4}  {finding.topic}: {printable(finding.text)}")
            if finding.hint:
                click.echo(f"      {'':{len(finding.topic)}}  hint: {printable(finding.hint)}")
    failed = sum(f.level == "fail" for f in findings)
    if as_json:
        values = {"ok": not failed, "findings": [asdict(f) for f in findings]}
        echo_json(values)
    else:
        warned = sum(f.level == "warn" for f in findings)
        click.echo(f"{failed} failed, {warned} to look at, {len(findings)} checked")
    return SystemEnvironmentError.exit_code if failed else 0


def _thaw(target: str, *, as_json: bool) -> None:
    from sealpoint.machine.thaw import thaw

    done = thaw(target)
    if as_json:
        echo_json({"done": done})
        return
    for line in done or ["nothing was frozen or stopped"]:
        click.echo(printable(line))
