"""podman's checkpoints as one sealed file each, with podman unchanged: all of its archive, not CRIU's images alone.

Podman runs as it always does.  CRIU's images go straight into the sealed file, by a `criu` of ours that podman finds
first (`sealpoint.dropin.relay`); the rest of podman's archive comes through a pipe.  What podman writes on the way lies
in memory, in a mount namespace of its own.  On restore podman reads links that lead into a verified view.
"""
