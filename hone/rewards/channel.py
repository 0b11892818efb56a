"""Messages between the pool and its processes: a length of eight bytes, then so many bytes.

Used by `pool.py` and `worker.py`. What comes from a process is JSON: the pool unpickles nothing
that a person's code could have written.
"""

import socket
import struct
import time

_LENGTH = struct.Struct("!Q")


class Ended(Exception):
    """The other side is gone."""


def send(channel: socket.socket, message: bytes, limit_s: float | None = None) -> None:
    """Send a message; raises Ended, and TimeoutError where nobody takes it."""
    channel.settimeout(limit_s)
    try:
        channel.sendall(_LENGTH.pack(len(message)) + message)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise Ended from error


def receive(channel: socket.socket, limit_s: float | None = None) -> bytes:
    """The next message; raises Ended, and TimeoutError where it is not whole in time."""
    end = None if limit_s is None else time.monotonic() + limit_s
    (length,) = _LENGTH.unpack(_receive(channel, _LENGTH.size, end))
    return _receive(channel, length, end)


def _receive(channel: socket.socket, length: int, end: float | None) -> bytes:
    pieces = bytearray()
    while len(pieces) < length:
        if end is not None:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError
            channel.settimeout(left)
        else:
            channel.settimeout(None)
        try:
            piece = channel.recv(min(length - len(pieces), 2**20))
        except ConnectionResetError as error:
            raise Ended from error
        if not piece:
            raise Ended
        pieces += piece
    return bytes(pieces)
