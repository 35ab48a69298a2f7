"""Dataclasses as JSON objects: a field is a key of the same name, in the order of declaration."""

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

    A field without a default is required, and null where it is None; one with the default None is left out where it is
    None. `other` holds the keys that are not declared, which are written after the declared ones.
    """

    other: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls: type[Object], content: Mapping[str, Any]) -> Object:
        """Read an object as `json.loads` returns it; values that are no objects are taken as they are.

        Raises:
            ValueError: a required key is missing, or holds another value where an object belongs.
        """
        keys = cls._keys()
        for key in keys.values():
            if key.required and key.name not in content:
                raise ValueError(f"lacks {key.name!r}")
        known = {name: key for name, key in keys.items() if key.name in content}
        values = {name: _read(key.name, key.hint, content[key.name]) for name, key in known.items()}
        declared = {key.name for key in keys.values()}
        return cls(**values, other={name: value for name, value in content.items() if name not in declared})

    def to_json(self) -> dict[str, Any]:
        """Return the object as `json.dumps` takes it, declared keys in their order."""
        values = [(key, getattr(self, name)) for name, key in self._keys().items()]
        known = {key.name: _write(value) for key, value in values if key.required or value is not None}
        return known | dict(self.other)

    @classmethod
    def _keys(cls) -> dict[str, _Key]:
        kind: type = cls  # of `cls` mypy looks at how an instance is hashed
        return _keys_of(kind)


@dataclass(frozen=True)
class _Key:
    """The name of a key, the type of its values, and whether every object has it."""

    name: str
    hint: Any
    required: bool


@cache
def _keys_of(kind: type) -> dict[str, _Key]:
    """Return the declared keys of a class by field; metadata "key" names one that cannot be a field's name."""
    hints = get_type_hints(kind)
    return {
        one.name: _Key(one.metadata.get("key", one.name), hints[one.name], one.default is MISSING)
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
        return kind.from_json(value)
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
