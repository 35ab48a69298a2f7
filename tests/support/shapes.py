"""The checks of types and shapes around prunekit's functions in tests.

`--jaxtyping-packages=prunekit,beartype.beartype` decorates every function and dataclass by `jaxtyping.jaxtyped`, which
binds the arguments and checks them twice at each call. `checked` stands in for it and costs a third: beartype checks
arguments and result once, and named dimensions are compared only where a signature has some.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import beartype

jaxtyped = jaxtyping.jaxtyped


def checked(definition: Any = None, *, typechecker: Any) -> Any:
    """Decorate a function, or the `__init__` of a dataclass, so that each call is checked."""
    if definition is None:
        return lambda definition: checked(definition, typechecker=typechecker)
    if inspect.isclass(definition):
        own = vars(definition).get("__init__")
        if dataclasses.is_dataclass(definition) and own is not None and not hasattr(own, "__wrapped__"):
            definition.__init__ = checked(own, typechecker=typechecker)
        return definition
    if not inspect.isfunction(definition):
        return definition
    written, hints = definition.__annotations__, _hints(definition)
    definition.__annotations__ = hints
    function = beartype(definition)
    definition.__annotations__ = function.__annotations__ = written  # the reference pages show them as written
    if inspect.iscoroutinefunction(definition):
        return function
    has_shapes = any(map(_has_shape, hints.values()))

    @functools.wraps(definition)
    def called(*args: Any, **kwargs: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:  # as while a graph is traced
            return definition(*args, **kwargs)
        if not has_shapes:
            return function(*args, **kwargs)
        with jaxtyped("context"):  # within it a name is one number
            return function(*args, **kwargs)

    return called


def _hints(function: Any) -> dict[str, Any]:
    """The annotations of a function, without those that name what is imported for mypy alone."""
    hints = {}
    for name, written in function.__annotations__.items():
        holder = type("Holder", (), {"__annotations__": {"hint": written}})
        try:
            hints[name] = get_type_hints(holder, function.__globals__, include_extras=True)["hint"]
        except (NameError, TypeError, ValueError):
            hints[name] = Any
    return hints


def _has_shape(hint: Any) -> bool:
    return (inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)) or any(map(_has_shape, get_args(hint)))
