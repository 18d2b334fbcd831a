"""Joins format, keys and CRIU: capture a run into a sealed file, serve it back, archives, recipients."""
