"""The sealed file as bytes: slots, stanzas, chunk streams, manifests, index, statements, trailer.

`docs/spec.md` is normative; this package implements it and knows nothing of CRIU, of key files or of trust.
"""
