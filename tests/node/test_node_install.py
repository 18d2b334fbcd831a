"""`sealpoint node` on a host of the test's own, with a small bundle: what it makes, refuses and removes."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys

import pytest

from sealpoint.keys import load_trust
from sealpoint.keys.generate import generate_signer
from tests.node.own_host import COMMAND, SERVICE_PATH, OwnHost, make_bundle, wait_for

NAMES_CHANGE = """
import os
left = {n}
def wrap(name):
    real = getattr(os, name)
    def wrapped(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            os._exit(99)
        return real(*arguments, **options)
    setattr(os, name, wrapped)
for name in ("mkdir", "link", "symlink", "rename", "unlink", "rmdir"):
    wrap(name)
"""


def refused(host: OwnHost, reason: str, *arguments: object, command: str = "install") -> str:
    """It is refused for that reason, with the code for such a machine, and nothing has changed."""
    before = host.snapshot()
    done = host.node(command, *arguments, "--json")
    assert done.code == 6, (done.out, done.err)
    assert done.json["supported"] is False
    assert done.json["reason"] == reason
    assert host.snapshot() == before
    return done.err


def test_what_is_installed_is_the_bundle_and_the_removal_leaves_nothing(host):
    before = host.snapshot()
    said = host.installed().json
    assert said["restart"] == []
    top = host.inside("/opt/sealpoint")
    version = top / "versions" / said["version"]
    assert os.readlink(top / "current") == f"versions/{said['version']}"
    assert (version / "lib/start/sealpoint").read_text() == "one\n"
    assert (version / "bin/python3").stat().st_nlink == 3
    assert os.readlink(version / "lib/python3") == "../root/usr/lib"
    script = (top / "bin/criu").read_text()
    assert script.startswith("#!/opt/sealpoint/current/bin/python3 -I\n")
    for path in [top, *top.rglob("*")]:
        info = path.lstat()
        assert (info.st_uid, info.st_gid) == (0, 0), path
        assert path.is_symlink() or not info.st_mode & 0o022, path
    assert stat.S_IMODE((top / "bin/criu").stat().st_mode) == 0o755
    assert host.node("status", "--json").code == 0
    done = host.node("uninstall", "--json")
    assert (done.code, done.json["left"]) == (0, [])
    assert host.snapshot() == before
    assert host.node("status").code == 6
    assert host.node("uninstall").code == 2


def test_a_service_that_finds_another_criu_gets_a_path_that_counts_after_a_restart(host):
    host.shell("mkdir -p /opt/other; cp /rt/crio /opt/other/criu")
    path = f"/opt/other:{SERVICE_PATH}"
    daemon = host.daemon("containerd", path, "containerd.service")
    before = host.snapshot()
    said = host.installed().json
    assert said["restart"] == ["containerd.service"]
    (runtime,) = said["runtimes"]
    assert (runtime["criu"], runtime["ours"]) == ("/opt/other/criu", False)
    assert runtime["path"] == path
    file = host.inside("/etc/systemd/system/containerd.service.d/50-sealpoint.conf")
    assert f'Environment="PATH=/opt/sealpoint/bin:{path}"\n' in file.read_text()
    assert host.node("status").code == 6
    assert host.installed().json["restart"] == ["containerd.service"]  # again: the same
    assert file.read_text().count("/opt/sealpoint/bin") == 1
    host.end(daemon)
    host.daemon("containerd", f"/opt/sealpoint/bin:{path}", "containerd.service")
    done = host.node("status", "--json")
    assert (done.code, done.json["restart"]) == (0, [])
    assert done.json["runtimes"][0]["criu"] == "/opt/sealpoint/bin/criu"
    assert host.node("uninstall").code == 0
    assert host.snapshot() == before


def test_a_link_in_path_that_leads_to_the_drop_in_is_the_drop_in(host):
    host.installed()
    host.shell("mkdir /opt/links; ln -s /opt/sealpoint/bin/criu /opt/links/criu")
    host.daemon("crio", f"/opt/links:{SERVICE_PATH}", "crio.service")
    assert host.installed().json["restart"] == []


def test_pods_that_were_started_before_the_restart_are_counted(host):
    host.daemon("containerd-shim", SERVICE_PATH)
    host.daemon("containerd", f"/opt/sealpoint/bin:{SERVICE_PATH}", "containerd.service")
    (runtime,) = host.installed().json["runtimes"]
    assert (runtime["ours"], runtime["shims"]) == (True, 1)


@pytest.mark.parametrize(
    "wrapper", [("unshare", "--mount"), ("setpriv", "--reuid", "65534", "--clear-groups")]
)
def test_a_container_that_takes_a_daemons_name_changes_no_service(host, wrapper):
    if wrapper[0] == "setpriv":  # chroot needs root: the order is the other way round
        command = ("env", "-i", "PATH=/evil", "/rt/containerd", "infinity")
        host.start("chroot", host.root, *wrapper, *command)
        wait_for(lambda: "containerd" in host.shell("cat /proc/[0-9]*/comm"))
    else:
        host.daemon("containerd", "/evil", "containerd.service", wrapper=wrapper)
    said = host.installed().json
    assert (said["runtimes"], said["restart"]) == ([], [])
    assert not host.inside("/etc/systemd/system/containerd.service.d").exists()


@pytest.mark.parametrize("hostile", ['/a"b', "/a\\b", "/a%n"])
def test_a_path_reaches_systemd_as_it_is(host, hostile):
    host.daemon("containerd", f"{hostile}:/usr/bin", "containerd.service")
    host.installed()
    file = host.inside("/etc/systemd/system/containerd.service.d/50-sealpoint.conf")
    (line,) = [x for x in file.read_text().splitlines() if x.startswith("Environment=")]
    quoted = line.removeprefix('Environment="').removesuffix('"')
    # Nothing that systemd takes otherwise: a specifier, an escape, the end of the word.
    assert re.fullmatch(r'(?:[^%\\"]|%%|\\\\|\\")*', quoted)
    read = quoted.replace('\\"', '"').replace("\\\\", "\\").replace("%%", "%")
    assert read == f"PATH=/opt/sealpoint/bin:{hostile}:/usr/bin"


@pytest.mark.parametrize(
    ("options", "reason"), [("ro", "read-only"), ("noexec", "noexec"), ("ro,noexec", "read-only")]
)
def test_where_programs_cannot_be_put_or_run_it_is_refused(host, options, reason):
    host.run("mount", "-t", "tmpfs", "-o", f"mode=755,{options}", "tmpfs", host.root / "opt")
    refused(host, reason)


def test_where_a_service_cannot_be_told_its_path_it_is_refused(host):
    daemon = host.daemon("containerd", SERVICE_PATH)  # in no service
    refused(host, "no-unit")
    host.end(daemon)
    host.daemon("containerd", SERVICE_PATH, "containerd.service")
    host.shell("rmdir /etc/systemd/system")
    refused(host, "no-systemd")
    host.shell("rmdir /run/systemd/system")
    refused(host, "no-systemd")


def test_without_fuse_it_is_refused(host):
    host.shell("mv /dev/fuse /dev/other")
    refused(host, "fuse")
    host.shell("mknod /dev/fuse c 10 254")
    refused(host, "fuse")


def test_an_old_kernel_and_another_architecture_are_refused(host):
    before = host.snapshot()
    old = "from sealpoint.node import checks; checks._KERNEL = (99, 0)"  # else all tests need an old one
    done = host.node("install", "--json", before=old)
    assert (done.code, done.json["reason"]) == (6, "kernel")
    other = (
        "from sealpoint.node import checks; real = checks._machine_of; calls = []\n"
        "checks._machine_of = lambda head: calls.append(1) or real(\n"
        "    head if len(calls) == 1 else head[:18] + bytes([head[18] ^ 255]) + head[19:])"
    )
    done = host.node("install", "--json", before=other)
    assert (done.code, done.json["reason"]) == (6, "architecture")
    assert host.snapshot() == before


def test_what_is_not_a_hosts_root_directory_is_refused(host):
    place = host.directory / "elsewhere"
    place.mkdir()
    done = host.run("sh", "-c", 'mount --bind /opt "$0"', place)
    assert done.code == 0, done.err
    command = (host.bundle, "node", "install", "--json", "--host")
    script = COMMAND.format(before="")
    done = host.run(sys.executable, "-c", script, *command, place)
    assert (done.code, done.json["reason"]) == (6, "no-proc")
    done = host.run(
        "sh", "-c", 'mkdir "$0/proc"; mount --rbind "$1" "$0/proc"; shift; exec "$@"', place,
        host.root / "proc", sys.executable, "-c", script, *command, place,
    )  # fmt: skip
    assert (done.code, done.json["reason"]) == (6, "not-a-host"), (done.out, done.err)


def test_links_on_the_host_do_not_lead_out_of_it(host):
    """An absolute link, and one that climbs, mean what they mean on the host."""
    outside = host.directory / "outside"
    outside.mkdir()
    host.shell("mkdir -p /var/opt; rmdir /opt; ln -s /var/opt /opt")
    host.installed()
    assert host.inside("/var/opt/sealpoint/bin/criu").is_file()
    assert host.node("uninstall").code == 0
    host.shell(f"rm /opt; ln -s ../../../../../../../..{outside} /opt")
    refused(host, "no-directory")
    host.shell(f"rm /opt; ln -s {outside} /opt")
    refused(host, "no-directory")
    assert list(outside.iterdir()) == []


def test_nothing_is_put_where_others_can_change_it(host):
    host.shell("chmod 777 /opt")
    before = host.snapshot()
    done = host.node("install")
    assert done.code == 5
    assert "can be changed by others" in done.err
    assert host.snapshot() == before


@pytest.mark.parametrize("made", ["sealpoint/mine", "sealpoint/versions/other/file"])
def test_a_directory_of_somebody_else_is_left_alone(host, made):
    host.shell(f"mkdir -p $(dirname /opt/{made}); echo mine > /opt/{made}")
    before = host.snapshot()
    done = host.node("install")
    assert done.code == 2
    assert "is not an installation" in done.err
    assert host.snapshot() == before


def test_an_update_switches_and_the_old_version_goes_with_a_later_run(host):
    first = host.installed().json["version"]
    make_bundle(host.bundle, "two")
    said = host.installed().json
    assert said["version"] != first
    assert said["others"] == [first]  # who is about to start it still can
    assert host.installed().json["others"] == []
    assert sorted(p.name for p in host.inside("/opt/sealpoint/versions").iterdir()) == sorted(
        [said["version"], f"{said['version']}.json"]
    )
    make_bundle(host.bundle, "one")  # and back
    assert host.installed().json["version"] == first


def test_a_version_that_is_in_use_stays_until_it_is_not(host):
    first = host.installed().json["version"]
    user = host.start("chroot", host.root, "/opt/sealpoint/current/bin/criu", "infinity")
    wait_for(lambda: "criu" in host.shell("cat /proc/[0-9]*/comm"))
    make_bundle(host.bundle, "two")
    for _ in range(3):
        assert host.installed().json["others"] == [first]
    done = host.node("uninstall", "--json")
    assert done.code == 6
    assert len(done.json["left"]) == 1
    assert "uses it" in done.json["left"][0]
    assert host.inside(f"/opt/sealpoint/versions/{first}/lib/start/sealpoint").exists()
    host.end(user)
    wait_for(lambda: "criu" not in host.shell("cat /proc/[0-9]*/comm"))
    assert host.node("uninstall").code == 0
    assert not host.inside("/opt/sealpoint").exists()


def test_what_was_changed_or_added_stays_and_is_named(host):
    version = host.installed().json["version"]
    place = f"/opt/sealpoint/versions/{version}"
    host.shell(f"echo mine > {place}/notes; echo more >> {place}/lib/start/sealpoint")
    done = host.node("install")
    assert done.code == 6
    assert "is not as it was installed" in done.err
    done = host.node("uninstall", "--json")
    assert done.code == 6
    left = " ".join(done.json["left"])
    assert "lib/start/sealpoint: it was changed since" in left
    kept = sorted(str(p.relative_to(host.inside(place))) for p in host.inside(place).rglob("*"))
    assert kept == ["lib", "lib/start", "lib/start/sealpoint", "notes"]


def test_a_link_in_place_of_a_version_leads_no_removal_elsewhere(host):
    version = host.installed().json["version"]
    host.shell(f"cd /opt/sealpoint/versions; mv {version} /var/moved; ln -s /var/moved {version}")
    before = {p: p.read_bytes() for p in host.inside("/var/moved").rglob("*") if p.is_file()}
    assert host.node("uninstall").code == 6
    assert {
        p: p.read_bytes() for p in host.inside("/var/moved").rglob("*") if p.is_file()
    } == before


def test_killed_at_any_change_it_is_done_by_the_next_run_and_removed_exactly(host):
    host.daemon("containerd", SERVICE_PATH, "containerd.service")
    before = host.snapshot()
    points = 0
    for n in range(1, 120):
        done = host.node("install", before=NAMES_CHANGE.format(n=n))
        if done.code == 0:
            break
        assert done.code == 99, done.err
        points += 1
        if n % 2:  # an installation that goes on, or one that is taken back
            host.installed()
        done = host.node("uninstall")
        assert done.code in (0, 2), done.err
        assert host.snapshot() == before, f"killed at change {n}"
    else:
        pytest.fail("it never came to its end")
    assert points > 20


def test_a_removal_that_was_killed_is_finished_by_the_next(host):
    host.daemon("containerd", SERVICE_PATH, "containerd.service")
    before = host.snapshot()
    host.installed()
    for n in range(1, 120):
        done = host.node("uninstall", before=NAMES_CHANGE.format(n=n))
        if done.code != 99:
            break
    assert done.code in (0, 2)
    assert host.snapshot() == before


def test_an_update_that_was_killed_leaves_a_version_that_works(host):
    host.installed()
    make_bundle(host.bundle, "two")
    for n in range(1, 120):
        done = host.node("install", before=NAMES_CHANGE.format(n=n))
        current = os.readlink(host.inside("/opt/sealpoint/current"))
        text = host.inside(f"/opt/sealpoint/{current}/lib/start/sealpoint").read_text()
        assert text in ("one\n", "two\n")
        if done.code == 0:
            break
    assert text == "two\n"


def test_two_runs_at_a_time_are_one(host):
    hold = 'exec 9<"$0"; flock 9; echo held; exec sleep infinity'
    held = host.start("sh", "-c", hold, host.root / "opt", stdout=subprocess.PIPE)
    assert held.stdout.readline() == b"held\n"
    done = host.node("install")
    assert done.code == 2
    assert "another installation" in done.err


def test_on_a_host_with_selinux_programs_get_its_label(host):
    """The file that says that SELinux runs is a stand-in; the labels are real attributes."""
    host.shell("mkdir -p /sys/fs/selinux; echo 1 > /sys/fs/selinux/enforce")
    said = host.installed().json
    assert said["warnings"] == []
    top = host.inside("/opt/sealpoint")
    for name in ("bin/criu", f"versions/{said['version']}/bin/python3"):
        label = os.getxattr(top / name, "security.selinux").rstrip(b"\0")
        assert label == b"system_u:object_r:bin_t:s0", name


def test_the_signing_key_is_made_once_and_stays_on_the_host(host):
    before = host.snapshot()
    said = host.node("install", "--signer", "--json").json
    key = host.inside("/etc/sealpoint/signer.key")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert said["signer"].startswith("sealpoint-signer:")
    assert key.read_bytes() not in host.inside("/opt/sealpoint/node.json").read_bytes()
    private = key.read_bytes()
    for arguments in (("install", "--signer"), ("install",), ("status",)):
        assert host.node(*arguments, "--json").json["signer"] == said["signer"]
    assert key.read_bytes() == private
    (literal,) = {s for s in host.node("status").out.split() if s.startswith("sealpoint-signer:")}
    assert load_trust([literal]) == load_trust([str(host.inside("/etc/sealpoint/signer.pub"))])
    done = host.node("uninstall")
    assert done.code == 0, done.out
    assert host.snapshot() == before


def test_a_key_that_is_there_is_used_and_stays(host):
    host.shell("mkdir -p /etc/sealpoint")
    generate_signer(str(host.directory / "k"))
    for name in ("signer.key", "signer.pub"):
        text = (host.directory / "k" / name).read_bytes()
        host.inside(f"/etc/sealpoint/{name}").write_bytes(text)
    refusal = host.node("install", "--signer")
    assert refusal.code == 5  # others can read it
    host.shell("chmod 600 /etc/sealpoint/signer.key")
    assert host.node("install", "--signer").code == 0
    assert host.node("uninstall").code == 0
    assert (
        host.inside("/etc/sealpoint/signer.key").read_bytes()
        == (host.directory / "k" / "signer.key").read_bytes()
    )


def test_killed_while_the_key_is_made_there_is_one_key_or_none(host):
    before = host.snapshot()
    for n in range(1, 120):
        done = host.node("install", "--signer", before=NAMES_CHANGE.format(n=n))
        if done.code == 0:
            break
        assert done.code == 99, done.err
    assert done.code == 0
    assert host.node("install", "--signer", "--json").json["signer"]
    assert host.node("uninstall").code == 0
    assert host.snapshot() == before


def test_what_does_not_start_is_not_switched_to(host):
    first = host.installed().json["version"]
    make_bundle(host.bundle, "two")
    (host.bundle / "bin/sealpoint").unlink()
    (host.bundle / "bin/sealpoint").write_text("no program\n")
    (host.bundle / "bin/sealpoint").chmod(0o755)
    done = host.node("install", "--json")
    assert (done.code, done.json["reason"]) == (6, "does-not-start")
    assert os.readlink(host.inside("/opt/sealpoint/current")) == f"versions/{first}"


def test_a_record_or_a_list_that_is_damaged_removes_nothing(host):
    version = host.installed().json["version"]
    top = host.inside("/opt/sealpoint")
    listing = top / "versions" / f"{version}.json"
    whole = listing.read_bytes()
    values = json.loads(whole)
    values["files"]["../../../etc/systemd"] = ["0" * 64, False]
    for damaged in (json.dumps(values).encode(), b"{}", b"[" * 100_000):
        listing.write_bytes(damaged)
        assert host.node("uninstall").code == 3
        assert (top / "versions" / version / "bin/python3").exists()
    listing.write_bytes(whole)
    (top / "node.json").write_text("{}")
    assert host.node("uninstall").code == 6


def test_names_that_a_script_cannot_start_by_are_refused(host):
    for name in ("opt/x", "/opt/a b", "/opt/" + "x" * 200, "/opt/a\nb", "/"):
        assert host.node("install", "--directory", name).code == 2, name
