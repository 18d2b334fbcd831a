"""Every request of CRIU's RPC and every field of it, 3.17 to 4.2.1, and what the drop-in does with each.

A request with a type, a field or a value that is not in here is refused: a newer CRIU could send memory elsewhere
because of it.  Bytes are looked at as they come, before any parser of ours or of CRIU's.  The facts are those of the
versions' rpc.proto; a test compares them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

TYPES: Final = {
    0: "EMPTY", 1: "DUMP", 2: "RESTORE", 3: "CHECK", 4: "PRE_DUMP", 5: "PAGE_SERVER", 6: "NOTIFY",
    7: "CPUINFO_DUMP", 8: "CPUINFO_CHECK", 9: "FEATURE_CHECK", 10: "VERSION", 11: "WAIT_PID",
    12: "PAGE_SERVER_CHLD", 13: "SINGLE_PRE_DUMP",
}  # fmt: skip
ENUMS: Final = {
    "criu_req_type": frozenset(TYPES),
    "criu_cg_mode": frozenset(range(7)),
    "criu_pre_dump_mode": frozenset((1, 2)),
    "criu_network_lock_method": frozenset((1, 2, 3)),  # 3 (skip) since 4.1.1
}


class RequestField(NamedTuple):
    """A field of a message.  kind: scalar type, enum or message; since: oldest CRIU; role: `pass` (CRIU gets it as it
    is), `ours` (the drop-in reads, replaces or removes it) or `refuse` (where it is set); why: what speaks for that.
    """

    name: str
    kind: str
    since: str
    role: str
    why: str


# number, name, kind, since, role: why.  All up to 65 are in 3.17.
_OPTIONS: Final = """
 1 images_dir_fd         int32   3.17  ours: a mount of sealpoint's takes its place
 2 pid                   int32   3.17  ours: also for what a killed CRIU leaves behind
 3 leave_running         bool    3.17  ours: says whether the tree lives on
 4 ext_unix_sk           bool    3.17  pass: how a resource is dumped
 5 tcp_established       bool    3.17  pass: how a resource is dumped
 6 evasive_devices       bool    3.17  pass: how a resource is dumped
 7 shell_job             bool    3.17  pass: how a resource is dumped
 8 file_locks            bool    3.17  pass: how a resource is dumped
 9 log_level             int32   3.17  pass: logs hold names and addresses, no memory
10 log_file              string  3.17  ours: our reasons stand there too; CRIU takes no directory in it
11 ps                    criu_page_server_info 3.17 ours: pages go there sealed, and CRIU knows of no server
12 notify_scripts        bool    3.17  ours: always on, for our gate is a notification
13 root                  string  3.17  pass: the root of the tree, a matter between the client and CRIU
14 parent_img            string  3.17  ours: the parent is a sealed file
15 track_mem             bool    3.17  ours: increments
16 auto_dedup            bool    3.17  ours: parents are freed by us
17 work_dir_fd           int32   3.17  ours: opened anew, for logs and statistics
18 link_remap            bool    3.17  pass: how a resource is dumped
19 veths                 criu_veth_pair 3.17 pass: names of network devices
20 cpu_cap               uint32  3.17  pass: what is compared
21 force_irmap           bool    3.17  pass: how a resource is dumped
22 exec_cmd              string  3.17  pass: the client may run what it likes; it is in no file and no checkpoint
23 ext_mnt               ext_mount_map 3.17 pass: mounts that stay outside of the checkpoint
24 manage_cgroups        bool    3.17  pass: how a resource is restored
25 cg_root               cgroup_root 3.17 pass: where cgroups are restored
26 rst_sibling           bool    3.17  pass: CRIU keeps the client's child's pid
27 inherit_fd            inherit_fd 3.17 pass: numbers in CRIU's own table, from the client
28 auto_ext_mnt          bool    3.17  pass: mounts that stay outside of the checkpoint
29 ext_sharing           bool    3.17  pass: mounts that stay outside of the checkpoint
30 ext_masters           bool    3.17  pass: mounts that stay outside of the checkpoint
31 skip_mnt              string  3.17  pass: mounts that stay outside of the checkpoint
32 enable_fs             string  3.17  pass: names of file systems
33 unix_sk_ino           unix_sk 3.17  pass: how a resource is dumped
34 manage_cgroups_mode   criu_cg_mode 3.17 pass: how a resource is restored
35 ghost_limit           uint32  3.17  pass: a limit
36 irmap_scan_paths      string  3.17  pass: where names of watched files are looked for
37 external              string  3.17  pass: what stays outside of the checkpoint
38 empty_ns              uint32  3.17  pass: how a resource is dumped
39 join_ns               join_namespace 3.17 pass: namespaces of the client's choice
41 cgroup_props          string  3.17  pass: which properties are dumped
42 cgroup_props_file     string  3.17  pass: which properties are dumped; CRIU reads no other option there
43 cgroup_dump_controller string 3.17  pass: which properties are dumped
44 freeze_cgroup         string  3.17  ours: thawed if CRIU was killed
45 timeout               uint32  3.17  pass: a limit
46 tcp_skip_in_flight    bool    3.17  pass: how a resource is dumped
47 weak_sysctls          bool    3.17  pass: how a resource is restored
48 lazy_pages            bool    3.17  ours: only for a restore, where the configuration allows it
49 status_fd             int32   3.17  ours: a copy of the client's descriptor takes its place
50 orphan_pts_master     bool    3.17  pass: a terminal goes to the client with a notification
51 config_file           string  3.17  ours: read once, and handed on in a sealed memfd
52 tcp_close             bool    3.17  pass: how a resource is restored
53 lsm_profile           string  3.17  pass: the client's choice
54 tls_cacert            string  3.17  refuse: CRIU's TLS is not needed, because what is sent is sealed
55 tls_cacrl             string  3.17  refuse: CRIU's TLS is not needed, because what is sent is sealed
56 tls_cert              string  3.17  refuse: CRIU's TLS is not needed, because what is sent is sealed
57 tls_key               string  3.17  refuse: CRIU's TLS is not needed, because what is sent is sealed
58 tls                   bool    3.17  refuse: CRIU's TLS is not needed, because what is sent is sealed
59 tls_no_cn_verify      bool    3.17  refuse: CRIU's TLS is not needed, because what is sent is sealed
60 cgroup_yard           string  3.17  pass: where cgroups are mounted
61 pre_dump_mode         criu_pre_dump_mode 3.17 pass: how pages are read
62 pidfd_store_sk        int32   3.17  ours: a copy of the client's descriptor takes its place
63 lsm_mount_context     string  3.17  pass: the client's choice
64 network_lock          criu_network_lock_method 3.17 pass: how connections are held
65 mntns_compat_mode     bool    3.17  pass: how mounts are restored
66 skip_file_rwx_check   bool    4.1.1 pass: what is compared
67 unprivileged          bool    4.1.1 pass: what CRIU does without
68 images_dir            string  4.1.1 ours: a mount of sealpoint's takes its place
69 leave_stopped         bool    4.1.1 ours: says whether the tree lives on
70 display_stats         bool    4.1.1 pass: counts and times
71 log_to_stderr         bool    4.1.1 pass: logs hold names and addresses, no memory
"""
_REQUEST: Final = """
 1 type                  criu_req_type 3.17 ours: says which door it is
 2 opts                  criu_opts 3.17 ours: see there
 3 notify_success        bool    3.17  pass: an answer to a notification
 4 keep_open             bool    3.17  pass: CRIU serves it for requests without memory only
 5 features              criu_features 3.17 pass: questions
 6 pid                   uint32  3.17  pass: of a child to be waited for
"""
_NESTED: Final = {
    "criu_page_server_info": "1 address string\n2 port int32\n3 pid int32\n4 fd int32",
    "criu_veth_pair": "1 if_in string\n2 if_out string",
    "ext_mount_map": "1 key string\n2 val string",
    "join_namespace": "1 ns string\n2 ns_file string\n3 extra_opt string",
    "inherit_fd": "1 key string\n2 fd int32",
    "cgroup_root": "1 ctrl string\n2 path string",
    "unix_sk": "1 inode uint32",
    "criu_features": "1 mem_track bool\n2 lazy_pages bool\n3 pidfd_store bool",
}


def _table(text: str) -> dict[int, RequestField]:
    table = {}
    for line in text.strip().splitlines():
        facts, _, why = line.partition(": ")
        number, name, kind, *rest = facts.split()
        since, role = rest or ("3.17", "pass")
        table[int(number)] = RequestField(
            name, kind, since, role, why or "part of a field that passes"
        )
    return table


MESSAGES: Final = {
    "criu_req": _table(_REQUEST),
    "criu_opts": _table(_OPTIONS),
    **{name: _table(text) for name, text in _NESTED.items()},
}
_MAX_VARINT: Final = 10


class UnknownFieldError(Exception):
    """A request with something that is not in the table, or with a field that is not for us."""


class Unknown(NamedTuple):
    """A field that is not in the table.  path: as in `allow_criu_fields`; what: for a message."""

    path: str
    what: str


def check(data: bytes, allowed: Collection[str] = ()) -> list[str]:
    """A criu_req in full, nested messages too.  allowed: paths of fields that may be unknown: "72" for field 72 of
    criu_opts, "11.5" for field 5 of its field 11, "req.7" for field 7 of criu_req.

    Returns the paths that were in the request for that reason alone.  Raises UnknownFieldError.
    """
    used = []
    for unknown in _unknown(data, "criu_req", ""):
        if unknown.path not in allowed:
            raise UnknownFieldError(f"{unknown.what} (allow_criu_fields: {unknown.path})")
        used.append(unknown.path)
    return used


def _unknown(data: bytes, message: str, prefix: str) -> Iterator[Unknown]:
    table = MESSAGES[message]
    for number, wire, value in fields(data):
        path = _path(message, prefix, number)
        field = table.get(number)
        if field is None:
            yield Unknown(path, f"field {number} of {message} is not known to sealpoint")
            continue
        said = f"field {number} of {message} ({field.name})"
        text = field.kind == "string"
        if wire != (2 if text or field.kind in MESSAGES else 0):
            raise UnknownFieldError(f"{said} is not encoded as CRIU knows it")
        if field.role == "refuse" and value not in (0, b""):
            raise UnknownFieldError(f"{said}: {field.why}")
        if isinstance(value, int):
            values = ENUMS.get(field.kind)
            if values is not None and value not in values:
                yield Unknown(path, f"{said} has the value {value}, which sealpoint does not know")
        elif text:
            if b"\0" in value:
                raise UnknownFieldError(f"{said} has a zero byte")
        else:
            yield from _unknown(value, field.kind, path)


def _path(message: str, prefix: str, number: int) -> str:
    if message == "criu_req":
        return "" if number == 2 else f"req.{number}"
    return f"{prefix}.{number}" if prefix else str(number)


def fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """(number, wire type, value) of each field of a message.  Raises UnknownFieldError."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise UnknownFieldError("a field has no proper number")
        if wire == 0:
            value, at = varint(data, at)
            yield number, wire, value
            continue
        if wire == 2:
            size, at = varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise UnknownFieldError(f"field {number} is of a kind that CRIU does not know")
        if size > len(data) - at:
            raise UnknownFieldError(f"field {number} is cut short")
        yield number, wire, data[at : at + size]
        at += size


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends.  Raises UnknownFieldError."""
    value = 0
    for place, byte in enumerate(data[at : at + _MAX_VARINT]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value & (1 << 64) - 1, at + place + 1
    raise UnknownFieldError("the request cannot be understood")
