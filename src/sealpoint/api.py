"""What `import sealpoint` offers: dumps, restores, sealed files and keys, by the doors that the commands use.

The names, their arguments and what they raise are stable (docs/reference/api.md).  Defaults come from the configuration
files, as for the commands.  Everything raises SealpointError or one of its kinds.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from sealpoint import arguments, config as configuration
from sealpoint.checkpoint import (
    Admission,
    Dump,
    DumpRequest,
    DumpResult,
    Expectation,
    ImageData as Image,
    Restore,
    RestoreRequest,
    RestoreResult,
    Sealing,
    SealResult,
    Task,
    opener,
    seal as seal_into,
)
from sealpoint.criu.binary import CriuBinary, Search
from sealpoint.errors import (
    CriuError,
    FileError,
    IdentityError,
    NoTrustedSignerGivenError,
    PolicyError,
    SealpointError,
    SystemEnvironmentError,
    UsageError,
)
from sealpoint.keys import (
    Identity,
    Recipient,
    Signer,
    TrustPolicy,
    VerifiedSignature,
    load_identity,
    load_recipient,
    load_signer,
    load_trust,
    passphrase_identity,
    passphrase_recipient,
)
from sealpoint.process import protect
from sealpoint.state.chains import DEFAULT_STATE
from sealpoint.state.newest import Mark, Newest
from sealpoint.store.output import Destination, destination

__all__ = [
    "Checkpoint",
    "CriuError",
    "DumpResult",
    "FileError",
    "Identity",
    "IdentityError",
    "Image",
    "NoTrustedSignerGivenError",
    "PolicyError",
    "Recipient",
    "RestoreResult",
    "SealResult",
    "Sealing",
    "SealpointError",
    "Signer",
    "SystemEnvironmentError",
    "Task",
    "TrustPolicy",
    "UsageError",
    "dump",
    "load_identity",
    "load_recipient",
    "load_signer",
    "load_trust",
    "passphrase_identity",
    "passphrase_recipient",
    "protect",
    "restore",
    "seal",
]

Path = str | os.PathLike[str]
Say = Callable[[str], None]


class Checkpoint:
    """An authentic checkpoint: a sealed file, its parents, and what lies beside them.  A context manager."""

    def __init__(self, checkpoint: opener.OpenedCheckpoint) -> None:
        """See `open`."""
        self._checkpoint = checkpoint

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        trust: TrustPolicy | Iterable[Path] | None = None,
        identities: Iterable[Identity | Path] | None = None,
        allow_unsigned: bool = False,
        parents: Sequence[Path] = (),
        stores: Sequence[Path] = (),
        workloads: Sequence[str] = (),
        expect: Sequence[str] = (),
    ) -> Self:
        """The checkpoint at `path`, if it is whole and a trusted signer signed all of it.

        trust: a policy, or signers (files or key ids); None: the configured ones.  Where that is nobody, it raises
        PolicyError.  allow_unsigned: believe a checkpoint whoever made it.  identities: private keys, or files of them;
        None: the configured ones; they are loaded when contents are asked for.  parents, stores: directories where else
        than beside a file its parents and stored chunks may lie.  workloads, expect: which checkpoint it must be, by
        workload, and by id or origin digest.

        Raises PolicyError, FileError, UsageError, IdentityError, SystemEnvironmentError.
        """
        with _public():
            where = arguments.path(path, "the checkpoint")
            expected = Expectation.of(
                arguments.texts(workloads, "workloads"), arguments.texts(expect, "expect")
            )
            config = configuration.load()
            how = opener.Opening(
                _policy(config, trust, allow_unsigned=allow_unsigned),
                _keys(config, identities),
                parents=tuple(arguments.paths(parents, "parents")),
                stores=tuple(arguments.paths(stores, "stores")),
                expected=expected,
            )
            return cls(how.open(where))

    @property
    def id(self) -> str:
        """Of the file, in hexadecimal digits."""
        return self._checkpoint.reference.checkpoint_id.hex()

    @property
    def origin_digest(self) -> str:
        """By which this checkpoint is told from all others, in hexadecimal digits."""
        return self._checkpoint.reference.origin_digest.hex()

    @property
    def workload(self) -> str:
        """As it was sealed, "" where nobody named one."""
        return self._checkpoint.origin.workload

    @property
    def captured(self) -> int:
        """Seconds since 1970, as its signer says."""
        return self._checkpoint.origin.captured

    @property
    def signers(self) -> tuple[VerifiedSignature, ...]:
        """Of the file."""
        return self._checkpoint.signers

    @property
    def images(self) -> Mapping[str, Image]:
        """The images by name, whole, with pages of parents.  Needs an identity.  Raises what `open` raises."""
        with _public():
            return self._checkpoint.images

    def tree(self) -> Iterator[Task]:
        """The processes, parents before children; of a pre-dump none.  Raises FileError, IdentityError."""
        with _public():
            yield from self._checkpoint.tree()

    def verify(self, progress: Callable[[int], None] = lambda _: None) -> None:
        """Authenticate every byte of every file within reach of the keys.  Raises FileError, IdentityError.

        progress: gets numbers of plaintext bytes.
        """
        with _public():
            arguments.callback(progress, "progress")
            self._checkpoint.verify(progress)

    def close(self) -> None:
        """Let go of all files."""
        self._checkpoint.close()

    def __enter__(self) -> Self:
        self._checkpoint.require_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def dump(
    pid: int,
    output: Path,
    sealing: Sealing,
    *,
    leave_running: bool = False,
    workload: str = "",
    force: bool = False,
    options: Sequence[str] = (),
    criu: Path | None = None,
    criu_log: Path | None = None,
    state: Path | None = None,
    warn: Say = warnings.warn,
) -> DumpResult:
    """Dump the process tree of `pid` with CRIU into one sealed file.

    The tree ends when the file is complete and durable, unless `leave_running`, or the output is not a file but a pipe,
    a socket or a device.  If anything fails, it runs on, and no file is left.  workload: opaque public name of what is
    dumped.  force: replace an existing file.  options: of CRIU.
    state: directory of the state store.

    Raises UsageError, CriuError, SystemEnvironmentError, IdentityError.
    """
    with _public():
        arguments.instance(sealing, Sealing, "sealing")
        where, force = _destination(output), arguments.flag(force, "force")
        leave_running = arguments.flag(leave_running, "leave_running")
        arguments.callback(warn, "warn")
        config = configuration.load()
        newest = Newest(_state(config, state))
        request = DumpRequest(
            pid=arguments.whole_number(pid, "pid"),
            sealing=sealing,
            leave_running=leave_running or where.streams,
            options=arguments.texts(options, "options"),
            workload=arguments.text(workload, "workload"),
            criu_log=arguments.optional_path(criu_log, "criu_log"),
            criu=_criu(config, criu),
        )
        with where.open(force=force) as out:
            result = Dump(request, out).run()
        try:
            mark = Mark(result.checkpoint_id, result.captured, 1)
            newest.note(workload, mark)
        except SystemEnvironmentError as error:
            warn(error.message)
        return result


def restore(
    checkpoint: Checkpoint,
    *,
    detach: bool = False,
    allow_older: bool = False,
    options: Sequence[str] = (),
    criu: Path | None = None,
    criu_log: Path | None = None,
    state: Path | None = None,
    warn: Say = warnings.warn,
) -> RestoreResult:
    """Restore the process tree of a checkpoint with CRIU.  Nothing of it runs before every byte has verified.

    Without `detach` it returns when the tree has ended.  This process becomes the reaper of the tree's orphans.
    allow_older: although a newer checkpoint of its workload is known here.  options: of CRIU.

    Raises PolicyError, FileError, IdentityError, CriuError, SystemEnvironmentError; nothing of the tree is left then.
    """
    with _public():
        arguments.instance(checkpoint, Checkpoint, "checkpoint")
        allow_older = arguments.flag(allow_older, "allow_older")
        arguments.callback(warn, "warn")
        inner = checkpoint._checkpoint  # noqa: SLF001 - of this module
        inner.require_open()
        config = configuration.load()
        admission = Admission(inner, _state(config, state), warn, allow_older=allow_older)
        request = RestoreRequest(
            detach=arguments.flag(detach, "detach"),
            options=arguments.texts(options, "options"),
            criu_log=arguments.optional_path(criu_log, "criu_log"),
            criu=_criu(config, criu),
            permitted=admission.permit,
            approved=admission.passed,
        )
        return Restore(request, inner.files()).run()


def seal(
    path: Path, output: Path, sealing: Sealing, *, force: bool = False, as_files: bool = False
) -> SealResult:
    """Seal a directory of images, or an engine's archive, that exists in the clear; it stays as it is.

    The images must be a complete checkpoint of a known kind.  as_files: whatever is there is sealed as it is.

    Raises UsageError, FileError, SystemEnvironmentError.
    """
    with _public():
        arguments.instance(sealing, Sealing, "sealing")
        source, where = arguments.path(path, "what to seal"), _destination(output)
        as_files = arguments.flag(as_files, "as_files")
        with where.open(force=arguments.flag(force, "force")) as out:
            return seal_into(source, out, sealing, as_files=as_files)


@contextmanager
def _public() -> Iterator[None]:
    """What the system says becomes an error of the tree."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise SystemEnvironmentError(f"{where}{error.strerror or error}") from error


def _destination(output: Path) -> Destination:
    """The name "-" is that of a file here: a library does not write to its caller's standard output unasked."""
    return destination(os.path.abspath(arguments.path(output, "the output")))


def _policy(
    config: configuration.Config,
    trust: TrustPolicy | Iterable[Path] | None,
    *,
    allow_unsigned: bool,
) -> TrustPolicy:
    allow_unsigned = arguments.flag(allow_unsigned, "allow_unsigned")
    if trust is None:
        return config.policy(allow_unsigned=allow_unsigned)
    if isinstance(trust, TrustPolicy):
        policy = trust
    else:
        # An empty list is nobody: it must not come to mean whom the configuration names.
        names = arguments.paths(trust, "trust")
        policy = config.policy(names) if names else TrustPolicy()
    return policy._replace(allow_unsigned=True) if allow_unsigned else policy


def _keys(
    config: configuration.Config, identities: Iterable[Identity | Path] | None
) -> Callable[[], Sequence[Identity]]:
    named = config.identities if identities is None else identities
    chosen = [
        i if isinstance(i, Identity) else arguments.path(i, "each of identities")
        for i in arguments.items(named, "identities")
    ]

    @functools.cache
    def load() -> list[Identity]:
        return [load_identity(i) if isinstance(i, str) else i for i in chosen]

    return load


def _criu(config: configuration.Config, path: Path | None) -> CriuBinary:
    wanted = config.criu if path is None else arguments.path(path, "criu")
    return Search(wanted or None, fault=config.criu_fault).result()


def _state(config: configuration.Config, state: Path | None) -> str:
    return (config.state or DEFAULT_STATE) if state is None else arguments.path(state, "state")
