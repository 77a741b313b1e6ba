"""The JSON that the service answers with."""

import base64
import io
import math
from typing import Any

from pydantic import BaseModel, Field

from captioning.serving.captioner import Candidate
from captioning.serving.service import Described


class ErrorDetail(BaseModel):
    code: str = Field(description="one of a fixed list, for programs")
    message: str = Field(description="one sentence, for people")
    request_id: str


class Error(BaseModel):
    error: ErrorDetail


class OneCandidate(BaseModel):
    description: str
    log_p: float = Field(description="the model's log-probability of it, natural logarithm, all words and the end together")


class Word(BaseModel):
    word: str
    attention: list[list[float]] | None = Field(description="where the model looked for it: rows of cells of the frame, or null")


class Frame(BaseModel):
    """What the model saw of the upright picture, as shares of its width and height."""

    left: float
    top: float
    width: float
    height: float


class Timing(BaseModel):
    waited_ms: float = Field(description="until the model began: decoding and waiting")
    model_ms: float = Field(description="of the batch it was in")


class Description(BaseModel):
    description: str = Field(examples=["A person playing guitar on stage."])
    candidates: list[OneCandidate] | None = Field(None, description="best first; with num_captions or detail")
    words: list[Word] | None = Field(None, description="of the first candidate; with detail")
    frame: Frame | None = Field(None, description="with detail")
    picture: str | None = Field(None, description="what the model saw as a data: URL; with detail, where a URL was given")
    model: dict[str, Any] | None = Field(None, description="with detail")
    timing: Timing | None = Field(None, description="with detail")


class Several(BaseModel):
    results: list[Description | Error] = Field(description="in the order of the files")


def description(described: Described, *, captions: int, detail: bool, model: dict[str, Any]) -> dict[str, Any]:
    """Of one picture; keys that were not asked for are left out."""
    best = described.candidates[0]
    answer: dict[str, Any] = {"description": best.description}
    if detail or captions > 1:
        answer["candidates"] = [{"description": its.description, "log_p": round(its.log_p, 4)} for its in described.candidates]
    if detail:
        answer["words"] = words_of(best)
        answer["frame"] = described.frame._asdict()
        answer["model"] = model
        answer["timing"] = {"waited_ms": round(1000 * described.waited, 1), "model_ms": round(1000 * described.worked, 1)}
        if described.seen is not None:
            file = io.BytesIO()
            described.seen.save(file, format="JPEG", quality=85)
            answer["picture"] = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return answer


def words_of(candidate: Candidate) -> list[dict[str, Any]]:
    words = candidate.caption.split()
    if candidate.attention is None:
        return [{"word": word, "attention": None} for word in words]
    side = math.isqrt(candidate.attention.shape[1])  # pictures are squares, and so are their grids
    maps = candidate.attention.unflatten(1, (side, -1)).tolist()
    return [{"word": word, "attention": [[round(value, 4) for value in row] for row in its]} for word, its in zip(words, maps)]
