"""containerd's CRI in the virtual machine: the daemon, a registry, a client, and one container that counts.

Beside the packaged containerd 1.7, whose CRI cannot checkpoint, is one that can (scripts/get-services cri).
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import secrets
import stat
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.real import sealed
from tests.vm import podman

TOOLS = Path("/mnt/cri")
REGISTRY = "127.0.0.1:5000"
"""By plain HTTP, which containerd takes for this machine alone. It resolves a checkpoint's base image so as well."""
BASE = f"{REGISTRY}/base:1"
STOCK_PATH = f"{TOOLS}/usr/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PATH = f"/usr/local/sbin:{STOCK_PATH}"
"""Of a containerd that finds the drop-in."""
MEMORY = ("heap", "pipe", "unlinked")
"""Secrets that only a process of the container holds."""
REST = ("env", "file", "stdout")
"""Secrets that the engine knows or keeps: in the container's settings, in a file that it changed, in its log."""
_NAMESPACES = {"network": 2, "pid": 1}
"""NamespaceMode: the machine's network, so that no plugin is needed; pids of the container's own, so that CRIU can."""
_LARGEST = 200_000_000  # of what is written while such a container lives


# The registry


@contextlib.contextmanager
def registry(directory: Path) -> Iterator[None]:
    """Debian's docker-registry, its blobs in `directory`."""
    settings = directory / "registry.json"
    settings.write_text(
        json.dumps(
            {
                "version": 0.1,
                "storage": {"filesystem": {"rootdirectory": str(directory / "blobs")}},
                "http": {"addr": REGISTRY},
            }
        )
    )
    with (directory / "registry.log").open("wb") as log:
        server = subprocess.Popen(
            [TOOLS / "usr/bin/docker-registry", "serve", settings], stdout=log, stderr=log
        )
    try:
        sealed.wait_until(lambda: _answers("/v2/"), "the registry answers", podman.TIMEOUT)
        yield
    finally:
        server.terminate()
        server.wait(podman.TIMEOUT)


def _answers(path: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(_call("GET", path).status == 200)
    return False


def _call(method: str, path: str, data: bytes | None = None, kind: str = "application/json"):
    request = urllib.request.Request(
        urllib.parse.urljoin(f"http://{REGISTRY}/", path),
        data=data,
        method=method,
        headers={"Content-Type": kind},
    )
    return urllib.request.urlopen(request, timeout=podman.TIMEOUT)


def push(
    layer: bytes, name: str, *, entrypoint: list[str], annotations: dict[str, str] | None = None
) -> str:
    """An image of one layer, a tar that is not compressed; REGISTRY/NAME:1 is returned."""
    kind = "application/vnd.oci.image"
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": entrypoint},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": _blob(name, f"{kind}.config.v1+json", json.dumps(config).encode()),
        "layers": [_blob(name, f"{kind}.layer.v1.tar", layer)],
        "annotations": annotations or {},
    }
    text = json.dumps(manifest).encode()
    _call("PUT", f"/v2/{name}/manifests/1", text, str(manifest["mediaType"]))
    return f"{REGISTRY}/{name}:1"


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _blob(name: str, kind: str, data: bytes) -> dict[str, object]:
    place = _call("POST", f"/v2/{name}/blobs/uploads/", b"").headers["Location"]
    mark = "&" if "?" in place else "?"
    query = urllib.parse.urlencode({"digest": _digest(data)})
    _call("PUT", f"{place}{mark}{query}", data, "application/octet-stream")
    return {"mediaType": kind, "digest": _digest(data), "size": len(data)}


def base_layer() -> bytes:
    """One static busybox, and the program that counts (tests/vm/podman.py)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        podman.add_image(tar)
    return packed.getvalue()


# The client. runtime.v1 of Kubernetes' cri-api: MESSAGE field=number:TYPE; s string, i int64, u uint32, e enum, m map
# of strings, else a message; * repeated. Fields that no test needs are left out: protobuf skips them.

_SCHEMA = """
VersionRequest version=1:s
VersionResponse runtime_name=2:s runtime_version=3:s
Metadata name=1:s uid=2:s namespace=3:s attempt=4:u
NamespaceOption network=1:e pid=2:e
SecurityContext namespace_options=1:NamespaceOption
LinuxSandbox security_context=2:SecurityContext
PodSandboxConfig metadata=1:Metadata hostname=2:s log_directory=3:s labels=6:m annotations=7:m linux=8:LinuxSandbox
RunPodSandboxRequest config=1:PodSandboxConfig
RunPodSandboxResponse pod_sandbox_id=1:s
StopPodSandboxRequest pod_sandbox_id=1:s
StopPodSandboxResponse
RemovePodSandboxRequest pod_sandbox_id=1:s
RemovePodSandboxResponse
ImageSpec image=1:s
ContainerMetadata name=1:s attempt=2:u
KeyValue key=1:s value=2:s
ContainerSecurity namespace_options=3:NamespaceOption
LinuxContainer security_context=2:ContainerSecurity
ContainerConfig metadata=1:ContainerMetadata image=2:ImageSpec envs=6:*KeyValue log_path=11:s linux=15:LinuxContainer
CreateContainerRequest pod_sandbox_id=1:s config=2:ContainerConfig sandbox_config=3:PodSandboxConfig
CreateContainerResponse container_id=1:s
StartContainerRequest container_id=1:s
StartContainerResponse
StopContainerRequest container_id=1:s timeout=2:i
StopContainerResponse
RemoveContainerRequest container_id=1:s
RemoveContainerResponse
ContainerStatusRequest container_id=1:s
ContainerStatus id=1:s state=3:e exit_code=7:i reason=10:s message=11:s
ContainerStatusResponse status=1:ContainerStatus
CheckpointContainerRequest container_id=1:s location=2:s timeout=3:i
CheckpointContainerResponse
PullImageRequest image=1:ImageSpec
PullImageResponse image_ref=1:s
"""
_TYPES = {"s": 9, "i": 3, "u": 13, "e": 5}  # FieldDescriptorProto.Type


def _messages() -> dict[str, Any]:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(
        name="cri.proto", package="runtime.v1", syntax="proto3"
    )
    for line in _SCHEMA.split("\n"):
        if not line:
            continue
        name, *fields = line.split()
        message = file.message_type.add(name=name)
        for field in fields:
            key, _, rest = field.partition("=")
            number, _, kind = rest.partition(":")
            added = message.field.add(name=key, number=int(number), label=1)
            if kind.startswith("*") or kind == "m":
                added.label = 3
            kind = kind.lstrip("*")
            if kind in _TYPES:
                added.type = _TYPES[kind]
                continue
            added.type = 11
            if kind == "m":
                kind = f"{name}.{key.title()}Entry"
                entry = message.nested_type.add(name=kind.partition(".")[2])
                entry.options.map_entry = True
                entry.field.add(name="key", number=1, type=9, label=1)
                entry.field.add(name="value", number=2, type=9, label=1)
            added.type_name = f".runtime.v1.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindFileByName(file.name).message_types_by_name
    return {name: message_factory.GetMessageClass(each) for name, each in found.items()}


class Refused(Exception):
    """A call failed; the text is the server's."""


class Client:
    """`call("StartContainer", container_id=...)`."""

    def __init__(self, socket: Path) -> None:
        if str(TOOLS / "python") not in sys.path:
            sys.path.append(str(TOOLS / "python"))
        import grpc

        self._grpc = grpc
        self._messages = _messages()
        self._channel = grpc.insecure_channel(
            f"unix://{socket}", options=[("grpc.default_authority", "localhost")]
        )

    def call(self, method: str, seconds: float = podman.TIMEOUT, **fields: object) -> Any:
        """Raises Refused."""
        service = "ImageService" if method == "PullImage" else "RuntimeService"
        request = self._messages[method + "Request"]
        remote = self._channel.unary_unary(
            f"/runtime.v1.{service}/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=self._messages[method + "Response"].FromString,
        )
        try:
            return remote(request(**fields), timeout=seconds)
        except self._grpc.RpcError as error:
            raise Refused(f"{method}: {error.details()}") from None

    def close(self) -> None:
        self._channel.close()


# The daemon


class Containerd:
    """A node: a containerd with directories of its own. Usable when the constructor returns."""

    def __init__(self, directory: Path, path: str = PATH) -> None:
        self.directory = directory
        self._path = path
        self.root, self.state = directory / "root", directory / "state"
        self.log = directory / "log"
        directory.mkdir()
        (directory / "config.toml").write_text(
            f"version = 3\nroot = '{self.root}'\nstate = '{self.state}'\n"
            f"[grpc]\naddress = '{directory / 'socket'}'\n"
            "[plugins.'io.containerd.cri.v1.images'.pinned_images]\n"
            f"sandbox = '{REGISTRY}/pause:1'\n"
        )
        Path("/etc/resolv.conf").touch()  # it does not start a sandbox without
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [TOOLS / "usr/bin/containerd", "--config", self.directory / "config.toml"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": self._path},  # no XDG_RUNTIME_DIR, as a service of the system has none
            )
        self.client = Client(self.directory / "socket")
        sealed.wait_until(self._is_ready, "containerd's CRI answers", podman.TIMEOUT)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        try:
            self.client.call("Version", seconds=5)
        except Refused:
            time.sleep(0.2)
            return False
        return True

    def call(self, method: str, **fields: object) -> Any:
        return self.client.call(method, **fields)

    def stop(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(podman.TIMEOUT)


class Pod:
    """A pod sandbox in the machine's network."""

    def __init__(self, node: Containerd, namespace: str = "tests") -> None:
        self.node = node
        self.name = name = f"pod-{secrets.token_hex(4)}"
        self.logs = node.directory / "logs" / name
        self.logs.mkdir(parents=True)
        self.config = {
            "metadata": {"name": name, "uid": secrets.token_hex(8), "namespace": namespace},
            "log_directory": str(self.logs),
            "linux": {"security_context": {"namespace_options": _NAMESPACES}},
        }
        self.id = node.call("RunPodSandbox", config=self.config).pod_sandbox_id

    def create(self, image: str, environment: dict[str, str]) -> str:
        """A container's ID; it is not started."""
        config = {
            "metadata": {"name": "counter"},
            "image": {"image": image},
            "envs": [{"key": key, "value": value} for key, value in environment.items()],
            "log_path": "counter.log",
            "linux": {"security_context": {"namespace_options": _NAMESPACES}},
        }
        fields = {"pod_sandbox_id": self.id, "config": config, "sandbox_config": self.config}
        return str(self.node.call("CreateContainer", **fields).container_id)

    def remove(self) -> None:
        """With its containers."""
        with contextlib.suppress(Refused):
            self.node.call("StopPodSandbox", pod_sandbox_id=self.id)
            self.node.call("RemovePodSandbox", pod_sandbox_id=self.id)


class Counter:
    """The container that counts; where a file of its own can be looked into, it runs."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod
        self.since = time.time() - 1  # clocks of file systems are coarse
        word = secrets.token_hex(6)
        self.needles = {
            name: f"{word}-{name}-{secrets.token_hex(12)}".encode() for name in MEMORY + REST
        }
        self.environment = {"SECRET": self.needles["env"].decode()}
        self.id = pod.create(BASE, self.environment)
        pod.node.call("StartContainer", container_id=self.id)
        self.view = podman.View(self.needles["env"])
        sealed.wait_until(
            lambda: self.view.processes() and self.view.path("/in").is_fifo(),
            "the container has started",
            podman.TIMEOUT,
        )
        words = [self.needles[name] for name in ("heap", "pipe", "unlinked")]
        self.view.path("/in").write_bytes(b" ".join(words) + b"\n")
        self.view.path("/changed").write_bytes(self.needles["file"])
        Path(f"/proc/{self.view.processes()[0]}/fd/1").write_bytes(self.needles["stdout"] + b"\n")
        sealed.wait_until(
            lambda: self.needles["stdout"] in (pod.logs / "counter.log").read_bytes(),
            "it is in the pod's log",
            podman.TIMEOUT,
        )
        self.view.assert_counts()

    def checkpoint(self, location: Path) -> None:
        self.pod.node.call(
            "CheckpointContainer", container_id=self.id, location=str(location), timeout=0
        )

    def kill(self) -> None:
        self.pod.node.call("StopContainer", container_id=self.id, timeout=0)
        sealed.wait_until(lambda: not self.view.processes(), "it has ended", podman.TIMEOUT)


# The search


def found_below(
    directories: list[Path], needles: dict[str, bytes], since: float
) -> set[tuple[str, str]]:
    """(file, name of the needle): in regular files as they are, and in what is packed in them.

    since: files whose inode has not changed from then on are left out (unix time).
    """
    found = set()
    for directory in directories:
        for path, _, names in os.walk(directory):
            for name in names:
                file = Path(path) / name
                with contextlib.suppress(OSError):  # gone, or not to be read
                    info = file.lstat()
                    if not stat.S_ISREG(info.st_mode) or info.st_ctime < since or not info.st_size:
                        continue
                    assert info.st_size < _LARGEST, f"{file} is too large to be searched"
                    for data in unpacked(file.read_bytes()):
                        found |= {(str(file), each) for each, n in needles.items() if n in data}
    return found


def unpacked(data: bytes) -> Iterator[bytes]:
    """The bytes themselves; of gzip also what is packed; of a tar also its packed members."""
    yield data
    if data.startswith(b"\x1f\x8b"):
        with contextlib.suppress(OSError, EOFError, zlib.error):
            yield gzip.decompress(data)
    elif data[257:262] == b"ustar":
        with (
            contextlib.suppress(
                tarfile.TarError, EOFError, OSError, KeyError
            ),  # links into nowhere
            tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar,
        ):
            for member in tar:
                reader = tar.extractfile(member)
                packed = reader.read() if reader else b""
                if packed.startswith(b"\x1f\x8b"):
                    yield from unpacked(packed)
