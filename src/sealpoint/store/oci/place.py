"""A place in a registry: one tag or digest, for `list` a whole repository."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import urljoin

from sealpoint.errors import FileError, SealpointError, SystemEnvironmentError, UsageError
from sealpoint.store.oci.artifact import ACCEPT, RegistryFile, fetch_manifest, open_artifact
from sealpoint.store.oci.client import DELETE, PULL, PUSH, Client, RegistryAnswerError, origin_of
from sealpoint.store.oci.manifest import (
    MEDIA_TYPE,
    ArtifactManifest,
    decode_json,
    digest_of,
    only_layer,
)
from sealpoint.store.oci.reference import ArtifactName, is_tag, parse
from sealpoint.store.oci.referrers import delete_manifests, listed_referrers, move_referrers
from sealpoint.store.oci.upload import RegistryUpload, push_blob
from sealpoint.store.remote import (
    Incomplete,
    RemoteFile,
    Spooled,
    StoredFile,
    UncertainCommitError,
)

_MAX_TAGS: Final = 100_000
_MAX_PAGES: Final = 1000
_MAX_PAGE: Final = 16 * 1024 * 1024
_NEXT: Final = re.compile(r'<([^<>]{1,4096})>\s*;\s*rel="?next"?', re.ASCII)


def open_store(url: str, *, plain_http: bool = False) -> RegistryStore:
    """A place in a registry; sends nothing yet.  plain_http: also to one that is not this machine.

    Raises UsageError.
    """
    reference = parse(url)
    return RegistryStore(Client(reference, plain_http=plain_http), reference)


class RegistryStore:
    """As `Store`."""

    def __init__(self, client: Client, reference: ArtifactName) -> None:
        self.name = str(reference)
        self._client = client
        self._reference = reference

    # --- One file. ---

    def check_free(self, *, force: bool, unconditional: bool) -> None:  # noqa: ARG002 - no registry can create-only
        """As `Store.check_free`."""
        if not self._reference.tag:
            raise UsageError(f"{self.name} names no tag", hint="oci://registry/name:tag")
        if not force and self._digest_of(self._reference.tag, PUSH) is not None:
            raise self._taken()

    def begin(self, spooled: Spooled, *, force: bool, unconditional: bool) -> RegistryUpload:
        """As `Store.begin`."""
        self.check_free(force=force, unconditional=unconditional)

        def finish(manifest: ArtifactManifest) -> str:
            self.check_free(force=force, unconditional=unconditional)
            return self._push(manifest.encode(), self._reference.tag)

        return RegistryUpload(self._client, spooled, f"{self._reference.tag}.sealed", finish)

    def open(self) -> RemoteFile:
        """As `Store.open`."""
        return open_artifact(self._client, self._reference)

    def replace_head(self, file: RemoteFile, head: bytes, properties: Mapping[str, str]) -> str:
        """As `Store.replace_head`.  Every tag of the old manifest is moved; then that is deleted."""
        if not isinstance(file, RegistryFile):
            raise UsageError(f"{self.name} was not opened here")
        manifest = file.manifest
        if manifest is None:
            raise UsageError(
                f"{self.name} lies there in one piece, so its head cannot be replaced",
                hint="give it the layout of sealpoint first: sealpoint copy URL URL --force",
            )
        file.check_new_head(head)
        try:
            blob = push_blob(self._client, head)
            data = manifest._replace(head=blob, properties=properties).encode()
            if self._digest_of(self._reference.where, PULL) != file.digest:
                raise self._overtaken()
            tags = self._same_tags(file.digest)
            url = self._push(data, *(tags or [digest_of(data)]))
        except RegistryAnswerError as error:
            raise self._client.refused(error) from None
        if digest_of(data) == file.digest:
            return url  # nothing was changed
        try:
            move_referrers(self._client, file.digest, data)
            self._delete(file.digest)
        except (SealpointError, RegistryAnswerError) as error:
            why = error.message if isinstance(error, SealpointError) else str(error)
            raise SystemEnvironmentError(
                f"{why}; the new head of {self.name} counts, but the old manifest {file.digest} may still be there",
                hint="delete it by its digest (`sealpoint list` does not show it)",
            ) from None
        if self._digest_of(self._reference.tag or digest_of(data), PULL) != digest_of(data):
            raise self._overtaken()
        return url

    def _same_tags(self, digest: str) -> list[str]:
        """Those that name this manifest, ours first."""
        own = self._reference.tag
        others = [
            tag for tag in self._tags() if tag != own and self._digest_of(tag, PULL) == digest
        ]
        return [own, *others] if own else others

    def _overtaken(self) -> SystemEnvironmentError:
        return SystemEnvironmentError(
            f"{self.name}: someone else changed it at the same time",
            hint="look at it with sealpoint info, then repeat what you still want",
        )

    def remove(self) -> None:
        """As `Store.remove`: the manifest, with all its tags, and what refers to it, which the registry would keep."""
        file = open_artifact(self._client, self._reference)
        try:
            left = listed_referrers(self._client, file.digest)
            self._delete(file.digest)
            delete_manifests(self._client, left)
        except RegistryAnswerError as error:
            raise self._client.refused(error) from None

    # --- Several. ---

    def list(self) -> Iterator[StoredFile]:
        """As `Store.list`: those with a tag in the repository."""
        for tag in self._tags():
            reference = self._reference._replace(tag=tag, digest="")
            try:
                found = fetch_manifest(self._client, tag)
                if found is None:
                    continue
                if only_layer(found.data, str(reference)) is not None:
                    file = RegistryFile(self._client, reference, found)
                    yield StoredFile(file.name, file.size, file.properties)
                else:
                    manifest = ArtifactManifest.decode(found.data, str(reference))
                    yield StoredFile(str(reference), manifest.size, manifest.properties)
            except FileError:
                continue  # something else

    def incomplete(self) -> Iterator[Incomplete]:
        """As `Store.incomplete`: a registry does not tell; it forgets uploads by itself."""
        return iter(())

    def remove_incomplete(self, leftover: Incomplete) -> None:
        """As `Store.remove_incomplete`."""
        raise SystemEnvironmentError(f"{leftover.name}: registries do not show incomplete uploads")

    def close(self) -> None:
        """Let go of connections; more requests open others."""
        self._client.close()

    def _tags(self) -> Iterator[str]:
        target, seen = self._client.path("tags/list"), 0
        for _ in range(_MAX_PAGES):
            try:
                answer = self._client.call("GET", target, PULL, limit=_MAX_PAGE)
            except RegistryAnswerError as error:
                if error.status == 404:
                    raise UsageError(f"{self._client.name} does not exist") from None
                raise self._client.refused(error) from None
            try:
                tags = decode_json(answer.data, f"{self._client.name}: the list of tags").get(
                    "tags"
                )
            except FileError as error:
                raise SystemEnvironmentError(error.message) from None
            for tag in tags if type(tags) is list else []:
                if is_tag(tag):
                    yield tag
                seen += 1
            if seen > _MAX_TAGS:
                break
            following = _next_page(answer.headers.get("Link", ""))
            if not following:
                return
            target = urljoin(answer.url.geturl(), following)
            if origin_of(self._client.locate(target)) != origin_of(answer.url):
                raise SystemEnvironmentError(
                    f"{self._client.name}: the list continues on another server"
                )
        raise SystemEnvironmentError(f"{self._client.name}: the list of tags has no end")

    # --- Manifests. ---

    def _taken(self) -> UsageError:
        return UsageError(f"{self.name} exists already", hint="choose another tag, or use --force")

    def _digest_of(self, where: str, scope: str) -> str | None:
        """Of the manifest that a tag names; None: there is none."""
        try:
            answer = self._client.call(
                "HEAD", self._client.path(f"manifests/{where}"), scope, headers={"Accept": ACCEPT}
            )
        except RegistryAnswerError as error:
            if error.status == 404:
                return None
            raise self._client.refused(error) from None
        return answer.headers.get("Docker-Content-Digest", "unknown")

    def _push(self, data: bytes, *names: str) -> str:
        """Put a manifest under each name, and see that it is there.  Returns the URL by its digest.

        Raises UncertainCommitError, SystemEnvironmentError: then it is not there.
        """
        digest = digest_of(data)
        for name in names:
            problem: SealpointError = self._overtaken()
            try:
                self._client.call(
                    "PUT",
                    self._client.path(f"manifests/{name}"),
                    PUSH,
                    headers={"Content-Type": MEDIA_TYPE},
                    body=data,
                )
            except RegistryAnswerError as error:
                raise self._client.refused(error) from None
            except SystemEnvironmentError as error:
                problem = error  # its answer may have been lost
            try:
                found = fetch_manifest(self._client, name)
            except SealpointError as error:
                raise UncertainCommitError(
                    f"{error.message}; whether {self.name} is there now is not known",
                    hint="check with `sealpoint info` before you try again",
                ) from None
            if found is None or found.digest != digest:
                raise problem
        return str(self._reference.at(digest))

    def _delete(self, digest: str) -> None:
        """A manifest, with all its tags."""
        try:
            self._client.call("DELETE", self._client.path(f"manifests/{digest}"), DELETE)
        except RegistryAnswerError as error:
            if error.status == 404:
                raise self._overtaken() from None
            if error.status == 405:
                raise SystemEnvironmentError(
                    f"{self._client.name}: this registry deletes nothing",
                    hint="to allow it in docker-registry, set `storage: {delete: {enabled: true}}`",
                ) from None
            raise self._client.refused(error) from None


def _next_page(link: str) -> str:
    """Where a list goes on; empty: nowhere."""
    found = _NEXT.search(link[:16384])
    return found[1] if found else ""
