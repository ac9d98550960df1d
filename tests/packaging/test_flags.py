"""
The options of every command are frozen in flags.txt: a name, type, choice or default changes on purpose only.

After such a change, write the file anew and commit it with the change:

    python tests/packaging/test_flags.py
"""

import importlib
import pkgutil
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tcae_diffusers.evaluation.arguments
import tcae_diffusers.models
import tcae_diffusers.training
from tcae_diffusers.arguments import Arguments

FROZEN = Path(__file__).with_name("flags.txt")


def commands() -> list[type[Arguments]]:
    """The arguments of all commands: what derives from `Arguments`, and nothing of the package from it."""
    for package in (tcae_diffusers.models, tcae_diffusers.training, tcae_diffusers.evaluation.arguments):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)

    def last_of(arguments_type: type[Arguments]) -> list[type[Arguments]]:
        derived = [each for each in arguments_type.__subclasses__() if each.__module__.startswith("tcae_diffusers.")]
        return [last for each in derived for last in last_of(each)] or [arguments_type]

    return sorted(dict.fromkeys(last_of(Arguments)), key=lambda each: (each.__module__, each.__name__))


def type_name(hint: Any, choices: Any = None) -> str:
    """The type as it stands in the source, or the choices."""
    if get_origin(hint) is Literal or choices:
        return "|".join(map(str, choices or get_args(hint)))
    if not get_args(hint):
        return "None" if hint is type(None) else hint.__name__
    items = [type_name(each) for each in get_args(hint)]
    if get_origin(hint) in (list, tuple, dict):
        return f"{get_origin(hint).__name__}[{', '.join(items)}]"
    return " | ".join(items)


def flags_of(arguments_type: type[Arguments]) -> list[str]:
    hints, lines = get_type_hints(arguments_type), []
    for each in fields(arguments_type):
        flag = each.name if each.metadata["positional"] else f"--{each.name}"
        kind = type_name(hints[each.name], each.metadata["choices"]) + (" ..." if each.metadata["repeat"] else "")
        default = each.default if each.default_factory is MISSING else each.default_factory()
        lines.append(f"  {flag}: {kind}, " + ("required" if default is MISSING else f"default {default!s}"))
    return sorted(lines)


def is_number(hint: Any) -> bool:
    return hint in (int, float) or any(map(is_number, get_args(hint)))


def test_every_number_has_a_lower_bound():
    """Or a weight, a rate or a size below zero would be taken without a word."""
    unbounded = []
    for arguments_type in commands():
        hints = get_type_hints(arguments_type)
        for each in fields(arguments_type):
            if is_number(hints[each.name]) and not {"at_least", "above"} & each.metadata["bounds"].keys():
                unbounded.append(f"{arguments_type.__name__} --{each.name}")
    assert unbounded == []


def all_flags() -> str:
    blocks = []
    for each in commands():
        name = f"{each.__module__.removeprefix('tcae_diffusers.')}.{each.__name__}"
        blocks.append("\n".join([name, *(["  --config: FILE"] if each.presets else []), *flags_of(each)]))
    return "\n\n".join(blocks) + "\n"


def test_the_options_of_every_command_are_the_frozen_ones():
    assert all_flags() == FROZEN.read_text(), "write tests/packaging/flags.txt anew if this is meant: see the top"


def test_every_script_that_trains_or_encodes_is_among_the_commands():
    names = {each.__name__ for each in commands()}
    assert {"TokenizerArguments", "DecoderArguments", "DiTArguments", "CacheArguments"} <= names


def test_every_option_explains_itself_in_a_sentence():
    for arguments_type in commands():
        for each in fields(arguments_type):
            text = each.metadata["help"]
            assert text[0].isupper() and text.endswith("."), f"--{each.name}: {text}"
            assert not text.startswith(("Its ", "Their ", "The same")), f"--{each.name}: {text}"


if __name__ == "__main__":
    FROZEN.write_text(all_flags())
