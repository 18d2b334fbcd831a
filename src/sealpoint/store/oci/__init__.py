"""Sealed files in OCI registries (`oci://registry/name:tag`, `oci://registry/name@sha256:...`).

**Layout.**  A sealed file is an artifact: an image manifest of OCI 1.1 and its blobs.

| part | media type | what it is |
|---|---|---|
| manifest | `application/vnd.oci.image.manifest.v1+json` | at most 4 MiB; pushed last, it makes the file |
| its `artifactType` | `application/vnd.sealpoint.checkpoint.v1` | what readers look for |
| its `config` | `application/vnd.oci.empty.v1+json` | `{}` |
| first layer | `application/vnd.sealpoint.head.v1` | the head: the first 64 + 2S bytes |
| further layers | `application/vnd.sealpoint.body.v1` | the body, in order, at most 4 GiB each |
| annotations | | public facts, and `org.opencontainers.image.title` |

Exactly one head, which comes first, and at least one body.  All layers one after the other are exactly the local file:
`oras pull` writes them under their titles, and `cat` puts them together.  An artifact of another type is one as well if
its only layer begins with the magic of a sealed file, as other tools put it there; any other is refused with its type.

- *Writing*: the layers of the body, by PATCHes one after the other, and each closed by its digest; the head; the
  manifest, after a look that the tag is free; then the tag is read back.  Registries have no conditional PUT: of two
  that write one tag at the same time, the earlier may be told that it succeeded; its digest stays.
- *Reading*: by the tag once; from then on everything by its digest, so that a tag that moves changes nothing.
- *Rekey*: a new manifest with a new head over the same layers; every tag that names the old manifest is moved, and the
  old manifest is deleted.  What refers to it (signatures) is attached to the new one.
- *Removing*: the manifest, with all its tags and what refers to it.  Space comes back by the registry's own garbage
  collection.

The manifest digest changes with a rekey and identifies nothing; the origin digest does.  Nothing of this is proved by
the registry: what is read is verified as a local file is.

**Client.**  On `wire.Wire`, with nothing but the standard library (docs/adr/0064).
"""

from __future__ import annotations

from sealpoint.store.oci.place import RegistryStore, open_store

__all__ = ["RegistryStore", "open_store"]
