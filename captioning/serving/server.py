"""The service on a port: one process, which answers what it has taken before it ends."""

import asyncio
import gc
import logging
import os
import socket
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import uvicorn

from captioning.errors import UserError
from captioning.serving.app import application
from captioning.serving.journal import AsJson, logger
from captioning.serving.service import Service
from captioning.serving.wire import MORE_PATIENCE, PATIENCE, Wire

HANGS = 70  # exit code (EX_SOFTWARE): the model hangs, which no thread can be freed from


class Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.looking = asyncio.create_task(self.look())

    async def look(self) -> None:
        """At all connections, ten times a second, to the end."""
        while True:
            await asyncio.sleep(0.1)
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                connection.look(now)  # type: ignore[union-attr]


def listen(host: str, port: int) -> socket.socket:
    """Raises UserError where that cannot be."""
    if not 0 <= port < 2**16:
        raise UserError(f"--port {port}: must be from 0 to {2**16 - 1}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)  # of a socket without protocol asyncio would not send small answers at once
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
        return listener
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: cannot listen there ({error.strerror})") from None


def prepared(service: Service, model: dict[str, Any], *, api_key: str | None = None, origins: Sequence[str] = ()) -> Server:
    """Ready to run on a socket."""

    def end(reason: str) -> None:
        logger.critical("%s: the process ends", reason)
        asyncio.get_running_loop().call_later(0.5, os._exit, HANGS)  # those who waited are told first

    app = application(service, model, api_key=api_key, origins=origins, end=end)
    config = uvicorn.Config(
        app,
        http=partial(Wire, service, app.refused, frozenset(origins)),  # type: ignore[arg-type]
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=int(PATIENCE),
        timeout_graceful_shutdown=int(service.limits.deadline + PATIENCE + MORE_PATIENCE),  # a body may take so long to come
    )
    return Server(config)


def serve(server: Server, listener: socket.socket, name: str) -> None:
    """Until a signal ends it: then nothing new is taken, all that was is answered, and this returns."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(AsJson())
    for its, level in ((logger, logging.INFO), (logging.getLogger("uvicorn.error"), logging.WARNING)):
        its.handlers, its.propagate = [handler], False
        its.setLevel(level)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    logger.info("listening", extra={"fields": {"url": f"http://{shown}:{port}/", "model": name}})
    gc.collect()
    gc.freeze()  # what is there now stays: to look through all of PyTorch for garbage again would hold up everybody for 0.2 s
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn hands the signal on once all is answered
        logger.info("ended")
