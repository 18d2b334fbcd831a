"""To whom an archive is sealed: everybody's recipients, and those that its Kubernetes namespace adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sealpoint.agent.faults import RefusedArchiveError
from sealpoint.dropin import pod as pods
from sealpoint.dropin.pod import Pod
from sealpoint.errors import PolicyError

if TYPE_CHECKING:
    from sealpoint.checkpoint import Sealing


@dataclass(frozen=True)
class NodeSealing:
    """everybody: of what is in no namespace that has a table; namespaces: of the others.

    cluster: its name, so that the workload that is signed names the container; "" for no workload.
    """

    everybody: Sealing
    namespaces: Mapping[str, Sealing] = field(default_factory=dict)
    cluster: str = ""

    def of(self, pod: Pod | None) -> Sealing:
        """For a container."""
        return self.everybody if pod is None else self.namespaces.get(pod.namespace, self.everybody)

    def workload(self, pod: Pod | None) -> str:
        """As the drop-in signs it."""
        return pod.workload(self.cluster) if pod is not None and self.cluster else ""

    def pod(self, name: str, annotations: Mapping[str, str]) -> Pod | None:
        """The container that the specification in an archive names.

        Raises RefusedArchiveError: it names two, or one that cannot be, where anything depends on it.
        """
        try:
            return pods.of_annotations(annotations)
        except PolicyError as error:
            if not (self.cluster or self.namespaces):
                return None
            text = error.message.replace("the runtime's bundle", "its specification")
            raise RefusedArchiveError(f"{name} is refused: {text}") from None
