"""Options read from a configuration: the base of the options of both kinds of methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

# typing.Self, which the shape checks of the tests cannot read
AnyOptions = TypeVar("AnyOptions", bound="ConfiguredOptions")


@dataclass(frozen=True, kw_only=True)
class ConfiguredOptions:
    """Options whose fields are the keys of conf/method/<name>.yaml; the defaults are that file's."""

    @classmethod
    def from_config(cls: type[AnyOptions], values: Mapping[str, Any]) -> AnyOptions:
        """Build the options from the method's keys of a configuration; lists become tuples.

        Raises:
            TypeError: a key is not a field, or a field without default is not given.
        """
        known = sorted(field.name for field in fields(cls))
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise TypeError(
                f"{cls.__name__} does not know {', '.join(unknown)}; it takes {', '.join(known) or 'no options'}."
            )
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
