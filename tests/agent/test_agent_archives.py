"""What the agent makes of archives that engines leave."""

from __future__ import annotations

import gzip
import os
import re
import shutil

import pytest

from sealpoint.checkpoint.opening import parts
from tests.agent.agent_helpers import archive, keys, marker_of, node, wait_for  # noqa: F401
from tests.checkpoint.checkpoint_helpers import (
    a_pre_dump,
    fixtures,
    make_tar,
    member,
    opened,
    read_tar,
    seal_path,
)

KUBELETS = "checkpoint-web-0_shop-web-2026-11-28T14:04:43Z.tar"


def test_an_archive_is_sealed_into_the_store_and_removed(node):
    plain = archive("one")
    node.write(KUBELETS, plain)
    done = node.once()
    assert (done.returncode, done.stdout) == (0, "1 archive sealed, 0 left in the clear\n")
    assert node.is_clean()
    (sealed,) = node.sealed()
    assert re.fullmatch(r"shop_web-0_web_\d{8}T\d{6}Z_[0-9a-f]{12}\.sealed", sealed.name)
    assert node.opened(sealed) == read_tar(plain)
    assert KUBELETS in done.stderr
    assert "<<one>>" not in done.stderr
    again = node.once()
    assert (again.returncode, again.stdout) == (0, "0 archives sealed, 0 left in the clear\n")


@pytest.mark.skipif(fixtures() is None, reason="no archives of engines (SEALPOINT_FIXTURES)")
def test_real_archives_of_engines_come_back_as_they_were(node):
    names = {"containerd-2.1.9-cri.tar": "default_pod_c_", "podman-crun.tar.zst": ""}
    plain = {}
    for name in names:
        shutil.copyfile(fixtures() / name, node.watched / name)
        plain[name] = read_tar((fixtures() / name).read_bytes())
    assert node.once().returncode == 0
    assert node.is_clean()
    found = [node.opened(path) for path in node.sealed()]
    assert len(found) == len(names)
    assert all(each in found for each in plain.values())
    assert any(path.name.startswith("default_pod_c_") for path in node.sealed())


def test_memory_that_the_drop_in_sealed_stays_sealed_as_it_is_and_is_bound(node, tmp_path, keys):
    images, place = tmp_path / "images", "checkpoint/inventory.img"
    images.mkdir()
    for name, data in a_pre_dump(b"memory").items():
        (images / name).write_bytes(data)
    seal_path(keys, images, tmp_path / "inside", as_files=False)
    inside = (tmp_path / "inside").read_bytes()
    rest = member("spec.dump", b"{}"), member("checkpoint/descriptors.json", b"[]")
    node.write("whole.tar", make_tar(*rest, member(place, inside)))
    node.write("cut.tar", make_tar(*rest, member(place, inside[:-100])))
    done = node.once()
    assert done.stdout == "1 archive sealed, 1 left in the clear\n", done
    assert place in done.stderr
    (sealed,) = node.sealed()
    with opened(keys, sealed) as outer:
        assert parts.names(outer) == (place,)
        assert outer.read_bytes(outer.entry(place)) == inside
        (found,) = parts.check(outer, keys.policy)
    assert found.name == place


def test_the_running_agent_takes_what_appears_and_ends_at_sigterm(node):
    node.write(KUBELETS, archive("before"))
    with node.agent():
        wait_for(lambda: len(node.sealed()) == 1, "what was there is sealed")
        node.write("later.tar.gz", gzip.compress(archive("later", size=200_000)))
        wait_for(lambda: len(node.sealed()) == 2 and node.is_clean(), "what came is sealed")
    assert node.markers() == ["before", "later"]
    assert "stopped" in node.said()


def test_the_specification_in_an_archive_wins_over_what_its_name_could_mean(node):
    # By the name alone: namespace a, container b-c-d, or a-b and c-d, or a-b-c and d.
    name = "checkpoint-pod_a-b-c-d-2026-11-28T14:04:43Z.tar"
    node.write(name, archive("x", container="c-d", pod="pod", namespace="a-b"))
    assert node.once().returncode == 0
    assert node.sealed()[0].name.startswith("a-b_pod_c-d_")


def test_names_lead_nowhere_else_in_the_store(node):
    node.write("a.tar", archive("x", container="../../c", pod="/etc", namespace=".."))
    assert node.once().returncode == 0
    (sealed,) = node.sealed()
    assert sealed.parent == node.store
    assert re.fullmatch(r"[a-z0-9._TZ-]+\.sealed", sealed.name)
    assert node.is_clean()


def test_a_name_that_is_not_utf8_or_as_long_as_can_be_is_as_good_as_another(node):
    for name in (b"\xff\xfe-\x01.tar", b"n" * 255, b"a b\n.tar"):
        with open(os.fsencode(node.watched) + b"/" + name, "wb") as file:
            file.write(archive(str(len(name))))
    done = node.once()
    assert done.returncode == 0
    assert node.markers() == ["255", "8", "8"]
    assert node.is_clean()
    assert "\\xff\\xfe" in done.stderr


def test_a_thousand_archives_at_once_are_each_there_once(node):
    for number in range(1000):
        node.write(f"{number}.tar", archive(str(number)))
    with node.agent():
        wait_for(lambda: len(node.sealed()) == 1000 and node.is_clean(), "all are sealed")
    assert node.markers() == sorted(map(str, range(1000)))


def test_what_was_given_up_between_two_runs_has_its_old_name_again_or_is_found(node):
    """The queue is lost: what an agent had taken over is still found, by its name alone."""
    plain = archive("orphan")
    node.write(".sealpoint-" + "ab" * 16 + "." + KUBELETS, plain)
    assert node.once().returncode == 0
    assert node.is_clean()
    assert marker_of(node.opened(node.sealed()[0])) == "orphan"
