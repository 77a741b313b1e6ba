"""What the service answers where it cannot describe: one shape, with codes that do not change."""

from typing import NamedTuple


class Kind(NamedTuple):
    status: int
    about: str  # for the documentation


KINDS = {
    "bad_request": Kind(400, "the request itself is malformed: its JSON, its multipart form, its head"),
    "unauthorized": Kind(401, "an API key is needed, or this one is wrong"),
    "urls_off": Kind(403, "image_url is not allowed here: the service was started without --allow-urls"),
    "not_found": Kind(404, "no such path"),
    "method_not_allowed": Kind(405, "the path is there, with another method"),
    "request_timeout": Kind(408, "the request took too long to arrive"),
    "too_large": Kind(413, "the body is larger than is taken"),
    "too_many_images": Kind(413, "more images, or more other parts, than one request may have"),
    "unsupported_media_type": Kind(415, "a multipart form, an image, or JSON is needed"),
    "invalid_parameter": Kind(422, "a parameter is out of its range"),
    "image_unreadable": Kind(422, "not an image that can be read, or one of too many pixels"),
    "url_refused": Kind(422, "this URL may not be asked for"),
    "url_failed": Kind(422, "the URL gave no answer that can be used"),
    "url_too_large": Kind(422, "what is at the URL is larger than is taken"),
    "url_timeout": Kind(422, "the URL took too long"),
    "url_not_image": Kind(422, "what is at the URL is not an image"),
    "model_failed": Kind(500, "the model cannot work on this image"),
    "internal": Kind(500, "a fault of the service; the log has it under the request's id"),
    "overloaded": Kind(503, "too much is waiting already: try again after Retry-After seconds"),
    "not_ready": Kind(503, "the model is not working just now, or the service is ending"),
    "deadline": Kind(504, "there was no time left to describe it"),
}


class Problem(Exception):
    """One of KINDS, with a sentence for whoever asked."""

    def __init__(self, code: str, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.code, self.message, self.retry_after = code, message, retry_after

    @property
    def status(self) -> int:
        return KINDS[self.code].status

    def body(self, request_id: str) -> dict[str, dict[str, str]]:
        return {"error": {"code": self.code, "message": self.message, "request_id": request_id}}
