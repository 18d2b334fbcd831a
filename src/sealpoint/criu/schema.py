"""The few fields of CRIU's protobuf messages that sealpoint reads (CRIU's images/*.proto).

Built as dynamic messages from a table, so that unknown fields of newer CRIU versions do no harm.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sealpoint.errors import FileError

# In the order of the message, which is that of the kernel's user_regs_struct.
X86_REGISTERS: Final = (
    *("r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si"),
    *(
        "di",
        "orig_ax",
        "ip",
        "cs",
        "flags",
        "sp",
        "ss",
        "fs_base",
        "gs_base",
        "ds",
        "es",
        "fs",
        "gs",
    ),
)

# In images, what CRIU calls a string is "bytes" here: CRIU puts in what the kernel gave, and a name need not be UTF-8.
# message -> ((field, number, type), ...); "*" after a type: repeated; a type that is a message name: nested
_MESSAGES: Final[dict[str, tuple[tuple[str, int, str], ...]]] = {
    "pstree_entry": (
        ("pid", 1, "uint32"),
        ("ppid", 2, "uint32"),
        ("pgid", 3, "uint32"),
        ("sid", 4, "uint32"),
        ("threads", 5, "uint32*"),
    ),
    "task_core_entry": (
        ("task_state", 1, "uint32"),
        ("flags", 4, "uint32"),
        ("blk_sigset", 5, "uint64"),
        ("comm", 6, "bytes"),
        ("old_seccomp_filter", 12, "uint32"),
    ),
    "task_kobj_ids_entry": (
        ("files_id", 2, "uint32"),
        ("ipc_ns_id", 7, "uint32"),
        ("uts_ns_id", 8, "uint32"),
        ("mnt_ns_id", 9, "uint32"),
        ("user_ns_id", 10, "uint32"),
        ("time_ns_id", 12, "uint32"),
    ),
    "inventory_entry": (("fdinfo_per_id", 2, "bool"), ("root_ids", 3, "task_kobj_ids_entry")),
    "creds_entry": (("uid", 1, "uint32"), ("gid", 2, "uint32")),
    "thread_core_entry": (
        ("sched_nice", 3, "sint32"),
        ("blk_sigset", 6, "uint64"),
        ("creds", 10, "creds_entry"),
        ("seccomp_filter", 12, "uint32"),
        ("comm", 13, "bytes"),
    ),
    "user_x86_regs_entry": tuple(
        (name, number, "uint64") for number, name in enumerate(X86_REGISTERS, 1)
    ),
    "user_x86_xsave_entry": (
        ("xstate_bv", 1, "uint64"),
        ("ymmh_space", 2, "uint32*"),
        ("opmask_reg", 5, "uint64*"),
        ("zmm_upper", 6, "uint64*"),
        ("hi16_zmm", 7, "uint64*"),
    ),
    "user_x86_fpregs_entry": (
        ("cwd", 1, "uint32"),
        ("swd", 2, "uint32"),
        ("twd", 3, "uint32"),
        ("fop", 4, "uint32"),
        ("rip", 5, "uint64"),
        ("rdp", 6, "uint64"),
        ("mxcsr", 7, "uint32"),
        ("mxcsr_mask", 8, "uint32"),
        ("st_space", 9, "uint32*"),
        ("xmm_space", 10, "uint32*"),
        ("xsave", 13, "user_x86_xsave_entry"),
    ),
    "thread_info_x86": (
        ("gpregs", 2, "user_x86_regs_entry"),
        ("fpregs", 3, "user_x86_fpregs_entry"),
    ),
    "core_entry": (
        ("mtype", 1, "int32"),
        ("thread_info", 2, "thread_info_x86"),
        ("tc", 3, "task_core_entry"),
        ("thread_core", 5, "thread_core_entry"),
    ),
    "utsns_entry": (("nodename", 1, "bytes"),),
    "pagemap_head": (("pages_id", 1, "uint32"),),
    # As of CRIU 4.2; before, the count was 32 bits wide and its name that of field 5.
    "pagemap_entry": (
        ("vaddr", 1, "uint64"),
        ("compat_nr_pages", 2, "uint32"),
        ("in_parent", 3, "bool"),
        ("flags", 4, "uint32"),
        ("nr_pages", 5, "uint64"),
    ),
    "vma_entry": (
        ("start", 1, "uint64"),
        ("end", 2, "uint64"),
        ("pgoff", 3, "uint64"),
        ("shmid", 4, "uint64"),
        ("prot", 5, "uint32"),
        ("flags", 6, "uint32"),
        ("status", 7, "uint32"),
    ),
    "mm_entry": (
        ("mm_start_brk", 6, "uint64"),
        ("mm_brk", 7, "uint64"),
        ("mm_arg_start", 8, "uint64"),
        ("mm_arg_end", 9, "uint64"),
        ("mm_env_start", 10, "uint64"),
        ("mm_env_end", 11, "uint64"),
        ("exe_file_id", 12, "uint32"),
        ("mm_saved_auxv", 13, "uint64*"),
        ("vmas", 14, "vma_entry*"),
    ),
    "memfd_inode_entry": (
        ("name", 1, "bytes"),
        ("size", 4, "uint64"),
        ("shmid", 5, "uint32"),
        ("inode_id", 7, "uint64"),
    ),
    "memfd_file_entry": (("id", 1, "uint32"), ("inode_id", 5, "uint32")),
    "remap_file_path_entry": (
        ("orig_id", 1, "uint32"),
        ("remap_id", 2, "uint32"),
        ("remap_type", 3, "int32"),
    ),
    "reg_file_entry": (("id", 1, "uint32"), ("name", 6, "bytes")),
    "bpfmap_file_entry": (
        ("key_size", 6, "uint32"),
        ("value_size", 7, "uint32"),
        ("map_id", 8, "uint32"),
        ("max_entries", 9, "uint32"),
    ),
    "file_entry": (
        ("type", 1, "int32"),
        ("id", 2, "uint32"),
        ("reg", 3, "reg_file_entry"),
        ("memfd", 20, "memfd_file_entry"),
        ("bpf", 21, "bpfmap_file_entry"),
    ),
    "file_head": (("type", 1, "int32"), ("id", 2, "uint32")),  # of a file_entry, which may be large
    "fdinfo_entry": (("id", 1, "uint32"),),
    "fs_entry": (("cwd_id", 1, "uint32"), ("root_id", 2, "uint32")),
    # Records that say how many bytes of data follow them.
    "pipe_data_entry": (("bytes", 2, "uint32"),),
    "sk_packet_entry": (("length", 2, "uint32"), ("scm", 4, "scm_entry*")),
    "scm_entry": (("rights", 2, "uint32*"),),
    "tcp_stream_entry": (("inq_len", 1, "uint32"), ("outq_len", 3, "uint32")),
    "bpfmap_data_entry": (
        ("map_id", 1, "uint32"),
        ("keys_bytes", 2, "uint32"),
        ("values_bytes", 3, "uint32"),
    ),
    "ghost_file_entry": (("chunks", 9, "bool"),),
    "ghost_chunk_entry": (("len", 1, "uint64"),),
    "ipc_sem_entry": (("nsems", 2, "uint32"),),
    "ipc_msg_entry": (("qnum", 3, "uint32"),),
    "ipc_msg": (("msize", 2, "uint32"),),
    "ipc_desc_entry": (("id", 7, "uint32"),),
    "ipc_shm_entry": (
        ("desc", 1, "ipc_desc_entry"),
        ("size", 2, "uint64"),
        ("in_pagemaps", 3, "bool"),
    ),
    # The keys of an encrypted dump, as the proposal that sealpoint.criusec reads has them; not in any release of CRIU.
    "cipher_entry": (
        ("token", 1, "bytes"),
        ("aes_key", 2, "bytes"),
        ("aes_iv", 3, "bytes"),
        ("hmac_digest", 4, "bytes"),
    ),
    "dump_stats_entry": (
        ("freezing_time", 1, "uint32"),
        ("frozen_time", 2, "uint32"),
        ("memdump_time", 3, "uint32"),
        ("memwrite_time", 4, "uint32"),
        ("pages_scanned", 5, "uint64"),
        ("pages_skipped_parent", 6, "uint64"),
        ("pages_written", 7, "uint64"),
    ),
    "restore_stats_entry": (
        ("pages_compared", 1, "uint64"),
        ("pages_skipped_cow", 2, "uint64"),
        ("forking_time", 3, "uint32"),
        ("restore_time", 4, "uint32"),
        ("pages_restored", 5, "uint64"),
    ),
    # rpc.proto, as far as the drop-in looks into it; all other fields pass as they are
    "criu_opts": (
        ("images_dir_fd", 1, "int32"),
        ("images_dir", 68, "string"),
        ("pid", 2, "int32"),
        ("leave_running", 3, "bool"),
        ("log_file", 10, "string"),
        ("ps", 11, "criu_page_server_info"),
        ("notify_scripts", 12, "bool"),
        ("root", 13, "bytes"),
        ("parent_img", 14, "string"),
        ("track_mem", 15, "bool"),
        ("auto_dedup", 16, "bool"),
        ("work_dir_fd", 17, "int32"),
        ("freeze_cgroup", 44, "string"),
        ("lazy_pages", 48, "bool"),
        ("status_fd", 49, "int32"),
        ("config_file", 51, "string"),
        ("pidfd_store_sk", 62, "int32"),
        ("leave_stopped", 69, "bool"),
        ("log_to_stderr", 71, "bool"),
    ),
    "criu_page_server_info": (
        ("address", 1, "string"),
        ("port", 2, "int32"),
        ("pid", 3, "int32"),
        ("fd", 4, "int32"),
    ),
    "criu_req": (("type", 1, "int32"), ("opts", 2, "criu_opts"), ("notify_success", 3, "bool")),
    "criu_restore_resp": (("pid", 1, "int32"),),
    "criu_notify": (("script", 1, "string"), ("pid", 2, "int32")),
    "criu_resp": (
        ("type", 1, "int32"),
        ("success", 2, "bool"),
        ("restore", 4, "criu_restore_resp"),
        ("notify", 5, "criu_notify"),
        ("ps", 6, "criu_page_server_info"),
        ("cr_errmsg", 9, "string"),
    ),
    "stats_entry": (("dump", 1, "dump_stats_entry"), ("restore", 2, "restore_stats_entry")),
}

_COMMON_MAGIC: Final = 0x54564319
_SERVICE_MAGIC: Final = 0x55105940
_MAX_RECORD: Final = 16 * 1024 * 1024


@functools.cache
def _pool() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool

    file = descriptor_pb2.FileDescriptorProto(
        name="sealpoint/criu.proto", package="criu", syntax="proto2"
    )
    kind = descriptor_pb2.FieldDescriptorProto
    for message, fields in _MESSAGES.items():
        descriptor = file.message_type.add(name=message)
        for name, number, type_ in fields:
            base = type_.rstrip("*")
            field = descriptor.field.add(name=name, number=number)
            field.label = kind.LABEL_REPEATED if type_.endswith("*") else kind.LABEL_OPTIONAL
            if base in _MESSAGES:
                field.type, field.type_name = kind.TYPE_MESSAGE, f".criu.{base}"
            else:
                field.type = getattr(kind, f"TYPE_{base.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


@functools.cache
def message(name: str) -> Any:
    """The message class of that name."""
    from google.protobuf import message_factory

    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"criu.{name}"))


def warm_up() -> None:
    """Load the protobuf library ahead of its use, for instance before a tree is frozen."""
    message("core_entry")


def records(data: bytes, names: str | Sequence[str], what: str) -> Iterator[Any]:
    """Parsed records of one image file: two magic words, then {u32 LE length, protobuf}.  Raises FileError.

    names: the message of every record, or those of the first ones, the last of which goes on.  `what` names the image
    in errors, which also give the offset.
    """
    from google.protobuf.message import DecodeError

    kinds = [message(n) for n in ([names] if isinstance(names, str) else names)]

    if len(data) < 8 or struct.unpack_from("<I", data)[0] not in (_COMMON_MAGIC, _SERVICE_MAGIC):
        raise FileError(f"{what}: not a CRIU image")
    at, count = 8, 0
    while at < len(data):
        if len(data) - at < 4:
            raise FileError(f"{what}: cut short at offset {at}")
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if size > _MAX_RECORD or size > len(data) - at:
            raise FileError(f"{what}: record of impossible length at offset {at - 4}")
        try:
            yield kinds[min(count, len(kinds) - 1)].FromString(data[at : at + size])
        except DecodeError:
            raise FileError(f"{what}: malformed record at offset {at}") from None
        at, count = at + size, count + 1
