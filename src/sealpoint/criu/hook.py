"""Run by CRIU as an action script: ask the sealpoint that drives this CRIU, exit 0 only on its yes.

Started as `python -I -S hook.py DIRECTORY` and standard library only, because the tree is frozen while it starts.  In
the directory, which only root can enter, are the gate's socket and a nonce of this run.  Either side proves that it has
read the nonce: the hook with its first half, the gate with the other.  Silence, a closed connection, a peer that is not
root, a wrong nonce or a dead sealpoint is a no: CRIU then undoes the dump or kills the restored tasks.
"""

import _socket  # the module below `socket`, which would load enum and selectors: half of the start-up time
import os
import sys

YES = b"1"
SOCKET = "gate.sock"
NONCE = "gate.nonce"
HALF = 32  # bytes of the nonce: first what the hook sends, then what the gate sends with its yes


def main() -> int:
    """Report the action to the gate and wait for the verdict."""
    action = os.environ.get("CRTOOLS_SCRIPT_ACTION", "")
    directory = sys.argv[1]
    try:
        nonce = read_nonce(f"{directory}/{NONCE}")
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        connection.connect(f"{directory}/{SOCKET}")
        if peer(connection) != 0:
            return _no("the process that listens at the gate is not root's")
        connection.sendall(nonce[:HALF] + action.encode() + b"\n")
        answer = receive(connection, len(YES) + HALF)
    except OSError as error:
        return _no(error.strerror or "the gate does not answer")
    return 0 if same(answer, YES + nonce[HALF:]) else 1


def _no(reason: str) -> int:
    sys.stderr.write(f"sealpoint hook: {reason}\n")
    return 1


def read_nonce(path: str) -> bytes:
    """Both halves.  Raises OSError: no file, or one that others than root could have read or written."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        nonce = os.read(fd, 2 * HALF + 1)
    finally:
        os.close(fd)
    if status.st_uid != 0 or status.st_mode & 0o077 or len(nonce) != 2 * HALF:
        raise OSError(1, "the nonce of the gate is not root's alone")
    return nonce


def peer(connection: _socket.socket) -> int:
    """User ID of the other side, as the kernel noted it."""
    credentials = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], sys.byteorder)


def receive(connection: _socket.socket, size: int) -> bytes:
    """Exactly `size` bytes, fewer if the other side hangs up.  Raises OSError."""
    data = b""
    while len(data) < size and (piece := connection.recv(size - len(data))):
        data += piece
    return data


def same(one: bytes, other: bytes) -> bool:
    """Compares without telling by its time how much is the same."""
    difference = len(one) ^ len(other)
    for a, b in zip(one, other, strict=False):
        difference |= a ^ b
    return difference == 0


if __name__ == "__main__":
    sys.exit(main())
