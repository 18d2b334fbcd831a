"""The bundle runs where nothing is installed, and on this system."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tests import tools
from tests.bundle.conftest import TOP, unpack

pytestmark = [pytest.mark.bundle, pytest.mark.criu]
Inside = Callable[[str], str]
PATH = "export PATH=/opt/bundle/bin:/bin; "
INSTALL = "/opt/bundle/install >/dev/null 2>&1; export PATH=/usr/local/bin:/bin; "


def test_a_process_with_shared_memory_and_a_thread_comes_back_in_an_empty_root(
    inside: Inside,
) -> None:
    said = inside(PATH + "exec python3 -I /root/inside.py command")
    assert "intact: every frame" in said
    assert said.endswith("counts on: True\n")


def test_the_drop_in_serves_rpc_in_an_empty_root(inside: Inside) -> None:
    said = inside(
        INSTALL
        + "sealpoint keygen /etc/k >/dev/null; sealpoint keygen /etc/k --signer >/dev/null; "
        "sealpoint install-criu -r /etc/k/recipient.pub --sign /etc/k/signer.key --trust /etc/k/signer.pub"
        " -i /etc/k/identity.key >&2; "
        "/opt/sealpoint/current/bin/python3 -I /root/inside.py rpc /usr/local/sbin/criu;"
        " status=$?; sealpoint uninstall-criu >&2; /opt/bundle/install --uninstall >&2; exit $status"
    )
    assert said.endswith("counts on: True\n")


def test_what_criu_calls_is_there(inside: Inside) -> None:
    tools = "ip nft iptables-save iptables-restore ip6tables-save ip6tables-restore first/tar first/gzip"
    script = "; ".join(
        f"/opt/bundle/tools/{tool} --version >/dev/null || exit 1" for tool in tools.split()
    )
    inside(script.replace("ip --version", "ip -V"))


def test_the_crit_of_the_bundle_starts(inside: Inside) -> None:
    assert "decode" in inside(PATH + "crit --help")


def test_it_installs_and_is_gone_after_uninstalling(inside: Inside) -> None:
    said = inside(
        INSTALL + "sealpoint --version; /opt/bundle/install >/dev/null 2>&1; sealpoint --version; "
        "ls /opt/sealpoint | cat; /opt/bundle/install --uninstall 2>/dev/null; ls /opt /usr/local/bin"
    )
    lines = said.splitlines()
    assert lines[0] == lines[1]
    assert "current" in lines
    assert "sealpoint" not in lines[lines.index("current") + 1 :]


def test_an_installation_of_something_else_is_left_alone(inside: Inside) -> None:
    said = inside(
        "mkdir /tmp/other; echo mine > /tmp/other/file; "
        "/opt/bundle/install /tmp/other /tmp/bin 2>&1 && exit 9; cat /tmp/other/file"
    )
    assert "is not an installation" in said
    assert said.endswith("mine\n")


def test_it_runs_on_this_system_from_any_directory(archive: Path, tmp_path: Path) -> None:
    bundle = unpack(archive, tmp_path)
    (tmp_path / "link").symlink_to(bundle / "bin" / "sealpoint")
    done = subprocess.run(
        [tmp_path / "link", "--version"], capture_output=True, text=True, env={}, check=False
    )
    assert done.stdout.startswith("sealpoint "), done.stderr


def test_members_belong_to_root_and_lead_nowhere_else(archive: Path) -> None:
    with archive.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as plain:
        with tarfile.open(fileobj=plain, mode="r|") as tar:
            for member in tar:
                assert (member.uid, member.gid) == (0, 0), member.name
                assert not member.mode & 0o022 or member.issym(), member.name
                assert member.isfile() or member.isdir() or member.issym() or member.islnk()
                if member.issym():
                    assert not member.linkname.startswith("/"), (member.name, member.linkname)


def test_the_package_has_no_errors_and_works_installed(tmp_path: Path) -> None:
    (lintian,) = tools.need("lintian")
    made = subprocess.run([TOP / "scripts/deb", "--out", tmp_path], capture_output=True, text=True)
    package = Path(made.stdout.strip())
    assert made.returncode == 0, made.stderr
    # As root, lintian warns of that on standard error.
    said = subprocess.run([lintian, package], capture_output=True, text=True)
    assert [line for line in said.stdout.splitlines() if line.startswith("E:")] == []
    lines = (TOP / "scripts/bundle.d/lintian-overrides").read_text().splitlines()
    assert lines[0].startswith("#"), "each override has its reason"
    subprocess.run(["dpkg", "-x", package, tmp_path / "root"], check=True)
    run = subprocess.run(
        [tmp_path / "root/usr/bin/sealpoint", "--version"], capture_output=True, text=True
    )
    assert run.stdout.startswith("sealpoint "), run.stderr
