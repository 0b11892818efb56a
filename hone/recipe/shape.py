"""The schema as plain data, walked beside a recipe's values: which key may stand where, in words.

The JSON Schema that pydantic makes of `schema.Recipe` is the one description; everything here reads
it. Called by all files of this folder that have to know what a value is meant to be.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

from hone.recipe.faults import KeyPath, quoted
from hone.recipe.schema import Recipe

Shape = dict[str, Any]
"""One node of the JSON Schema."""

_PLACES = {
    "model": "a folder or Hub id",
    "tokenizer": "a folder or Hub id",
    "data": "a file, folder or data set id",
    "template": '"auto", "chatml", "alpaca", "llama" or a Jinja file',
    "code": "file.py:name",
}


@cache
def recipe_shape() -> Shape:
    """The JSON Schema of a recipe with `place`, `alternatives` and `shorthand` where they apply."""
    return Recipe.model_json_schema()


def branches(shape: Shape) -> list[Shape]:
    """What may stand here, null aside: one shape or the members of a union, without references."""
    if "$ref" in shape:
        target = recipe_shape()["$defs"][shape["$ref"].rpartition("/")[2]]
        return branches(target)
    members = shape.get("anyOf") or shape.get("oneOf")
    if members is None:
        return [shape] if shape.get("type") != "null" else []
    return [branch for member in members for branch in branches(member)]


def is_union(shape: Shape) -> bool:
    """True where pydantic adds the name of a union's member to the location of an error."""
    return len(branches(shape)) > 1


def meant(shape: Shape, value: object) -> Shape:
    """The member of a union that a value of this kind is meant for; the first where none fits."""
    members = branches(shape)
    if isinstance(value, dict):
        mappings = [member for member in members if member.get("type") == "object"]
        named = [member for member in mappings if type_name(member) == value.get("type")]
        return (named or mappings or members)[0]
    if isinstance(value, list):
        members = [member for member in members if member.get("type") == "array"] or members
    return members[0]


def type_name(shape: Shape) -> str | None:
    """What the key `type` of this mapping must be, where it tells the members of a union apart."""
    name = shape.get("properties", {}).get("type", {}).get("const")
    return name if isinstance(name, str) else None


def child(shape: Shape, value: object, key: str | int) -> Shape | None:
    """The shape of `value[key]`, or None where the schema knows no such key."""
    of_value = meant(shape, value)
    if isinstance(key, int):
        items = of_value.get("prefixItems", [])
        found = items[key] if key < len(items) else of_value.get("items")
    else:
        found = of_value.get("properties", {}).get(key) or of_value.get("additionalProperties")
    return found if isinstance(found, dict) else None


def shape_at(path: KeyPath, value: object) -> Shape | None:
    """The shape at `path` of the recipe whose values are `value`, or None for what has none."""
    shape: Shape | None = recipe_shape()
    for key in path:
        if shape is None:
            return None
        shape = child(shape, value, key)
        value = item(value, key)
    return shape


def item(value: object, key: str | int) -> Any:
    """`value[key]`, or None where there is no such thing."""
    if isinstance(value, dict):
        return value.get(key)
    if isinstance(value, list) and isinstance(key, int) and key < len(value):
        return value[key]
    return None


def value_at(path: KeyPath, value: object) -> Any:
    """The value at `path`, or None where there is none."""
    for key in path:
        value = item(value, key)
    return value


def walk(value: object, shape: Shape, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Shape, Any]]:
    """Every value that the schema knows, what holds it before what it holds: path, shape, value."""
    yield path, shape, value
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    for key in list(keys):
        of_item = child(shape, value, key)
        if of_item is not None:
            yield from walk(item(value, key), of_item, (*path, key))


def place_words(kind: str) -> str:
    """What may stand in a field that is marked with this kind of place."""
    return _PLACES[kind]


def expected(shape: Shape) -> str:
    """What may stand here, in words: `a whole number above 0`."""
    words = [_PLACES[shape["place"]]] if "place" in shape else []
    for branch in branches(shape):
        if branch.get("shorthand") == "type":
            words.append(quoted(str(type_name(branch))))
        elif "place" not in shape or branch.get("type") == "object":
            words.append(_expected_of(branch))
    if any(branch.get("shorthand") == "type" for branch in branches(shape)):
        words.append("a mapping with a `type`")
    if shape.get("default") is not None and {"type": "null"} in shape.get("anyOf", []):
        words.append("null")
    words = list(dict.fromkeys(words))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _expected_of(branch: Shape) -> str:
    if "const" in branch:
        return quoted(branch["const"])
    if "enum" in branch:
        names = [quoted(name) for name in branch["enum"]]
        return f"{', '.join(names[:-1])} or {names[-1]}"
    kind = branch.get("type")
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _bounds(branch)
    if kind == "array":
        return _expected_list(branch)
    if kind == "object":
        return _expected_mapping(branch)
    return {"boolean": "true or false", "string": "text"}.get(str(kind), "another value")


def _expected_mapping(branch: Shape) -> str:
    keys = branch.get("properties", {})
    words = f"a mapping with the keys {', '.join(keys)}" if keys else "a mapping"
    short = branch.get("shorthand")
    return f"{expected(keys[short])}, or {words}" if short else words


def _bounds(branch: Shape) -> str:
    words = []
    if "exclusiveMinimum" in branch:
        words.append(f"above {branch['exclusiveMinimum']:g}")
    if "minimum" in branch:
        words.append(f"of at least {branch['minimum']:g}")
    for key, name in (("exclusiveMaximum", "below"), ("maximum", "of at most")):
        if key in branch:
            words.append(f"{name} {branch[key]}")
    return " " + " and ".join(words) if words else ""


def _expected_list(branch: Shape) -> str:
    if "prefixItems" in branch:
        items = branch["prefixItems"]
        return f"a list of {len(items)} values, each {expected(items[0])}"
    items = branches(branch.get("items", {}))
    if items and all(item.get("shorthand") == "type" for item in items):
        return f"a list of {', '.join(str(type_name(item)) for item in items)}"
    if items and "shorthand" in items[0]:
        return "a list of these"
    if items and items[0].get("type") == "object":
        keys = ", ".join(items[0]["properties"])
        return f'a list, each item a mapping after "- " with one of {keys}'
    whole = bool(items) and items[0].get("type") == "integer"
    return "a list of whole numbers" if whole else "a list of text"


def example(shape: Shape) -> Any:
    """The smallest value of this shape: what stands for a faulty one while the rest is checked."""
    members = branches(shape)
    branch = next((member for member in members if "shorthand" in member), members[-1])
    if branch.get("type") == "object":
        required = branch.get("required", [])
        return {key: example(branch["properties"][key]) for key in required}
    return [] if branch.get("type") == "array" else "-"
