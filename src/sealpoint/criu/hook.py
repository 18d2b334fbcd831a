"""Run by CRIU as an action script: ask the sealpoint that drives this CRIU, exit 0 only on its yes.

Started as `python -I -S hook.py SOCKET` and standard library only, because the tree is frozen while it starts.
Silence, a closed connection or a dead sealpoint is a no: CRIU then undoes the dump or kills the restored tasks.
"""

import _socket  # the module below `socket`, which would load enum and selectors: half of the start-up time
import os
import sys

YES = b"1"


def main() -> int:
    """Report the action to the socket and wait for the verdict."""
    action = os.environ.get("CRTOOLS_SCRIPT_ACTION", "")
    try:
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        connection.connect(sys.argv[1])
        connection.sendall(action.encode() + b"\n")
        return 0 if connection.recv(1) == YES else 1
    except OSError as error:
        sys.stderr.write(f"sealpoint hook: {error.strerror}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
