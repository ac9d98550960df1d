"""
Command lines as dataclasses: a field is an option, its annotation says how it is read, its class in which group
`--help` shows it.

Imports the standard library and PyYAML only, so that `--help` answers at once.
"""

import argparse
import difflib
import inspect
import json
import operator
import sys
import types
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml

from .errors import InputError
from .existing_paths import local_folder

ArgumentsType = TypeVar("ArgumentsType", bound="Arguments")
FieldsType = TypeVar("FieldsType")
# What stands for a value in `--help` where the option does not say.
METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH", dict: "JSON"}
# Values of an option that switch off what it stands for.
_OFF: tuple[Any, ...] = (None, False, 0, "none", [], {})
# What each bound of [`option`] asks of a number.
_BOUNDS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


def option(
    default: Any,
    help: str,
    *,
    positional: bool = False,
    metavar: str | tuple[str, ...] | None = None,
    choices: Sequence[Any] | None = None,
    repeat: bool = False,
    needs: str | tuple[str, ...] | None = None,
    **bounds: float,
) -> Any:
    """
    A dataclass field that [`parse_arguments`] reads from the command line as `--<name of the field>`.

    Args:
        default: `dataclasses.MISSING` for an option that must be given; `None` is read as "unset".
        help (`str`): A complete sentence; `--help` adds the default.
        positional (`bool`, defaults to `False`): Read without `--name`; a list takes all that is left.
        metavar (`str` or `tuple`, *optional*): Stands for the value in `--help`; a tuple for each value of a tuple.
        choices (`Sequence`, *optional*): What the value may be, where a `Literal` cannot say it.
        repeat (`bool`, defaults to `False`): A list that grows by one item each time the option is given.
        needs (`str` or `tuple`, *optional*): Option without which this one has no effect: while that is unset, 0,
            false or none, this one is refused on a command line; a tuple goes on with the only values for which it has
            one. A preset may hold it, for those who switch the other one off.
        bounds (`float`): `at_least`, `above`, `at_most` and `below` of the number, or of each of several;
            [`Arguments`] checks them, where the option is set.
    """
    if unknown := bounds.keys() - _BOUNDS.keys():
        raise TypeError(f"option() has no {', '.join(unknown)}; bounds are {', '.join(_BOUNDS)}")
    metadata = {
        **{"help": help, "positional": positional, "metavar": metavar, "choices": choices},
        **{"repeat": repeat, "needs": (needs,) if isinstance(needs, str) else needs, "bounds": bounds},
    }
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata, kw_only=True)
    return field(default=default, metadata=metadata, kw_only=True)


@dataclass
class Arguments:
    """
    What each group of options derives from; a command derives from its groups.

    A subclass that declares options names their `group`. What their bounds do not say it checks in `__post_init__`,
    which calls `super()`'s first. It may name one of them as their `switch`, without
    which the others have no effect.
    """

    group: ClassVar[str] = "Options"
    # Package whose YAML files are the presets of `--config`; a command without has no `--config`.
    presets: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            numbers = value if isinstance(value, list | tuple) else [] if value is None else [value]
            for name, bound in each.metadata["bounds"].items():
                is_within = all(_BOUNDS[name](number, bound) for number in numbers)
                self._require(each.name, is_within, _bounds_in_words(each) + " each" * (numbers is value))

    def values_of(self, *groups: "type[Arguments]") -> dict[str, Any]:
        """The values of the options of some of its groups, for another command that has them too."""
        return {each.name: getattr(self, each.name) for group in groups for each in fields(group)}

    def _require(self, name: str, condition: bool, expected: str) -> None:
        """
        Raises:
            InputError: `--name <value> must be <expected>.`, unless the condition holds.
        """
        if not condition:
            raise InputError(f"--{name} {getattr(self, name)} must be {expected}.")

    def _require_default(self, *names: str, unless: bool, omitted: str) -> None:
        """
        Raises:
            InputError: `--name <value> must be omitted <omitted>.`, if one is not at its default, unless the condition
                holds.
        """
        options = {each.name: each for each in fields(self)}
        for name in names:
            has_effect = unless or getattr(self, name) == default_of(options[name])
            self._require(name, has_effect, f"omitted {omitted}")


def _bounds_in_words(each: Field) -> str:
    bounds, in_pixels = each.metadata["bounds"], each.metadata["metavar"] == "PIXELS"
    common = {
        (("above", 0),): "positive",
        (("at_least", 0),): "0 or more",
        (("at_least", 0), ("at_most", 1)): "between 0 and 1",
    }
    words = " and ".join(f"{name.replace('_', ' ')} {bound}" for name, bound in bounds.items())
    return common.get(tuple(bounds.items()), words + " pixel" * in_pixels)


def program_name() -> str:
    """What the user typed: `tcae-train`, `train_tcae.py`, or `python -m tcae_diffusers.training.train_tcae`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return Path(sys.argv[0]).name
    return f"python -m {spec.name.removesuffix('.__main__')}"


def exit_with_error(message: str, prog: str | None = None) -> NoReturn:
    """End the process with one line, `<prog>: error: <message>`, on stderr and code 2; see [`parse_arguments`]."""
    line = " ".join(part.strip() for part in message.splitlines())
    print(f"{prog or program_name()}: error: {line}", file=sys.stderr)
    raise SystemExit(2)


def parse_arguments(
    arguments_type: type[ArgumentsType], argv: Sequence[str] | None = None, prog: str | None = None
) -> ArgumentsType:
    """
    Read a command line; where the type has `presets`, first `--config` (a YAML file, or the name of a preset), over
    which the command line wins. A config may name another one that it changes: `extends: openmoji32`.

    Exits with code 2 and one line, `<prog>: error: <message>`, for an unknown option, key or preset and a bad value.

    Args:
        arguments_type: Dataclass of options; its docstring is the description in `--help`.
        argv (`Sequence[str]`, *optional*): The command line without the program; that of the process if unset.
        prog (`str`, *optional*): The command as the user typed it; [`program_name`] if unset.
    """
    options = {each.name: each for each in fields(arguments_type)}
    hints = get_type_hints(arguments_type)
    parser = _build_parser(arguments_type, hints, prog or program_name())
    argv = sys.argv[1:] if argv is None else argv
    namespace, unknown = parser.parse_known_args([_with_underscores(text) for text in argv])
    typed = {name: value for name, value in vars(namespace).items() if value is not None and value != []}
    try:
        if unknown:
            raise InputError(_unknown_in_words(unknown[0], options))
        config = typed.pop("config", None) if arguments_type.presets else None
        values = {} if config is None else _read_config(config, arguments_type, hints)
        for name, value in typed.items():
            values[name] = tuple(value) if get_origin(_type_of_value(hints[name])) is tuple else value
        missing = [_flag(each) for each in options.values() if _is_required(each) and each.name not in values]
        if missing:
            raise InputError(f"the following arguments are required: {', '.join(missing)}")
        arguments = arguments_type(**values)
        _refuse_nan(arguments)
        _refuse_without_effect(arguments, typed)
        _refuse_output_among_images(arguments)
        return arguments
    except (ValueError, OSError) as error:
        parser.error(str(error))


def _unknown_in_words(word: str, options: dict[str, Field]) -> str:
    name = word.split("=")[0].lstrip("-")
    if name in options and options[name].metadata["positional"]:
        return f"unknown argument {word}; give its values without {word}"
    named = [each.name for each in options.values() if not each.metadata["positional"]]
    return f"unknown argument {word}{_near(name, named, '--') or '; --help lists them'}"


def _refuse_nan(arguments: Arguments) -> None:
    """NaN is not below any bound, so a check such as "negative" lets it pass, and everything becomes NaN."""
    for each in fields(arguments):
        value = getattr(arguments, each.name)
        if any(part != part for part in (value if isinstance(value, list | tuple) else [value])):
            raise InputError(f"--{each.name} {_as_text(value)} must be a number.")


def _refuse_without_effect(arguments: Arguments, typed: Iterable[str]) -> None:
    """
    Raises:
        InputError: what an option of the command line needs is off, see [`option`] and [`Arguments`].
    """
    options, needs = {each.name: each for each in fields(arguments)}, _needs_by_option(type(arguments))
    for name in typed:
        value, (needed, *only_for) = getattr(arguments, name), needs[name] or (None,)
        if needed is None or value in (*_OFF, default_of(options[name])):
            continue
        there = getattr(arguments, needed)
        if there not in only_for if only_for else there in _OFF:
            what = " ".join([f"--{needed}", " or ".join(map(str, only_for))]).strip()
            raise InputError(f"--{name} {_as_text(value)} has no effect without {what}; omit it or give both.")


def _refuse_output_among_images(arguments: Arguments) -> None:
    """
    Raises:
        InputError: what the command writes would lie in a folder of images that it reads, and be taken for images, or
            for a class of them, by the next command that reads them.
    """
    options = {each.name: each for each in fields(arguments)}
    outputs = [(name, getattr(arguments, name)) for name in ("output_dir", "output") if name in options]
    for name, output in outputs:
        for source, each in options.items():
            value = getattr(arguments, source)
            if not output or not value or "SOURCE" not in (each.metadata["metavar"] or ""):
                continue
            folder = local_folder(str(value))
            if folder and Path(output).resolve().is_relative_to(Path(folder).resolve()):
                raise InputError(
                    f"--{name} {output} lies in {folder}, whose images --{source} names: what is written there would "
                    "be taken for some of them; choose a folder elsewhere."
                )


def _needs_by_option(arguments_type: type[Arguments]) -> dict[str, tuple[str, ...] | None]:
    """What each option needs, see [`option`]: what it says itself, or the switch of its class."""
    needs: dict[str, tuple[str, ...] | None] = {each.name: each.metadata["needs"] for each in fields(arguments_type)}
    for declaring in _from_the_base_up(arguments_type):
        for name in inspect.get_annotations(declaring).keys() & needs.keys():
            switch = vars(declaring).get("switch")
            needs[name] = needs[name] or ((switch,) if switch and switch != name else None)
    return needs


def save_arguments(arguments: Arguments, path: Path) -> None:
    """Write the resolved arguments, in the order of `--help`, as a YAML file that `--config` reads again."""
    values = asdict(arguments)
    names = [each.name for members in _options_by_group(type(arguments)).values() for each in members]
    plain = {name: str(values[name]) if isinstance(values[name], Path) else values[name] for name in names}
    path.write_text(yaml.safe_dump(plain, sort_keys=False))


class _Once(argparse.Action):
    """Stores the values of a list; those of an earlier one would be lost without a word."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, name: str | None = None) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{name} is given more than once; write all its values behind one {name}")
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # The message alone: the usage before it would hide it.
        exit_with_error(message, self.prog)


def _build_parser(arguments_type: type[Arguments], hints: dict[str, Any], prog: str) -> _Parser:
    groups = _options_by_group(arguments_type)
    parser = _Parser(
        prog=prog,
        usage=_usage([each for members in groups.values() for each in members], hints),
        description=inspect.getdoc(arguments_type),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if arguments_type.presets:
        # A class has a hash, whatever its instances have.
        presets = ", ".join(_presets_for(arguments_type))  # type: ignore[arg-type]
        or_preset = f", or name of a preset: {presets}" if presets else " with options of this command"
        parser.add_argument("--config", metavar="FILE", help=f"YAML file{or_preset}.")
    for title, members in groups.items():
        group = parser.add_argument_group(title)
        for each in members:
            _add_option(group, each, _type_of_value(hints[each.name]))
    return parser


def _usage(options: list[Field], hints: dict[str, Any]) -> str:
    """What must be given, and what goes without a name; a line of all options would be a page."""
    positional, named = [], []
    for each in options:
        required = _is_required(each)
        if each.metadata["positional"]:
            words = each.name + (" ..." if get_origin(hints[each.name]) is list else "")
            positional.append(words if required else f"[{words}]")
        elif required:
            named.append(f"--{each.name} {_as_text(each.metadata['metavar'] or each.name.upper())}")
    return " ".join(["%(prog)s", *positional, *named, "[options]"])


def _options_by_group(arguments_type: type[Arguments]) -> dict[str, list[Field]]:
    """
    From the base up. An option stays in the group of the class that declared it first, also where a subclass gives it
    another default.
    """
    options = {each.name: each for each in fields(arguments_type)}
    groups: dict[str, list[Field]] = {}
    for declaring in _from_the_base_up(arguments_type):
        names = [name for name in inspect.get_annotations(declaring) if name in options]
        if names:
            groups.setdefault(declaring.group, []).extend(options.pop(name) for name in names)
    return groups


def _from_the_base_up(arguments_type: type) -> list[type[Arguments]]:
    """The classes that it derives from, each after its own bases, which go from left to right; itself last."""
    if not issubclass(arguments_type, Arguments):
        return []
    bases = (each for base in arguments_type.__bases__ for each in _from_the_base_up(base))
    return [*dict.fromkeys(bases), arguments_type]


def _add_option(group: Any, each: Field, hint: Any) -> None:
    keywords: dict[str, Any] = {"help": _help(each).replace("%", "%%")}
    positional, metavar = each.metadata["positional"], each.metadata["metavar"]
    if each.metadata["repeat"]:
        keywords["action"] = "append"
        (hint,) = get_args(hint)
    elif get_origin(hint) is list and not positional:
        keywords["action"] = _Once
    if get_origin(hint) is list:
        keywords["nargs"] = "*" if positional else "+"
        (hint,) = get_args(hint)
    elif get_origin(hint) is tuple:
        keywords["nargs"] = len(get_args(hint))
        hint = get_args(hint)[0]
    elif positional:
        keywords["nargs"] = "?"
    if hint is bool:
        keywords |= {"type": _boolean, "nargs": "?", "const": True, "metavar": "true|false"}
        opposite = {"dest": each.name, "action": "store_const", "const": False, "help": argparse.SUPPRESS}
        group.add_argument(f"--no_{each.name}", **opposite)
    elif choices := _choices(each, hint):
        keywords |= {"type": type(choices[0]), "choices": choices}
    else:
        kind = get_origin(hint) or hint
        keywords |= {"type": _json_object if kind is dict else kind, "metavar": METAVARS[kind]}
    if metavar or positional:
        keywords["metavar"] = metavar or each.name
    group.add_argument(_flag(each), **keywords)


def _help(each: Field) -> str:
    text, default = each.metadata["help"], default_of(each)
    if default is True:
        return f"{text} (default: true; --no_{each.name} turns it off)"
    if default is False:
        return f"{text} (default: false)"
    if default is MISSING:
        return text if each.metadata["positional"] else f"{text} (required)"
    # Where nothing is the default, the sentence says what that means.
    if default in (None, "", [], {}):
        return text
    return f"{text} (default: {_as_text(default)})"


def _as_text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _flag(each: Field) -> str:
    return each.name if each.metadata["positional"] else f"--{each.name}"


def default_of(each: Field) -> Any:
    """What a field that is not required is by default."""
    return each.default if each.default_factory is MISSING else each.default_factory()


def _is_required(each: Field) -> bool:
    return each.default is MISSING and each.default_factory is MISSING


def _type_of_value(hint: Any) -> Any:
    """`X` of `X | None`."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (each for each in get_args(hint) if each is not type(None))
    return hint


def _choices(each: Field, hint: Any) -> Sequence[Any] | None:
    return get_args(hint) if get_origin(hint) is Literal else each.metadata["choices"]


def _with_underscores(text: str) -> str:
    """`--learning-rate=1e-4` -> `--learning_rate=1e-4`: a hyphen is as good as an underscore."""
    flag, separator, value = text.partition("=")
    return f"{flag.replace('-', '_').replace('__', '--', 1)}{separator}{value}" if flag.startswith("--") else text


def _boolean(text: str) -> bool:
    for value, words in ((True, ("true", "yes", "t", "y", "1")), (False, ("false", "no", "f", "n", "0"))):
        if text.lower() in words:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is not a JSON object; expected {{"key": value}}')
    return value


def _preset_names(package: str) -> list[str]:
    return sorted(entry.name[:-5] for entry in resources.files(package).iterdir() if entry.name.endswith(".yaml"))


@cache
def _presets_for(arguments_type: type[Arguments]) -> list[str]:
    """Presets whose keys are all options of the command; the others are for other commands."""
    hints = get_type_hints(arguments_type)

    def is_for_it(preset: str) -> bool:
        try:
            _read_config(preset, arguments_type, hints)
        except InputError:
            return False
        return True

    return [preset for preset in _preset_names(arguments_type.presets) if is_for_it(preset)]


def _read_config(
    config: str, arguments_type: type[Arguments], hints: dict[str, Any], extended_by: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Values of a YAML file or preset, over those of the one that its key `extends` names, beside the file first."""
    is_file = Path(config).is_file()
    if config in extended_by or (is_file and any(_is_same_file(config, other) for other in extended_by)):
        raise InputError(f"--config {config} extends itself: {' -> '.join((*extended_by, config))}")
    options = {each.name: each for each in fields(arguments_type)}
    presets = _preset_names(arguments_type.presets)
    if is_file:
        text = Path(config).read_text(errors="surrogateescape")
    elif config in presets:
        text = (resources.files(arguments_type.presets) / f"{config}.yaml").read_text()
    else:
        raise InputError(f"--config {config}: no such file, and no such preset{_near_or_all(config, presets)}")
    try:
        values = read_yaml(text) or {}
    except yaml.YAMLError as error:
        raise InputError(f"--config {config} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"--config {config}: expected `key: value` lines, found {type(values).__name__}")
    base = values.pop("extends", None)
    for key, value in values.items():
        if key not in options:
            raise InputError(f"--config {config}: unknown key {key!r}{_near_or_all(str(key), sorted(options))}")
        values[key] = config_value(key, hints[key], value, options[key].metadata["choices"])
    if base is None:
        return values
    beside = Path(config).parent / str(base)
    base = str(beside) if is_file and beside.is_file() else str(base)
    return {**_read_config(base, arguments_type, hints, (*extended_by, config)), **values}


def _is_same_file(path: str, other: str) -> bool:
    return Path(other).is_file() and Path(path).samefile(other)


def config_value(name: str, hint: Any, value: Any, choices: Sequence[Any] | None = None) -> Any:
    """
    A value from a YAML file as its type asks.

    Args:
        name (`str`): What error messages call it.
        hint: The type: `int`, `float`, `str`, `Path`, `bool`, `dict`, a `Literal`, a list or a tuple of one of them,
            each also with `| None`.
        value: As the file gives it.
        choices (`Sequence`, *optional*): What it may be, where the type does not say it.

    Raises:
        InputError: for a value of another type, or that is no choice.
    """
    optional = hint
    hint = _type_of_value(hint)
    if value is None and hint is not optional:
        return None
    if get_origin(hint) in (list, tuple):
        items = get_args(hint)
        if not isinstance(value, list) or (get_origin(hint) is tuple and len(value) != len(items)):
            expected = "a list" if get_origin(hint) is list else f"a list of {len(items)} values"
            raise InputError(f"{name}: {value!r} is a {type(value).__name__}, expected {expected}")
        return get_origin(hint)(config_value(name, items[0], item, choices) for item in value)
    if choices := get_args(hint) if get_origin(hint) is Literal else choices:
        if value not in choices:
            raise InputError(f"{name}: {value!r} is unknown; expected one of {', '.join(map(str, choices))}")
        return value
    kind = get_origin(hint) or hint
    # To YAML 1.1, `1e-4` is text, and to Python, True is an int.
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            raise InputError(f"{name}: {value!r} is not a number") from None
    if kind is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{name}: {value!r} is a {type(value).__name__}, expected {kind.__name__}")
    return value


def read_fields(cls: type[FieldsType], content: Any, where: str) -> FieldsType:
    """
    A dataclass from a mapping of a YAML file.

    Args:
        where (`str`): What error messages call it.

    Raises:
        InputError: `content` is no mapping; an unknown or missing key, or a value of another type.
    """
    if not isinstance(content, dict):
        raise InputError(f"{where} is {content!r}; expected keys and values")
    known = {entry.name: entry for entry in fields(cast(Any, cls)) if entry.init}
    unknown = [str(key) for key in content if key not in known]
    if unknown:
        raise InputError(f"{where}: unknown key {', '.join(unknown)}; expected one of {', '.join(known)}")
    missing = [name for name, entry in known.items() if _is_required(entry) and name not in content]
    if missing:
        raise InputError(f"{where}: {', '.join(missing)} is missing")
    hints = get_type_hints(cls)
    try:
        return cls(**{name: config_value(name, hints[name], value) for name, value in content.items()})
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


class _UniqueKeyLoader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for place, key in enumerate(keys):
            if any((key.tag, key.value) == (other.tag, other.value) for other in keys[:place]):
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark)
        return node


def read_yaml(text: str) -> Any:
    """
    The content of a YAML file.

    Raises:
        yaml.YAMLError: It is no YAML, or a mapping has a key twice, of which YAML would take the last without a word.
    """
    return yaml.load(text, Loader=_UniqueKeyLoader)


def _near(name: str, known: Iterable[str], prefix: str = "") -> str:
    matches = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(prefix + match for match in matches)}?" if matches else ""


def _near_or_all(name: str, known: Iterable[str]) -> str:
    return _near(name, known) or f"; known: {', '.join(known)}"
