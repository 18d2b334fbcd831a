"""doctor: each finding is made, and each defect that it exists for is found; on a machine of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sealpoint.keys.generate import generate_signer
from sealpoint.machine import survey, survey_machine
from tests.dropin.own_machine import SEALPOINT, fails, installed, line, lines


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


# The drop-in and the real CRIU


def test_a_machine_without_the_drop_in_is_told_so(machine):
    found = machine.doctor()
    line(found, "warn", "drop-in", "not installed", "plain checkpoints", "install-criu")
    line(found, "warn", "config", "there is no /etc/sealpoint/config.toml")
    line(found, "ok", "criu", "dumped and restored a process")


def test_a_whole_installation_has_no_defect(machine, keys):
    installed(machine, keys)
    found = machine.doctor()
    line(found, "ok", "config", "is valid")
    line(found, "ok", "drop-in", str(machine.executable), "leads to the real CRIU")
    line(found, "ok", "criu", "dumped and restored a process")
    line(found, "ok", "keys", "sealing and signing work")
    line(found, "ok", "keys", "this machine opens what it seals")
    line(found, "ok", "kernel", "FUSE works")
    line(found, "ok", "kernel", "private directories in memory")
    assert not lines(found, "drop-in", "before the drop-in")


def test_the_words_on_the_terminal_are_those_of_json(machine, keys):
    installed(machine, keys)
    said = machine.sealpoint("doctor").out
    assert f"ok    drop-in: {machine.executable} is installed" in said
    assert said.splitlines()[-1].endswith("checked")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), ("is gone",)),
        (lambda path: path.write_text("#!/bin/sh\n"), ("replaced by something else",)),
        (lambda path: path.write_text(path.read_text() + "\n# x\n"), ("was changed",)),
        (lambda path: path.chmod(0o777), ("can be changed by others", "0777")),
    ],
    ids=["gone", "replaced", "changed", "writable"],
)
def test_a_damaged_drop_in_is_found(machine, keys, damage, words):
    installed(machine, keys)
    damage(machine.executable)
    line(machine.doctor(), "fail", "drop-in", str(machine.executable), *words)


def test_a_real_criu_that_comes_first_is_found(machine, keys):
    """A login of root and a service may have different PATHs: each is told of."""
    installed(machine, keys)
    machine.program("criu", "#!/bin/sh\n")
    machine.services_path = f"{machine.bin}:{machine.prefix}"
    machine.systemctl()
    found = machine.doctor()
    line(found, "fail", "drop-in", "a systemd service finds", str(machine.bin))
    assert not lines(found, "drop-in", "a login of root finds")


def test_a_real_criu_that_does_not_work_is_found(machine, keys):
    installed(machine, keys)
    broken = machine.program("broken", "#!/bin/sh\necho Version: 4.0\n[ $1 = --version ]\n")
    text = machine.config.read_text()
    real = next(row for row in text.splitlines() if row.startswith("criu = "))
    machine.config.write_text(text.replace(real, f'criu = "{broken}"'))
    line(machine.doctor(), "fail", "criu", str(broken), "cannot dump and restore")


def test_an_option_of_criu_that_leads_past_the_seal_is_found(machine, keys):
    installed(machine, keys)
    (machine.etc / "criu").mkdir(exist_ok=True)
    (machine.etc / "criu" / "default.conf").write_text("# x\nstream\n")
    line(machine.doctor(), "fail", "criu", "default.conf, line 2", "stream")


@pytest.mark.parametrize("name", ["default.conf", "runc.conf"])
def test_an_abbreviated_option_of_criu_is_found_in_the_files_of_criu_and_of_engines(
    machine, keys, name
):
    installed(machine, keys)
    (machine.etc / "criu").mkdir(exist_ok=True)
    (machine.etc / "criu" / name).write_text("tcp-established\nimages-di\t/tmp\n")
    line(machine.doctor(), "fail", "criu", f"{name}, line 2", "images-dir")


def test_ways_around_what_is_refused_are_told(machine, keys):
    installed(machine, keys)
    text = machine.config.read_text()
    machine.config.write_text(text + 'allow_criu_fields = [72, "11.5"]\ncriu_fault = true\n')
    found = machine.doctor()
    line(found, "warn", "config", "allow_criu_fields", "72, 11.5")
    line(found, "warn", "config", "criu_fault", "CRIU_FAULT")


def test_a_mistake_in_the_configuration_is_told_with_its_line(machine):
    machine.config.parent.mkdir()
    machine.config.write_text("# x\nsigner = 3\n")
    line(machine.doctor(), "fail", "config", "config.toml, line 2: signer")


def test_a_configuration_that_others_can_change_is_found(machine, keys):
    installed(machine, keys)
    machine.config.chmod(0o666)
    line(machine.doctor(), "fail", "config", "says what runs as root", "0666")


# Keys


def test_keys_that_others_can_read_or_change_are_found(machine, keys):
    installed(machine, keys)
    keys.signer.chmod(0o640)
    keys.trust.chmod(0o666)
    found = machine.doctor()
    line(found, "fail", "keys", f"private key {keys.signer} can be read by others (mode 0640)")
    line(found, "fail", "keys", f"{keys.trust} names signers to trust", "0666")


def test_keys_that_are_gone_or_locked_are_found(machine, keys, tmp_path):
    installed(machine, keys)
    generate_signer(str(tmp_path / "locked"), passphrase=b"secret")
    os.replace(tmp_path / "locked" / "signer.key", keys.signer)
    keys.identity.unlink()
    found = machine.doctor()
    assert [f["level"] for f in lines(found, "keys", "identity.key")] == ["fail"]
    line(found, "fail", "keys", "passphrase")


def test_a_machine_that_would_not_open_what_it_seals_is_told_so(machine, keys, others):
    done = machine.install(*others.sealing, *keys.opening)
    assert done.code == 0, done.err
    line(machine.doctor(), "warn", "keys", "own signer is not trusted")
    machine.config.write_text(
        machine.config.read_text().replace(str(keys.trust), str(others.trust))
    )
    line(machine.doctor(), "warn", "keys", "identity is not among the recipients")


def test_a_machine_that_only_dumps_is_no_defect(machine, keys):
    assert machine.install(*keys.sealing).code == 0
    found = machine.doctor()
    line(found, "ok", "keys", "dumps only")
    line(found, "ok", "keys", "sealing and signing work")


# Engines


def test_which_engine_uses_which_criu(machine, keys):
    installed(machine, keys)
    machine.program("podman", "#!/bin/sh\n")
    machine.program("criu", "#!/bin/sh\n")
    machine.services_path = f"{machine.prefix}:/usr/bin"
    machine.systemctl(
        docker={"Environment": f"PATH={machine.bin}:/usr/bin"}, containerd={"MainPID": "0"}
    )
    found = machine.doctor()
    line(found, "ok", "engines", "podman in a login of root", str(machine.executable))
    line(found, "fail", "engines", "podman called from here", f"{machine.bin}/criu")
    line(found, "fail", "engines", "docker.service (when it runs)", f"{machine.bin}/criu")
    line(found, "ok", "engines", "containerd.service (when it runs)", str(machine.executable))


def test_a_running_daemon_is_judged_by_the_path_that_it_has(machine, keys):
    installed(machine, keys)
    machine.program("criu", "#!/bin/sh\n")
    daemon = subprocess.Popen([shutil.which("sleep"), "1000"], env={"PATH": str(machine.bin)})
    try:
        machine.systemctl(containerd={"MainPID": str(daemon.pid)})
        found = machine.doctor()
    finally:
        daemon.kill()
        daemon.wait()
    line(found, "fail", "engines", "containerd.service uses", f"{machine.bin}/criu")


def test_a_crun_without_criu_is_told(machine, keys):
    installed(machine, keys)
    machine.program("crun", "#!/bin/sh\necho 'crun version 1.8.1 +SYSTEMD'\n")
    line(machine.doctor(), "warn", "engines", "crun was built without CRIU", "use runc")


# Leaks


def proc(directory: Path, monkeypatch, **files: str) -> None:
    """A /proc and a /sys with these files, by names with __ for /."""
    for name, text in files.items():
        path = directory / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(survey_machine, "PROC", str(directory / "proc"))
    monkeypatch.setattr(survey_machine, "SYS", str(directory / "sys"))


HEAD = "Filename Type Size Used Priority\n"


def test_swap_on_a_file_is_told_and_none_is_well(tmp_path, monkeypatch):
    proc(tmp_path, monkeypatch, proc__swaps=HEAD)
    assert [f.level for f in survey_machine.swap()] == ["ok"]
    area = tmp_path / "a swap"
    area.touch()
    name = str(area).replace(" ", "\\040")
    proc(tmp_path, monkeypatch, proc__swaps=f"{HEAD}{name} file 1024 0 -2\n")
    (found,) = survey_machine.swap()
    assert found.level == "warn"
    assert f"swap on {area} is not known to be encrypted" in found.text


def test_swap_on_an_encrypted_device_is_well(tmp_path, monkeypatch):
    area = tmp_path / "swap"
    area.touch()
    device = area.stat().st_dev
    block = f"{os.major(device)}:{os.minor(device)}"
    proc(tmp_path, monkeypatch, proc__swaps=f"{HEAD}{area} file 1024 0 -2\n")
    uuid = tmp_path / "sys" / "dev" / "block" / block / "dm" / "uuid"
    uuid.parent.mkdir(parents=True)
    uuid.write_text("LVM-x\n")
    assert [f.level for f in survey_machine.swap()] == ["warn"]
    uuid.write_text("CRYPT-LUKS2-x\n")
    (found,) = survey_machine.swap()
    assert (found.level, found.text) == ("ok", f"swap on {area}: encrypted (dm-crypt)")


def test_core_dumps_that_go_to_a_program_are_told(tmp_path, monkeypatch):
    for text, level in (("core\n", "ok"), ("|/lib/systemd/systemd-coredump %P\n", "warn")):
        proc(tmp_path, monkeypatch, proc__sys__kernel__core_pattern=text)
        assert [f.level for f in survey_machine.core_pattern()] == [level]


def test_capabilities_that_are_missing_are_told(tmp_path, monkeypatch):
    for bits, levels in (
        ((1 << 41) - 1, ["ok"]),
        ((1 << 41) - 1 & ~(1 << 24), ["warn"]),  # CAP_SYS_RESOURCE
        ((1 << 41) - 1 & ~(1 << 21), ["fail"]),  # CAP_SYS_ADMIN
        (0, ["warn", "fail", "fail"]),
    ):
        proc(tmp_path, monkeypatch, proc__self__status=f"Name:\tx\nCapEff:\t{bits:016x}\n")
        assert [f.level for f in survey_machine.capabilities()] == levels


def test_who_is_not_root_is_told_so(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    first = next(survey.survey())
    assert (first.level, first.topic) == ("fail", "root")


# Leftovers


def test_a_mount_is_told_and_one_without_its_server_too(machine, keys, tmp_path):
    images, file, place = tmp_path / "images", tmp_path / "x.sealed", tmp_path / "mnt"
    images.mkdir()
    place.mkdir()
    (images / "inventory.img").write_bytes(b"x")
    assert machine.sealpoint("seal", images, "-o", file, *keys.sealing, "--as-files").code == 0
    server = machine.start(*SEALPOINT, "mount", "--foreground", file, place, *keys.opening)
    try:
        deadline = time.monotonic() + 30
        while not (told := lines(machine.doctor(), "leftovers", str(place))):
            assert time.monotonic() < deadline
        assert (told[0]["level"], told[0]["hint"]) == ("warn", f"sealpoint umount {place}")
    finally:
        server.kill()
        server.wait()
    line(machine.doctor(), "warn", "leftovers", f"the mount on {place} has lost its server")
    assert machine.run("umount", place).code == 0
    line(machine.doctor(), "ok", "leftovers", "no sealpoint mounts")


# Thawing


def test_a_stopped_process_is_continued(bare_machine):
    process = subprocess.Popen(["sleep", "1000"])
    try:
        process.send_signal(signal.SIGSTOP)
        while state(process.pid) != "T":
            time.sleep(0.01)
        done = bare_machine.sealpoint("doctor", "--thaw", process.pid, "--json")
        assert json.loads(done.out)["done"] == [f"continued process {process.pid}"]
        assert state(process.pid) in "SR"
        again = bare_machine.sealpoint("doctor", "--thaw", process.pid)
        assert (again.code, again.out) == (0, "nothing was frozen or stopped\n")
    finally:
        process.kill()
        process.wait()


def test_what_cannot_be_thawed_is_refused(bare_machine, tmp_path):
    fails(bare_machine.sealpoint("doctor", "--thaw", tmp_path), 2, "neither a PID nor")
    fails(bare_machine.sealpoint("doctor", "--thaw", "9" * 5000), 2, "neither a PID nor")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    fails(bare_machine.sealpoint("doctor", "--thaw", gone.pid), 2, f"no process {gone.pid}")


def test_a_frozen_cgroup_is_thawed(bare_machine, tmp_path):
    group = _freezer()
    process = subprocess.Popen(["sleep", "1000"])
    try:
        (group / "cgroup.procs").write_text(str(process.pid))
        name, frozen, thawed = (
            ("cgroup.freeze", "1", "0")
            if (group / "cgroup.freeze").exists()
            else ("freezer.state", "FROZEN", "THAWED")
        )
        (group / name).write_text(frozen)
        done = bare_machine.sealpoint("doctor", "--thaw", process.pid)
        assert done.code == 0, done.err
        assert f"thawed {group}" in done.out
        assert (group / name).read_text().strip() == thawed
    finally:
        process.kill()
        process.wait()
        group.rmdir()


def _freezer() -> Path:
    """A new cgroup that can be frozen."""
    for row in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = row.partition(" - ")
        kind, _, options = tail.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and "freezer" in options.split(",")):
            group = Path(head.split(" ")[4]) / f"sealpoint-test-{os.getpid()}"
            try:
                group.mkdir()
            except OSError:
                continue
            if any((group / name).exists() for name in ("cgroup.freeze", "freezer.state")):
                return group
            group.rmdir()
    pytest.skip("no cgroup can be made here")
