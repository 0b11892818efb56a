"""What the recipe's tree is made of: the rules of a node, marks and limits of fields, sizes.

Used by `schema.py`, which is the tree. Values are never converted: the text "5" is no number, 1 is
not true. The words of a fault are made from the JSON Schema, so a constraint belongs into a field's
type where one can say it.
"""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

Place = Literal["model", "tokenizer", "data", "template", "code"]


def place(kind: Place) -> Any:
    """Marks a field that names a file, a folder or a Hub id; `places.py` finds it by its kind.

    code: `file.py:name`, or a word without a colon, which names no file.
    """
    return Field(json_schema_extra={"place": kind})


def at_most(limit: int) -> AfterValidator:
    """Refuses what no machine could carry out; a usual fault is not told about this limit."""

    def check(value: float) -> float:
        if value > limit:
            raise ValueError(f"expected at most {limit}")
        return value

    return AfterValidator(check)


def type_alone(value: object) -> object:
    """A bare word stands for `{type: word}`."""
    return {"type": value} if isinstance(value, str) else value


def type_left_out(default: str) -> BeforeValidator:
    """`{rank: 8}` without a `type` is of the default one; a bare word stands for `{type: word}`."""

    def add_type(value: object) -> object:
        if isinstance(value, str):
            return {"type": value}
        return {"type": default} | value if isinstance(value, dict) else value

    return BeforeValidator(add_type)


# More does not fit the whole numbers of arrays and libraries.
PositiveInt = Annotated[int, Field(gt=0), at_most(2**31 - 1)]


class Node(BaseModel):
    """Common rules: unknown keys are faults, nothing is converted, field texts are the help.

    A validator's message never holds text of the recipe: it may come from a secret variable.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    alternatives: ClassVar[tuple[str, ...]] = ()
    """Keys that exclude each other; naming one on the command line takes the others back."""
    shorthand: ClassVar[str | None] = None
    """The key that is meant when plain text stands where the mapping is expected."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Adds `alternatives` and `shorthand` to the JSON Schema, where `shape.py` reads them."""
        reference = handler(core_schema)
        described = handler.resolve_ref_schema(reference)
        if cls.alternatives:
            described["alternatives"] = list(cls.alternatives)
        if cls.shorthand:
            described["shorthand"] = cls.shorthand
        return reference


class NoneGiven(ValueError):
    """None of several keys has a value; kept back where an unknown key may be meant for one."""


def check_exactly_one(node: Node) -> None:
    """Raises ValueError unless exactly one of the node's alternatives has a value."""
    given = [key for key in node.alternatives if getattr(node, key) is not None]
    wished = " and ".join(f"`{key}`" for key in node.alternatives)
    if not given:
        raise NoneGiven(f"expected exactly one of {wished}, found none")
    if len(given) > 1:
        raise ValueError(f"expected exactly one of {wished}, found {' and '.join(given)}")


Share = Annotated[float, Field(ge=0, lt=1)]


SIZE_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def size_bytes(text: str) -> int:
    """Bytes of a size as it is written in a recipe, `8GB` or `500 MiB`; raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]+)", text.strip().lower())
    if not found or found[2] not in SIZE_UNITS:
        raise ValueError("expected a number with a unit (KB, MB, GB, KiB, MiB, GiB), such as 8GB")
    return int(float(found[1]) * SIZE_UNITS[found[2]])
