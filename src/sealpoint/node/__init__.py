"""Puts the self-contained bundle and the drop-in `criu` on a host, from a container on it."""
