"""A dump of three processes, made without CRIU: small, and whole enough for everything that reads checkpoints."""

from __future__ import annotations

import json

from sealpoint.inspect import messages
from tests.inspect import images_by_hand as hand

PAGE = 4096
ARGUMENTS = b"/bin/task\0--secret=hunter2\0with space\0"
ENVIRONMENT = b"HOME=/root\0TOKEN=t0psecret\0EMPTY=\0"
TREE = ((10, 0), (11, 10), (12, 11))
_OPTIONS = {"so_sndbuf": 2560, "so_rcvbuf": 1024}
_FILES = (
    {"type": 1, "id": 1, "reg": {"id": 1, "name": b"/bin/x\x1b[2J"}},
    {"type": 2, "id": 2, "pipe": {"id": 2, "pipe_id": 99}},
    {
        "type": 4,
        "id": 3,
        "isk": {
            "id": 3, "ino": 7, "family": 2, "type": 1, "proto": 6, "state": 1, "src_port": 8080, "dst_port": 443,
            "src_addr": [0x0100007F], "dst_addr": [0x08080808], "opts": _OPTIONS,
        },
    },
    {
        "type": 5,
        "id": 4,
        "usk": {"id": 4, "ino": 8, "type": 1, "state": 10, "peer": 0, "name": b"\0abstract", "opts": _OPTIONS},
    },
)  # fmt: skip
_AREAS = (
    {"start": 0x1000, "end": 0x5000, "prot": 5, "flags": 2, "status": 65, "shmid": 1, "pgoff": 4096, "fd": -1},
    {"start": 0x7000, "end": 0x9000, "prot": 3, "flags": 34, "status": 513, "shmid": 0, "pgoff": 0, "fd": -1},
)  # fmt: skip
_RUNS = (
    {"vaddr": 0x2000, "compat_nr_pages": 1, "flags": 4},
    {"vaddr": 0x4000, "compat_nr_pages": 4, "flags": 4},
)


def image(magic: str, *entries: tuple[str, dict]) -> bytes:
    """An image of messages that need not be complete."""
    data = bytearray()
    hand.Writer(magic, data.extend)
    for name, fields in entries:
        raw = messages.message_class(name)(**fields).SerializePartialToString()
        data += len(raw).to_bytes(4, "little") + raw
    return bytes(data)


def pages() -> bytes:
    """Five pages; the fifth, at 0x7000, holds arguments and environment."""
    last = (ARGUMENTS + ENVIRONMENT).ljust(PAGE, b"\0")
    return b"".join(bytes([65 + n]) * PAGE for n in range(4)) + last


def a_tree() -> dict[str, bytes]:
    """Images by name."""
    files = {
        "inventory.img": hand.image("INVENTORY"),
        "pstree.img": image(
            "PSTREE",
            *(
                ("pstree_entry", {"pid": p, "ppid": up, "pgid": 10, "sid": 10, "threads": [p]})
                for p, up in TREE
            ),
        ),
        "files.img": image("FILES", *(("file_entry", entry) for entry in _FILES)),
        "mountpoints-9.img": image(
            "MNTS",
            ("mnt_entry", {"fstype": 5, "mountpoint": b"/tmp", "source": b"tmpfs"}),
            (
                "mnt_entry",
                {"fstype": 24, "fsname": b"xfs", "mountpoint": b"/", "source": b"/dev/sda1"},
            ),
        ),
        "stats-dump": image(
            "STATS", ("stats_entry", {"dump": {"frozen_time": 1500, "pages_written": 5}})
        ),
    }
    start = 0x7000
    middle, end = start + len(ARGUMENTS), start + len(ARGUMENTS) + len(ENVIRONMENT)
    memory = {
        "exe_file_id": 1, "vmas": list(_AREAS), "mm_arg_start": start, "mm_arg_end": middle,
        "mm_env_start": middle, "mm_env_end": end,
    }  # fmt: skip
    for pid, _ in TREE:
        core = {"mtype": 1, "tc": {"task_state": 1, "comm": b"task%d" % pid}}
        ids = {"vm_id": pid, "files_id": pid, "fs_id": 1, "sighand_id": 1}
        descriptors = [
            {"id": n + 1, "flags": 0, "type": f["type"], "fd": n} for n, f in enumerate(_FILES)
        ]
        runs = [("pagemap_entry", run) for run in _RUNS]
        files |= {
            f"core-{pid}.img": image("CORE", ("core_entry", core)),
            f"ids-{pid}.img": image("IDS", ("task_kobj_ids_entry", ids)),
            f"fdinfo-{pid}.img": image("FDINFO", *(("fdinfo_entry", d) for d in descriptors)),
            f"fs-{pid}.img": image("FS", ("fs_entry", {"cwd_id": 1, "root_id": 1})),
            f"mm-{pid}.img": image("MM", ("mm_entry", memory)),
            f"pagemap-{pid}.img": image("PAGEMAP", ("pagemap_head", {"pages_id": pid}), *runs),
            f"pages-{pid}.img": pages(),
        }
    return files


def a_container() -> dict[str, bytes]:
    """The same as a member of an engine's archive."""
    config = {
        "id": "0123456789abcdef" * 4,
        "name": "web",
        "rootfsImageName": "example/web:1",
        "runtime": "crun",
        "createdTime": "2026-01-02T03:04:05Z",
        "checkpointedTime": "2026-01-02T04:00:00Z",
    }
    spec = {
        "annotations": {
            "io.container.manager": "cri-o",
            "io.kubernetes.container.name": "web",
            "io.kubernetes.pod.name": "shop",
            "io.kubernetes.pod.namespace": "prod",
        },
        "mounts": [{"destination": "/data", "type": "bind", "source": "/srv/data"}],
    }
    network = {
        "pod": {
            "interfaces": {"eth0": {"mac_address": "aa:bb", "subnets": [{"ipnet": "10.0.0.7/24"}]}}
        }
    }
    files = {f"checkpoint/{name}": data for name, data in a_tree().items() if name != "stats-dump"}
    return files | {
        "config.dump": json.dumps(config).encode(),
        "spec.dump": json.dumps(spec).encode(),
        "network.status": json.dumps(network).encode(),
        "rootfs-diff.tar": b"d" * 1000,
        "stats-dump": a_tree()["stats-dump"],
    }
