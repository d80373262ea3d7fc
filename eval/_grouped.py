"""Options that several commands share, written once: a dataclass whose fields are options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from inspect import Parameter, signature
from typing import Any, get_type_hints

__all__ = ["grouped"]


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """`verb` as a command: a parameter whose type is a dataclass stands for the fields of that class.

    Its default is an instance, which has the defaults of the options.
    """
    hints = get_type_hints(verb, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if isinstance(kind, type) and is_dataclass(kind)}
    shown: list[Parameter] = []
    for name, one in signature(verb).parameters.items():
        if name in groups:
            types = get_type_hints(groups[name], include_extras=True)
            options = {part.name: (types[part.name], getattr(one.default, part.name)) for part in fields(groups[name])}
        else:
            options = {name: (hints[name], one.default)}
        shown += [Parameter(key, Parameter.KEYWORD_ONLY, annotation=a, default=d) for key, (a, d) in options.items()]

    def command(**given: Any) -> None:
        made = {name: kind(**{one.name: given.pop(one.name) for one in fields(kind)}) for name, kind in groups.items()}
        verb(**given, **made)

    command.__name__, command.__doc__, command.__module__ = verb.__name__, verb.__doc__, verb.__module__
    command.__annotations__ = {one.name: one.annotation for one in shown}
    vars(command)["__signature__"] = signature(verb).replace(parameters=shown)
    return command
