"""Dataclasses as JSON objects: a field is a key of the same name, in the order of declaration. Imports nothing slow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Object = TypeVar("Object", bound="JsonObject")


@dataclass(frozen=True, kw_only=True)
class JsonObject:
    """A JSON object whose keys are the fields of a dataclass.

    A field without a default is required, and null where it is None. A field with a default may be absent, and is left
    out while it has that default. Other keys are refused.
    """

    @classmethod
    def from_json(cls: type[Object], content: Any) -> Object:
        """Read an object as `json.loads` returns it; values that are no objects are taken as they are.

        Raises:
            ValueError: a required key is missing, a key is unknown, or a value is no object where one belongs.
        """
        if not isinstance(content, Mapping):
            raise ValueError("is no object")
        keys = cls._keys()
        for key in keys.values():
            if key.default is MISSING and key.name not in content:
                raise ValueError(f"lacks {key.name!r}")
        known = {name: key for name, key in keys.items() if key.name in content}
        values = {name: _read(key.name, key.hint, content[key.name]) for name, key in known.items()}
        declared = {key.name for key in keys.values()}
        unknown = {name: value for name, value in content.items() if name not in declared}
        return cls(**values, **cls._take_unknown(unknown))

    def to_json(self) -> dict[str, Any]:
        """Return the object as `json.dumps` takes it, declared keys in their order."""
        values = [(key, getattr(self, name)) for name, key in self._keys().items()]
        return {key.name: _write(value) for key, value in values if key.default is MISSING or value != key.default}

    @classmethod
    def _keys(cls) -> dict[str, _Key]:
        kind: type = cls  # of `cls` mypy looks at how an instance is hashed
        return _keys_of(kind)

    @classmethod
    def _take_unknown(cls, unknown: Mapping[str, Any]) -> dict[str, Any]:
        """Return further arguments for keys that are not declared."""
        if unknown:
            raise ValueError(f"has the unknown key {next(iter(unknown))!r}")
        return {}


@dataclass(frozen=True, kw_only=True)
class OpenJsonObject(JsonObject):
    """A JSON object that keeps other keys in `other`, and writes them after the declared ones."""

    other: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the object as `json.dumps` takes it, declared keys in their order, then the others."""
        return super().to_json() | dict(self.other)

    @classmethod
    def _take_unknown(cls, unknown: Mapping[str, Any]) -> dict[str, Any]:
        return {"other": unknown}


@dataclass(frozen=True)
class _Key:
    """The name of a key, the type of its values, and its default, `MISSING` where it is required."""

    name: str
    hint: Any
    default: Any


@cache
def _keys_of(kind: type) -> dict[str, _Key]:
    """Return the declared keys of a class by field; metadata "key" names one that cannot be a field's name."""
    hints = get_type_hints(kind)
    return {
        one.name: _Key(one.metadata.get("key", one.name), hints[one.name], one.default)
        for one in fields(kind)
        if one.name != "other"
    }


def _read(name: str, hint: Any, value: Any) -> Any:
    """Return a JSON value with its objects as instances of the classes in its type, and lists as the tuples in it."""
    if get_origin(hint) is UnionType:
        if value is None:
            return None
        hint = get_args(hint)[0]
    kind: Any = get_origin(hint) or hint
    if not (isinstance(kind, type) and issubclass(kind, JsonObject | Mapping | tuple)):
        return value
    expected: Any = (list, tuple) if kind is tuple else Mapping
    if not isinstance(value, expected):
        raise ValueError(f"has {name} of type {type(value).__name__}")
    if issubclass(kind, JsonObject):
        try:
            return kind.from_json(value)
        except ValueError as error:
            raise ValueError(f"{error} in {name!r}") from None
    part = get_args(hint)[-1 if kind is Mapping else 0]
    if kind is tuple:
        return tuple(_read(name, part, one) for one in value)
    return {key: _read(name, part, one) for key, one in value.items()}


def _write(value: Any) -> Any:
    """Return the JSON value that `_read` reads as this one."""
    if isinstance(value, JsonObject):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: _write(one) for key, one in value.items()}
    return [_write(one) for one in value] if isinstance(value, tuple) else value
