"""Docstrings of this package follow diffusers; Markdown and mkdocstrings read a few things in them otherwise."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


class DiffusersDocstrings(Extension):
    """Types without backticks, which would be printed, and references as code, since most lead to other libraries."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if not obj.docstring:
            return
        text = re.sub(r"\[`~?([^`\]]+)`\](?!\()", r"`\1`", obj.docstring.value)
        obj.docstring.value = re.sub(r"^(\s+[\w, ]+) \((.*)\):", _plain_type, text, flags=re.MULTILINE)


def _plain_type(argument: re.Match[str]) -> str:
    return f"{argument[1]} ({argument[2].replace('`', '').replace('*optional*', 'optional')}):"
