"""What an engine says of the container in a checkpoint: config.dump, spec.dump, status.dump, network.status.

They are of the memory role, because spec.dump holds the environment.  With a metadata identity the sealer's summary
takes their place, which has the container's id, name, image and runtime.  Formats: podman's, CRI-O's and containerd's
own JSON; whatever is missing or of another type is left out.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any, Final

from sealpoint import names
from sealpoint.checkpoint import summary
from sealpoint.errors import left_out
from sealpoint.inspect.sealed import SealedSource
from sealpoint.inspect.source import Images

_LIMIT: Final = 16 * 1024 * 1024
_NEVER: Final = "0001-01-01T00:00:00Z"  # Go's zero time
_DOCUMENTS: Final = ("config.dump", "spec.dump", "status.dump", "network.status")


@dataclass(slots=True)
class Container:
    """Texts are "" where nothing says them.  mounts: as spec.dump lists them, None where that is not there."""

    name: str = ""
    image: str = ""
    id: str = ""
    runtime: str = ""
    created: str = ""
    checkpointed: str = ""
    engine: str = ""
    ip: str = ""
    mac: str = ""
    pod: str = ""
    namespace: str = ""
    annotations: dict[str, str] = field(default_factory=dict)
    mounts: list[dict[str, str]] | None = None
    withheld: list[str] = field(default_factory=list)


def describe(images: Images) -> Container:
    """The container to which a dump belongs; mostly empty for a dump without one.  Raises FileError."""
    base = images.prefix.removesuffix("checkpoint/") if images.prefix else ""
    found = Container()
    documents: dict[str, dict[str, Any]] = {}
    for name in _DOCUMENTS:
        documents[name] = {}
        if images.source.exists(base + name):
            data = images.source.read(base + name, _LIMIT)
            documents[name] = _object(data, f"{images.source.label}:{base}{name}")
        elif images.source.withheld(base + name):
            found.withheld.append(base + name)
    _from_summary(images, found)
    _from_config(found, documents["config.dump"])
    _from_spec(found, documents["spec.dump"])
    _from_status(found, documents["status.dump"])
    _from_network(found, documents["network.status"])
    return found


def _object(data: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(names.text(data))
    except (ValueError, RecursionError):
        left_out(f"{where}: is not JSON, so it is not shown")
        return {}
    if isinstance(value, list):  # podman's network.status of several networks
        value = value[0] if value and isinstance(value[0], dict) else {}
    return value if isinstance(value, dict) else {}


def _text(value: Any, *keys: str) -> str:
    """The first of the members that is a text and says something."""
    for key in keys:
        item = value.get(key) if isinstance(value, dict) else None
        if isinstance(item, str) and item not in ("", _NEVER):
            return item
    return ""


def _from_summary(images: Images, found: Container) -> None:
    data = images.source.summary() if isinstance(images.source, SealedSource) else None
    if data is None:
        return
    told = summary.decode(data)["container"]
    found.id, found.name = told.get("container", ""), told.get("name", "")
    found.image, found.runtime = told.get("image", ""), told.get("runtime", "")


def _from_config(found: Container, config: dict[str, Any]) -> None:
    found.name = _text(config, "name") or found.name
    found.id = _text(config, "id") or found.id
    found.image = _text(config, "rootfsImageName", "rootfsImage") or found.image
    found.runtime = _text(config, "runtime") or found.runtime
    found.created = _text(config, "createdTime")
    found.checkpointed = _text(config, "checkpointedTime")


def _from_spec(found: Container, spec: dict[str, Any]) -> None:
    annotations = spec.get("annotations")
    if isinstance(annotations, dict):
        found.annotations = {k: v for k, v in annotations.items() if isinstance(v, str)}
    told = found.annotations
    if told.get("io.container.manager") == "libpod":
        found.engine = "Podman"
    elif "io.kubernetes.cri.container-type" in told:
        found.engine = "containerd"
    elif told.get("io.container.manager") == "cri-o":
        found.engine = "CRI-O"
    elif told:
        found.engine = told.get("io.container.manager", "")
    found.name = told.get(
        "io.kubernetes.container.name", told.get("io.kubernetes.cri.container-name", found.name)
    )
    found.pod = _text(told, "io.kubernetes.pod.name", "io.kubernetes.cri.sandbox-name")
    found.namespace = _text(
        told, "io.kubernetes.pod.namespace", "io.kubernetes.cri.sandbox-namespace"
    )
    found.created = _text(told, "io.kubernetes.cri-o.Created") or found.created
    found.ip = _text(told, "io.kubernetes.cri-o.IP.0")
    mounts = spec.get("mounts")
    if isinstance(mounts, list):
        found.mounts = [
            {
                "destination": _text(m, "destination"),
                "type": _text(m, "type"),
                "source": _text(m, "source"),
            }
            for m in mounts
            if isinstance(m, dict)
        ]


def _from_status(found: Container, status: dict[str, Any]) -> None:
    created = status.get("created_at")
    if not found.created and isinstance(created, int) and 0 < created < 1 << 62:
        found.created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(created // 1_000_000_000))


def _from_network(found: Container, status: dict[str, Any]) -> None:
    networks: Any = status if "interfaces" in status else next(iter(status.values()), {})
    interfaces = networks.get("interfaces") if isinstance(networks, dict) else None
    if not isinstance(interfaces, dict):
        return
    for interface in interfaces.values():
        if not isinstance(interface, dict):
            continue
        found.mac = found.mac or _text(interface, "mac_address")
        subnets = interface.get("subnets")
        for subnet in subnets if isinstance(subnets, list) else ():
            found.ip = found.ip or _text(subnet, "ipnet").partition("/")[0]
