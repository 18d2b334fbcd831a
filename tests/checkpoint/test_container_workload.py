"""The workload of a container: the same at every dump of it, opaque, and nothing that a container can choose."""

from __future__ import annotations

import re

import pytest

from sealpoint.state.chains import StateStore
from sealpoint.state.container_workload import container_of, identify, workload_of

ID = "3f" * 32
OTHER = "ab" * 32
ROOT = "/var/lib/containers/storage/overlay/x/merged"


@pytest.mark.parametrize(
    "cgroups",
    [
        f"0::/machine.slice/libpod-{ID}.scope/container\n",
        f"0::/system.slice/docker-{ID}.scope\n",
        f"0::/kubepods.slice/kubepods-pod0f0e.slice/cri-containerd-{ID}.scope\n",
        f"0::/kubepods/burstable/pod12345678-1234-1234-1234-123456789abc/{ID}\n",
        f"12:cpu,cpuacct:/docker/{ID}\n1:name=systemd:/docker/{ID}\n0::/\n",
        f"0::/crio-{ID}.scope\n",
        # What processes in the container made below names another one.
        f"0::/machine.slice/libpod-{ID}.scope/container/libpod-{OTHER}.scope\n",
        f"0::/user.slice/user-0.slice/{OTHER}\n1:name=systemd:/docker/{ID}\n",
    ],
)
def test_the_id_that_an_engine_generated_is_found(cgroups):
    assert identify(cgroups, ROOT) == ID


@pytest.mark.parametrize(
    "cgroups",
    [
        "", "0::/\n", "0::/mycontainer\n", "nonsense", "0::/user.slice/user-1000.slice/session-3.scope\n",
        f"0::/user.slice/user-1000.slice/user@1000.service/{OTHER}\n", f"0::/x{ID}0\n", f"0::/{ID[:-1]}\n",
    ],
)  # fmt: skip
def test_else_it_is_the_root_directory_that_the_engine_names(cgroups):
    assert identify(cgroups, ROOT) == ROOT


def test_without_an_engine_there_is_no_container():
    """A user's process can lie in a group with any name."""
    assert identify(f"0::/machine.slice/libpod-{ID}.scope\n", "") == ""
    assert container_of(1, "") == ""
    assert container_of(2**30, "/root") == "/root"  # gone


def test_a_workload_is_opaque_and_stays_the_same(tmp_path):
    here, there = (StateStore(str(tmp_path / name)) for name in ("here", "there"))
    generated, named = workload_of(ID, here), workload_of(ROOT, here)
    for workload in (generated, named):
        assert re.fullmatch(r"container-[0-9a-f]{32}", workload)
    assert generated == workload_of(ID, there)  # it moves with its id
    assert named == workload_of(ROOT, StateStore(here.directory))
    assert named != workload_of(ROOT, there)  # nobody can try out names
    assert len({generated, named, workload_of(OTHER, here), workload_of("/other", here)}) == 4
    assert ID[:16] not in generated
