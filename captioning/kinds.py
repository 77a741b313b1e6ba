"""Kinds of setting, for constructors' signatures: the signature is the schema of its config node."""

from typing import Annotated

from pydantic import Field

Count = Annotated[int, Field(strict=True, ge=1)]
Whole = Annotated[int, Field(strict=True, ge=0)]
Number = Annotated[float, Field(strict=True, ge=0)]
Positive = Annotated[float, Field(strict=True, gt=0)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1)]
Dropout = Annotated[float, Field(strict=True, ge=0, lt=1)]
