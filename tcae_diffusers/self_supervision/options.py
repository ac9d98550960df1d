"""`--ssl_options`: what one method alone can be told."""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

OptionsType = TypeVar("OptionsType", bound="DataclassInstance")


def read_options(options_type: type[OptionsType] | None, given: dict[str, Any], method: str) -> OptionsType | None:
    """
    The options of a method from the JSON object of the command line.

    Args:
        options_type: A dataclass whose fields all have defaults; `None` for a method that takes no options.
        given (`dict`): What was typed.
        method (`str`): Name of the method, for messages.

    Raises:
        InputError: a key that the method does not know, or a value of another type than the default's.
    """
    known = {} if options_type is None else {field.name: field.default for field in fields(options_type)}
    for name, value in given.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(known) or 'none'}."
            raise InputError(f"--ssl_options: {method} has no option {name!r}; {hint}")
        expected = (int, float) if isinstance(known[name], float) else type(known[name])
        if not isinstance(value, expected) or (isinstance(value, bool) and not isinstance(known[name], bool)):
            raise InputError(
                f"--ssl_options: {name} of {method} is {value!r}, expected {type(known[name]).__name__} such as"
                f" {known[name]!r}"
            )
    return None if options_type is None else options_type(**given)
