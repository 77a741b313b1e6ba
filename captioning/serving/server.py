"""The service on a port: one process, which answers what it has taken before it ends."""

import asyncio
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
from captioning.serving.journal import AsJson
from captioning.serving.service import Service
from captioning.serving.wire import PATIENCE, Wire

logger = logging.getLogger("captioning.serve")
HEAD_BYTES = 2**14  # a request's line and headers
HANGS = 70  # exit code (EX_SOFTWARE): the model hangs, which no thread can be freed from


class Server(uvicorn.Server):
    """`/readyz` is red as soon as the process is told to end."""

    service: Service

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.service.draining = True
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """Raises UserError where that cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)  # of a socket without protocol asyncio would not send small answers at once
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
        return listener
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port}: cannot listen there ({reason})") from None


def prepared(service: Service, model: dict[str, Any], *, api_key: str | None = None, origins: Sequence[str] = ()) -> Server:
    """Ready to run on a socket."""

    def end(reason: str) -> None:
        logger.critical("%s: the process ends", reason)
        asyncio.get_running_loop().call_later(0.5, os._exit, HANGS)  # those who waited are told first

    app = application(service, model, api_key=api_key, origins=origins, end=end)
    config = uvicorn.Config(
        app,
        http=partial(Wire, service, app.refused),  # type: ignore[arg-type]
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=int(PATIENCE),
        timeout_graceful_shutdown=int(service.limits.deadline + PATIENCE),
        h11_max_incomplete_event_size=HEAD_BYTES,
    )
    server = Server(config)
    server.service = service
    return server


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
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn hands the signal on once all is answered
        logger.info("ended")
