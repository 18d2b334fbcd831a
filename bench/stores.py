"""`python -m bench stores`: dumps into buckets and registries over loopback, and copies of sealed files from there.

The servers are those of the tests: moto's and rclone's S3 servers and docker-registry (`scripts/get-services`).
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import findings
from bench.findings import MIB, Figure, Findings
from bench.measure import BenchError, Cost, run
from bench.plot import Bar, Chart
from bench.rounds import running
from bench.tools import ROOT, Tools, say
from bench.workloads import KINDS

SERVICES = ROOT / ".services"
KEY_ID, SECRET = "benchmark", "of-loopback"  # of servers that end with the run
BUCKET = "bucket"
CASES = ("dump", "copy there", "copy back", "plain PUT")
_DUMP, _THERE, _BACK, _PLAIN = CASES
_CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {files}}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}", secret: any}}
"""


@dataclass(frozen=True)
class Place:
    """A server at work.  environment: for clients; readable: it answers ranges."""

    name: str
    port: int
    url: str
    environment: dict[str, str]
    readable: bool = True

    def put_plainly(self, file: Path) -> float:
        """Seconds that one plain request with all of a file lasts: the server's own pace. Raises BenchError."""
        path, headers = f"/{BUCKET}/plain", {"Content-Type": "application/octet-stream"}
        headers["x-amz-acl"] = "public-read-write"  # so that the next one may replace it, unsigned
        if self.url.startswith("oci:"):
            with open(file, "rb") as data:
                digest = hashlib.file_digest(data, "sha256").hexdigest()
            begun = self._request("POST", "/v2/plain/blobs/uploads/", None, {})
            path = begun.partition(f":{self.port}")[2] + f"&digest=sha256:{digest}"
        started = time.perf_counter()
        self._request("PUT", path, file, headers)
        return time.perf_counter() - started

    def _request(self, method: str, path: str, file: Path | None, headers: dict[str, str]) -> str:
        """Where it leads to."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, blocksize=256 * 1024)
        with contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            body = stack.enter_context(file.open("rb")) if file else b""
            size = file.stat().st_size if file else 0
            connection.request(method, path, body, {**headers, "Content-Length": str(size)})
            answer = connection.getresponse()
            answer.read()
        if not 200 <= answer.status < 300:
            raise BenchError(f"{self.name} answers {answer.status} to a plain {method}")
        return answer.headers.get("Location", "")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def _server(command: Sequence[str], directory: Path, port: int) -> Iterator[None]:
    """A process that listens at `port`. Raises BenchError."""
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=directory,
            env={"PATH": os.defpath, "HOME": str(directory), "RCLONE_CONFIG": "/dev/null"},
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 5).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    said = (directory / "log").read_text(errors="replace")[-500:]
                    raise BenchError(f"{command[0]} does not start: {said}") from None
                time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _bucket(name: str, directory: Path) -> Iterator[Place]:
    port = _free_port()
    programs, address = SERVICES / "buckets" / "bin", f"127.0.0.1:{port}"
    files = directory / "files"
    (files / BUCKET).mkdir(parents=True)
    if name == "moto":
        command = [str(programs / "python"), str(programs / "moto_server")]
        command += ["-H", "127.0.0.1", "-p", str(port)]
    else:
        command = [str(programs / "rclone"), "serve", "s3", "--addr", address, str(files)]
    environment = {
        "AWS_ENDPOINT_URL": f"http://{address}",
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with _server(command, directory, port):
        place = Place(name, port, f"s3://{BUCKET}/app", environment, readable=name == "moto")
        if name == "moto":
            place._request("PUT", f"/{BUCKET}", None, {})
        yield place


@contextlib.contextmanager
def _registry(name: str, directory: Path) -> Iterator[Place]:
    port = _free_port()
    config = directory / "config.yml"
    config.write_text(_CONFIG.format(files=directory / "files", port=port))
    program = SERVICES / "registry" / "usr" / "bin" / "docker-registry"
    with _server([str(program), "serve", str(config)], directory, port):
        yield Place(name, port, f"oci://127.0.0.1:{port}/app:one", {})


SERVERS = {"moto": _bucket, "rclone": _bucket, "docker-registry": _registry}


def why_not(name: str) -> str:
    """Why a server cannot be measured; empty if it can."""
    part = "registry" if name == "docker-registry" else "buckets"
    return "" if (SERVICES / part).exists() else "run scripts/get-services"


class Measured:
    """Costs of one server, by case."""

    def __init__(self, place: Place, size: int) -> None:
        self.place, self.size = place, size
        self.costs: dict[str, list[Cost]] = {case: [] for case in CASES}

    def median(self, case: str, quantity: str = "wall") -> float | None:
        costs = self.costs[case]
        return statistics.median(getattr(c, quantity) for c in costs) if costs else None

    def add(self, case: str, cost: Cost, *, counts: bool) -> None:
        if counts:
            self.costs[case].append(cost)

    def as_json(self) -> dict[str, Any]:
        return {
            case: {
                quantity: findings.spread([getattr(c, quantity) for c in costs])
                for quantity in ("wall", "cpu", "peak")
            }
            for case, costs in self.costs.items()
            if costs
        }


def measure(tools: Tools, place: Place, pid: int, scratch: Path, rounds: int) -> Measured:
    """One server. The finished file that is copied is a dump of the same process. Raises BenchError."""
    file, back = scratch / "app.sealed", scratch / "back.sealed"
    seal = ["-r", tools.recipient, "--sign", tools.signer, "--compress", "none"]
    seal += ["--criu", str(tools.criu), "-R", "-t", str(pid)]
    trust = ["--trust", tools.trusted, "--force"]
    program = str(tools.sealpoint)
    environment = tools.environment | place.environment
    tools.call([program, "dump", "-o", str(file), *seal])
    found = Measured(place, file.stat().st_size)
    commands = {
        _DUMP: [program, "dump", "-o", place.url, "--force", "--unconditional", *seal],
        _THERE: [program, "copy", str(file), place.url, "--unconditional", *trust],
        _BACK: [program, "copy", place.url, str(back), *trust],
    }
    if not place.readable:
        del commands[_BACK]
    for number in range(rounds + 1):
        for case, command in commands.items():
            cost = run(command, environment=environment, scratch=scratch)
            found.add(case, cost, counts=number > 0)
        found.add(_PLAIN, Cost(place.put_plainly(file), 0.0, 0, ""), counts=number > 0)
        if place.readable and back.read_bytes()[:64] != file.read_bytes()[:64]:
            raise BenchError(f"{place.name} gives back another file")
        say(f"{place.name}, round {number} of {rounds}")
    file.unlink()
    back.unlink(missing_ok=True)
    return found


def _figures(measured: Sequence[Measured]) -> list[Figure]:
    made = []
    for each in measured:
        dump, copy = each.median(_DUMP), each.median(_THERE)
        peak = each.median(_DUMP, "peak")
        assert dump is not None
        assert copy is not None
        assert peak is not None
        name = each.place.name
        what = f"time to dump into {name}, to that of copying the finished file there"
        made.append(Figure(what, dump / copy, most=1.1))
        what = f"most memory that a dump into {name} took besides the spool, MiB"
        made.append(Figure(what, peak / MIB, decimals=0, most=200))
    return made


def _rows(measured: Sequence[Measured]) -> list[list[str]]:
    rows = []
    for each in measured:
        for case, costs in each.costs.items():
            if not costs:
                continue
            wall = each.median(case) or 1.0
            cpu, peak = each.median(case, "cpu"), each.median(case, "peak")
            rows.append(
                [
                    each.place.name,
                    case,
                    f"{wall:.2f}",
                    f"{each.size / wall / 1e6:.0f}",
                    f"{cpu * 1024 * MIB / each.size:.2f}" if cpu else "",
                    f"{peak / MIB:.0f}" if peak else "",
                ]
            )
    return rows


def _charts(measured: Sequence[Measured]) -> list[Chart]:
    what = "wall seconds (median, range)"
    made = []
    for each in measured:
        bars = [
            Bar(case, "other" if case == _PLAIN else "sealpoint", [c.wall for c in costs], "")
            for case, costs in each.costs.items()
            if costs
        ]
        made.append(Chart(f"{each.place.name}, over loopback", what, bars, each.median(_THERE)))
    return made


NOTES = """\
Medians; a first round is discarded. Client and server share the machine, over loopback, without TLS.
`dump`: `sealpoint dump -R -o URL`, until the store has acknowledged everything. `copy there`: `sealpoint copy` of a \
finished sealed file of the same size, checked on the way. `copy back`: from the store to a file in memory.
`plain PUT`: one request with the same bytes and no check, the pace of the server.
CPU: user and system of the client alone, in seconds for a GiB. Memory: resident, without the spool, which is a memfd.
rclone's server ignores ranges, so nothing is read from it.
"""


def main(arguments: Sequence[str]) -> int:
    parser = findings.parser("stores", __doc__, size=1024, rounds=3)
    parser.add_argument("--server", action="append", choices=tuple(SERVERS), help="only this one")
    parser.add_argument("--kind", default="random", choices=tuple(KINDS))
    options = findings.parse(parser, arguments)
    measured: list[Measured] = []
    skipped: dict[str, str] = {}
    with findings.instruments(4) as (tools, directory):
        with running(options.kind, options.size * MIB, directory / "workload") as workload:
            for name in options.server or SERVERS:
                if reason := why_not(name):
                    skipped[name] = reason
                    continue
                here = directory / name
                here.mkdir()
                with SERVERS[name](name, here) as place:
                    measured.append(measure(tools, place, workload.pid, here, options.rounds))
        if not measured:
            raise BenchError("no server is here: run scripts/get-services")
        found = Findings(
            "stores",
            "Buckets and registries",
            _figures(measured),
            (["server", "what", "wall s", "MB/s", "CPU s/GiB", "peak MiB"], _rows(measured)),
            _charts(measured),
            NOTES,
            {
                "workload": options.kind,
                "servers": {m.place.name: {"bytes": m.size, **m.as_json()} for m in measured},
            },
            skipped,
        )
        return found.publish(options, tools)
