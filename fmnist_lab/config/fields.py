"""The vocabulary of a config's types: numbers and texts with bounds, and the node that holds them.

They stand in the classes of `schema`, and in the signatures of models and schedules. The message
about a wrong value has the field's description, or its choices, and an example: the field's own,
or the value in `conf/`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1, description="a whole number, 1 or more")]
Share = Annotated[
    float,
    Field(ge=0, lt=1, description="a number from 0 up to, not including, 1", examples=[0.1]),
]
Text = Annotated[str, Field(min_length=1, description="a text")]
OptionalText = Annotated[str | None, Field(min_length=1, description="a text, or null")]
OptionalCount = Annotated[
    int | None, Field(ge=1, description="a whole number, 1 or more, or null for all")
]
Fraction = Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1", examples=[0.5])]
Flag = Annotated[bool, Field(description="true or false")]
Seed = Annotated[int, Field(ge=0, lt=2**32, description="a whole number from 0 to 4294967295")]
OptionalSeed = Annotated[
    int | None,
    Field(ge=0, lt=2**32, description="a whole number from 0 to 4294967295, or null"),
]
Indices = Annotated[
    Annotated[str, Field(min_length=1)] | list[Annotated[int, Field(ge=0)]] | None,
    Field(description="the path of a file with indices of images, a list of them, or null"),
]
Table = Annotated[
    Annotated[str, Field(min_length=1)] | list[list[float]] | None,
    Field(description="the path of a CSV file of probabilities, or null"),
]
Positive = Annotated[float, Field(gt=0, description="a finite number above 0")]
OptionalPositive = Annotated[
    float | None, Field(gt=0, description="a finite number above 0, or null")
]
OptionalFlag = Annotated[bool | None, Field(description="true, false or null")]
OptionalShare = Annotated[
    float | None, Field(ge=0, lt=1, description="a number from 0 up to, not including, 1, or null")
]
Target = Annotated[
    str,
    Field(
        alias="_target_",
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$",
        description="the dotted name of a Python function or class",
    ),
]


class Section(BaseModel):
    """A node of the config: no unknown key, no silent conversion, no nan, no change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True
    )
