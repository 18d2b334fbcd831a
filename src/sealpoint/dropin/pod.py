"""Which container of a Kubernetes pod a request is about, from the bundle that the runtime made, and what follows.

containerd's CRI and CRI-O write namespace, pod and container into the annotations of the bundle's config.json, which no
process in the container can reach.  A pod's user can have annotations passed on to there, so where both runtimes' names
are present they must agree.  A bundle counts if its root directory is the one that the request names.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any, Final, NamedTuple

from sealpoint import ownership
from sealpoint.config import SYSTEM_PATH, Config
from sealpoint.errors import PolicyError
from sealpoint.keys.namespace import NAME
from sealpoint.state.container_workload import container_of

PREFIX: Final = "kubernetes/"
# containerd: internal/cri/annotations; CRI-O copies the labels that a kubelet gives every container, last of all.
_FAMILIES: Final = (
    (
        "io.kubernetes.cri.sandbox-namespace",
        "io.kubernetes.cri.sandbox-name",
        "io.kubernetes.cri.container-name",
    ),
    (
        "io.kubernetes.pod.namespace",
        "io.kubernetes.pod.name",
        "io.kubernetes.container.name",
    ),
)
_POD_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")  # an RFC 1123 subdomain
_CRIO: Final = (
    "/run/containers/storage/overlay-containers/{}/userdata",
    "/var/lib/containers/storage/overlay-containers/{}/userdata",
)
_CONFIG: Final = "config.json"
_MAX_CONFIG: Final = 4 * 1024 * 1024


class Pod(NamedTuple):
    """A container, as Kubernetes names it."""

    namespace: str
    pod: str
    container: str

    def workload(self, cluster: str) -> str:
        """None of the names can hold a slash, so that one text is one container."""
        return f"{PREFIX}{cluster}/{self.namespace}/{self.pod}/{self.container}"


def wanted(config: Config) -> bool:
    """Whether anything depends on it."""
    return bool(config.cluster or config.namespaces)


def find(root: str, cwd: str, pid: int) -> Pod | None:
    """The container that a request is about; None if it is none of a pod's, or no bundle can be found.

    root: its root directory as the request names it; cwd: the engine's working directory, which is the bundle when it
    restores, "" when it dumps; pid: of the tree to dump, 0 for none.

    Raises PolicyError: the bundle is another's, or names two pods.
    """
    if not root:
        return None
    places = [cwd, os.path.dirname(root)] if cwd else [os.path.dirname(root)]
    container = container_of(pid, root) if pid > 0 else ""
    if re.fullmatch("[0-9a-f]{64}", container):
        places += [place.format(container) for place in _CRIO]
    for place in dict.fromkeys(places):
        values = _read(os.path.join(place, _CONFIG))
        if values is not None and _is_of(values, place, root):
            return of_annotations(values.get("annotations"))
    return None


def _read(path: str) -> dict[str, Any] | None:
    """None if there is none."""
    try:
        with open(ownership.open_owned(path, "the runtime's bundle"), "rb") as file:
            data = file.read(_MAX_CONFIG + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        raise PolicyError(f"the runtime's bundle {path} cannot be read") from None
    if len(data) > _MAX_CONFIG:
        raise PolicyError(f"the runtime's bundle {path} is larger than {_MAX_CONFIG} bytes")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        raise PolicyError(f"the runtime's bundle {path} is no JSON") from None
    return values if isinstance(values, dict) else None


def _is_of(values: dict[str, Any], place: str, root: str) -> bool:
    """Whether the bundle's root directory is that one."""
    described = values.get("root")
    path = described.get("path") if isinstance(described, dict) else None
    if not isinstance(path, str) or not path:
        return False
    try:
        return os.path.samefile(os.path.join(place, path), root)
    except (OSError, ValueError):
        return False


def of_annotations(annotations: object) -> Pod | None:
    """Of a bundle.  Raises PolicyError: they name two pods, or one that cannot be."""
    if not isinstance(annotations, dict):
        return None
    found: set[Pod] = set()
    for keys in _FAMILIES:
        if keys[0] not in annotations:
            continue
        values = [annotations.get(key) for key in keys]
        for key, value, rule in zip(keys, values, (NAME, _POD_NAME, NAME), strict=True):
            if not isinstance(value, str) or not rule.fullmatch(value):
                raise PolicyError(f"the runtime's bundle has no usable annotation {key}")
        found.add(Pod(*map(str, values)))
    if len(found) > 1:
        both = " and ".join("/".join(pod) for pod in sorted(found))
        raise PolicyError(f"the runtime's bundle names two containers: {both}")
    return found.pop() if found else None


def recipients(config: Config, pod: Pod | None) -> tuple[list[str], list[str]]:
    """(recipients, metadata recipients) of a checkpoint: everybody's, and what the namespace adds."""
    full, metadata = list(config.recipients), list(config.metadata_recipients)
    for table in config.namespaces:
        if pod is not None and table.name == pod.namespace:
            full += [name for name in table.recipients if name not in full]
            metadata += [name for name in table.metadata_recipients if name not in metadata]
    return full, metadata


def require_place(config: Config, pod: Pod | None, workload: str) -> None:
    """Whether a checkpoint may be restored into a container.  pod: that container, None if it is in no pod.

    Raises PolicyError: it is another cluster's or namespace's.
    """
    if not config.cluster or _allowed(workload, config.restore_from):
        return
    hint = (
        f"if that is meant, add {workload or '<its workload>'!r} to restore_from in {SYSTEM_PATH}"
    )
    if pod is None:
        if workload.startswith(PREFIX):
            raise PolicyError(
                f"the checkpoint is of {workload}, and what is restored is in no pod here",
                hint=hint,
            )
        return
    own = f"{PREFIX}{config.cluster}/{pod.namespace}/"
    if not workload.startswith(own):
        raise PolicyError(
            f"the checkpoint is of {workload or 'no workload'}, not of {own}*", hint=hint
        )


def _allowed(workload: str, patterns: tuple[str, ...]) -> bool:
    return any(workload.startswith(p[:-1]) if p.endswith("*") else workload == p for p in patterns)
