"""The service as an application: its paths, what they take and what they answer. `service.py` does the work."""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.security import APIKeyHeader
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from captioning.serving.answers import Description, Error, Several, description
from captioning.serving.captioner import Asked
from captioning.serving.journal import GONE, Journal, Metrics, logger
from captioning.serving.problems import KINDS, Problem
from captioning.serving.service import BEAM_SIZES, LENGTHS, Room, Service
from captioning.serving.uploads import pictures_in

STATIC = Path(__file__).parent / "page"
IMAGE = {"schema": {"type": "string", "format": "binary"}}
BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}},
            }
        },
        "image/jpeg": IMAGE,
        "image/png": IMAGE,
        "image/webp": IMAGE,
        "application/octet-stream": IMAGE,
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["image_url"],
                "properties": {"image_url": {"type": "string"}},
                "additionalProperties": False,
            }
        },
    },
}


def application(
    service: Service, model: dict[str, Any], *, api_key: str | None = None, origins: Sequence[str] = (), end: Any = lambda reason: None
) -> Journal:
    """model: what `/v1/model` says of it. api_key: asked of all who describe. origins: whose pages may ask from a browser (CORS).
    end: called with a reason where the process must end."""
    metrics = Metrics()
    service.batcher.on_batch = metrics.batch

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        watch = asyncio.create_task(service.watch(end))
        watch.add_done_callback(lambda its: its.cancelled() or end(f"the watch over the model failed: {its.exception()}"))
        yield
        watch.cancel()
        service.close()

    app = FastAPIOffline(
        title="captioning",
        version=model["captioning"],
        description="Describes images with a trained captioning model.",
        lifespan=life,
        static_url="/docs-files",
        redoc_url=None,
    )
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Content-Type", "X-API-Key", "X-Request-ID"],
            expose_headers=["X-Request-ID", "Retry-After"],
        )
    answer_problems(app)
    key_header = APIKeyHeader(name="X-API-Key", auto_error=False)

    def known(key: Annotated[str | None, Security(key_header)]) -> None:
        if not hmac.compare_digest((key or "").encode(), (api_key or "").encode()):
            raise Problem("unauthorized", "an API key is needed, in the header X-API-Key" if not key else "this API key is wrong")

    protected = [Depends(known)] if api_key else []

    @app.post(
        "/describe",
        response_model=Description | Several,
        response_model_exclude_unset=True,
        responses={status: {"model": Error} for status in sorted({kind.status for kind in KINDS.values()})},
        openapi_extra={"requestBody": BODY},
        dependencies=protected,
    )
    async def describe(
        request: Request,
        detail: Annotated[bool, Query(description="candidates, words with attention, frame, model and timing too")] = False,
        beam_size: Annotated[int | None, Query(ge=1, le=BEAM_SIZES, description="default: 3, or num_captions if that is more")] = None,
        max_length: Annotated[int, Query(ge=1, le=LENGTHS, description="words at most")] = 30,
        num_captions: Annotated[int, Query(ge=1, le=BEAM_SIZES, description="candidates, at most beam_size")] = 1,
    ) -> Response:
        """One sentence about each image. Several files in one form are answered in their order, each with a description or an error."""
        if beam_size is not None and num_captions > beam_size:
            raise Problem("invalid_parameter", f"num_captions={num_captions}: at most beam_size={beam_size}")
        asked = Asked(beam_size or max(3, num_captions), max_length, num_captions, detail and model["attends"])
        if problem := service.refusal(1):
            raise problem
        with Room(service) as room:
            pictures = await pictures_in(request, room, service.limits, service.download)
            request.state.pictures = len(pictures)
            room.enter(len(pictures))
            deadline, turn = time.monotonic() + service.limits.deadline, asyncio.Lock()
            from_url = request.headers.get("content-type", "").lower().startswith("application/json")

            async def one(picture: bytes) -> dict[str, Any] | Problem:
                try:
                    described = await service.describe(picture, asked, deadline, turn, shows=detail and from_url)
                    return description(described, captions=num_captions, detail=detail, model=model)
                except Problem as problem:
                    return problem
                except Exception:  # of one picture: the others are answered
                    logger.exception("request", extra={"fields": {"id": request.state.request_id}})
                    return Problem("internal", "a fault of the service")

            results = await while_there(request, [one(picture) for picture in pictures])
        if len(results) > 1:
            fine = [its.body(request.state.request_id) if isinstance(its, Problem) else its for its in results]
            return JSONResponse({"results": fine})
        if isinstance(results[0], Problem):
            raise results[0]
        return JSONResponse(results[0])

    @app.get("/v1/model", dependencies=protected)
    async def about() -> dict[str, Any]:
        """The model, and what may be asked of it."""
        limits = {"bytes": service.limits.bytes, "images": service.limits.images, "beam_size": BEAM_SIZES, "max_length": LENGTHS}
        return model | {"limits": limits, "image_url": service.download is not None}

    @app.get("/healthz")
    async def alive() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"description": "the model is not working just now"}})
    async def ready() -> Response:
        """The model works."""
        return JSONResponse({"status": service.state}, 200 if service.state == "ready" else 503)

    @app.get("/metrics", dependencies=protected, response_class=Response)
    async def numbers() -> Response:
        """For Prometheus."""
        metrics.inside.set(service.inside)
        metrics.ready.set(service.state == "ready")
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html")

    app.mount("/page", StaticFiles(directory=STATIC))
    return Journal(app, metrics)


async def while_there(request: Request, work: list[Any]) -> list[Any]:
    """What each gives. Where the client leaves, the work is dropped."""
    tasks = [asyncio.ensure_future(its) for its in work]
    left = asyncio.ensure_future(request.receive())  # after the body there is nothing to receive but its leaving
    pending = set(tasks)
    try:
        while pending:
            finished, _ = await asyncio.wait({*pending, left}, return_when=asyncio.FIRST_COMPLETED)
            pending -= finished
            if left in finished and pending:
                raise ClientDisconnect
        return [its.result() for its in tasks]
    finally:
        for its in (*tasks, left):
            its.cancel()


def answer_problems(app: FastAPI) -> None:
    """All errors have one shape."""

    def answered(request: Request, problem: Problem, headers: Any = None) -> Response:
        request.state.code = problem.code
        more = {"Retry-After": str(problem.retry_after)} if problem.retry_after else {}
        return JSONResponse(problem.body(request.state.request_id), problem.status, headers=dict(headers or {}) | more)

    @app.exception_handler(Problem)
    async def problem(request: Request, error: Problem) -> Response:
        return answered(request, error)

    @app.exception_handler(RequestValidationError)
    async def parameter(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return answered(request, Problem("invalid_parameter", f"{first['loc'][-1]}: {first['msg']}"))

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=GONE)  # nobody reads it; it is counted

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        return answered(request, Problem("internal", "a fault of the service"))

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        return answered(request, Problem(code, str(error.detail)), error.headers)
