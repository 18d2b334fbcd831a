"""Reading checkpoints, sealed or plain: images as JSON, process trees, files, memory.  Nothing here writes one."""
