"""Where sealed files live: a path, a pipe, memory.  Knows nothing of what is in them."""
