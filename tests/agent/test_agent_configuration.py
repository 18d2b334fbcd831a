"""The agent by its configuration: the table [agent], namespaces and cluster, and the unit for systemd."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from sealpoint import config
from sealpoint.config import AgentTable
from sealpoint.errors import IdentityError, UsageError
from tests.agent.agent_helpers import archive, keys, node  # noqa: F401
from tests.checkpoint.checkpoint_helpers import Keys, make_tar, member, open_to, opened, read_tar
from tests.cli.conftest import cli, others, own_configuration  # noqa: F401

WHOLE = """
[agent]
watch = ["/a", "b"]
store = "s3://bucket/prefix"
state = "queue"
listen = "[::1]:9000"
spool = "~/spool"
unconditional = true
max_size = "10G"
min_free = 0
commit_timeout = "10m"
keep_last = 3
keep_age = "30d"
keep_bytes = 5000
"""


def test_the_table_is_read_with_sizes_and_times_and_paths_beside_it():
    home = os.path.expanduser("~")
    assert config.parse(WHOLE.encode(), "/etc/x/config.toml")["agent"] == AgentTable(
        watch=("/a", "/etc/x/b"),
        store="s3://bucket/prefix",
        state="/etc/x/queue",
        listen="[::1]:9000",
        spool=f"{home}/spool",
        unconditional=True,
        max_size=10 << 30,
        min_free=0,
        commit_timeout=600,
        keep_last=3,
        keep_age=30 * 86400,
        keep_bytes=5000,
    )


@pytest.mark.parametrize(
    "wrong",
    [
        "agent = 3",
        "[[agent]]",
        "[agent]\nwhere = 'x'",
        "[agent]\nwatch = 3",
        "[agent]\nwatch = ['']",
        "[agent]\nwatch = [3]",
        "[agent]\nstore = ['x']",
        "[agent]\nunconditional = 'yes'",
        "[agent]\nmax_size = -1",
        "[agent]\nmax_size = 1.5",
        "[agent]\nmax_size = true",
        "[agent]\nmax_size = '10 G'",
        "[agent]\nmax_size = '10d'",
        "[agent]\nmax_size = '999999999999999T'",
        "[agent]\nkeep_age = '30G'",
        "[agent]\nkeep_age = '-3d'",
        "[agent]\nkeep_last = '3d'",
        "[agent]\ncommit_timeout = ''",
    ],
)
def test_a_wrong_table_is_refused_with_file_and_key(wrong):
    with pytest.raises(UsageError, match=r"^/c.toml, line \d+: agent"):
        config.parse(wrong.encode(), "/c.toml")


def _configure(tmp_path, text):
    (tmp_path / "system.toml").write_text(text)


def _one(node, marker):
    return next(p for p in node.sealed() if f"_{marker}_" in p.name)


@pytest.fixture
def cluster(node, keys, others, tmp_path):
    _configure(
        tmp_path,
        f"""
cluster = "prod"
recipients = ["{keys.recipient_path}"]
signer = "{keys.signer_path}"

[[namespaces]]
name = "shop"
recipients = ["{others.recipient_path}", "{keys.recipient_path}"]

[agent]
watch = ["{node.watched}"]
store = "{node.store}"
state = "{node.queue}"
min_free = "1K"
listen = "none"
""",
    )
    return node


def test_a_namespace_adds_its_recipients_and_the_workload_names_the_container(
    cluster, keys, others, cli
):
    node = cluster
    node.write("a.tar", archive("shop", container="app", pod="a"))
    node.write("b.tar", archive("bank", container="app", pod="b", namespace="bank"))
    assert cli("agent", "--once").code == 0
    shop, bank = _one(node, "a_app"), _one(node, "b_app")
    mixed = Keys.__new__(Keys)
    mixed.__dict__ |= others.__dict__ | {"policy": keys.policy}
    out = node.directory / "out.tar"
    open_to(mixed, shop, out)
    assert read_tar(out.read_bytes()) == read_tar(archive("shop", container="app", pod="a"))
    with pytest.raises(IdentityError), opened(mixed, bank):
        pass
    assert node.opened(bank)
    assert node.opened(shop)
    for path, workload in (
        (shop, "kubernetes/prod/shop/a/app"),
        (bank, "kubernetes/prod/bank/b/app"),
    ):
        told = json.loads(cli("info", path, "--json").out)
        assert workload in json.dumps(told)


def test_an_archive_whose_specification_names_two_pods_is_refused(cluster, cli):
    node = cluster
    spec = {
        "io.kubernetes.cri.sandbox-namespace": "bank",
        "io.kubernetes.cri.sandbox-name": "b",
        "io.kubernetes.cri.container-name": "app",
        "io.kubernetes.pod.namespace": "shop",
        "io.kubernetes.pod.name": "b",
        "io.kubernetes.container.name": "app",
    }
    images = [m for m in read_tar(archive("x")).items() if m[0] != "spec.dump"]
    members = [member(name, values[-1]) for name, values in images]
    node.write(
        "a.tar", make_tar(*members, member("spec.dump", json.dumps({"annotations": spec}).encode()))
    )
    done = cli("agent", "--once")
    assert done.code == 6
    assert "names two containers" in done.err
    assert node.plain() == {"a.tar"}
    assert node.sealed() == []


def test_options_win_over_the_table(cluster, cli, tmp_path):
    node = cluster
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    node.write("a.tar", archive("x"))
    assert cli("agent", "--once", "--store", elsewhere).code == 0
    assert node.sealed() == []
    assert len(list(elsewhere.iterdir())) == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--listen", "9467"],
        ["--listen", "127.0.0.1:99999"],
        ["--keep-age", "3"],
        ["--keep-age", "0d"],
        ["--keep-bytes", "0"],
        ["--max-size", "-3"],
        ["--keep-last", "x"],
        ["--store", "oci://registry.example/name:tag"],
        ["--store", "ftp://x/y"],
        ["--store", "/nowhere/at/all"],
    ],
)
def test_wrong_options_are_refused_before_anything_is_touched(cluster, cli, options):
    cluster.write("a.tar", archive("x"))
    done = cli("agent", "--once", *options)
    assert done.code == 2, done.err
    assert cluster.plain() == {"a.tar"}


def test_the_unit_names_this_program_and_its_directories_and_systemd_takes_it(cluster, cli):
    done = cli("agent", "--unit")
    assert done.code == 0
    assert f"ReadWritePaths=-{cluster.watched} -{cluster.queue} -{cluster.store}\n" in done.out
    assert cluster.plain() == set()  # it does nothing else
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    path = cluster.directory / "sealpoint-agent.service"
    lines = [x for x in done.out.splitlines(keepends=True) if not x.startswith("Documentation=")]
    text = "".join(
        "ExecStart=/bin/true agent\n" if x.startswith("ExecStart=") else x for x in lines
    )
    path.write_text(text)
    judged = subprocess.run(
        ["systemd-analyze", "verify", str(path)], capture_output=True, text=True
    )
    assert (judged.returncode, judged.stderr) == (
        0,
        "",
    )  # it says nothing of an unknown key but there
