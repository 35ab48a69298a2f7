"""The address of the server: taken first, and opened when the models are loaded. Imports nothing slow."""

from __future__ import annotations

import socket

from prunekit.config.errors import ConfigError


def bind(host: str, port: int) -> socket.socket:
    """Return a socket with an address that does not listen yet, so nobody waits while models are loaded.

    Raises:
        ConfigError: the address is not of this machine, or the port is taken.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    # a port is free as soon as its last server ended; the connections of that one may still be closing
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # inherited by connections; without it, a response's body waits 40 ms for the client to acknowledge its head
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise _taken(f"host={host} port={port}", error) from error
    return bound


def listen(bound: socket.socket) -> str:
    """Open the port and return the server's address. Raises ConfigError if another server took it meanwhile."""
    host, port = bound.getsockname()[:2]
    try:
        bound.listen(1024)
    except OSError as error:
        raise _taken(f"host={host} port={port}", error) from error
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _taken(place: str, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot listen on {place} ({error.strerror or error}).\n"
        "Allowed: an address of this machine and a free port.\nGive another port, or port=0 for any."
    )
