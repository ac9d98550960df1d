"""Command lines as dataclasses: what is read, what `--help` shows, and what is refused with which words."""

import sys
from dataclasses import MISSING, dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar, Literal

import pytest
import yaml

from tcae_diffusers.arguments import (
    Arguments,
    option,
    parse_arguments,
    program_name,
    read_yaml,
    save_arguments,
)


@dataclass
class Picture(Arguments):
    """Options of pictures."""

    group: ClassVar[str] = "Picture"

    colour: Literal["red", "blue"] = option("red", "Colour of the picture.")
    size: tuple[int, int] = option((4, 6), "Height and width in pixels.", metavar=("H", "W"))
    width: int | None = option(None, "Width in pixels; that of the screen if unset.", metavar="PIXELS", at_least=1)
    smooth: bool = option(True, "Smooth the edges.")
    tiled: bool = option(False, "Draw in tiles.")


@dataclass
class Store(Arguments):
    """Options of the store."""

    group: ClassVar[str] = "Store"

    output: Path = option(MISSING, "Folder of the pictures.", metavar="FOLDER")
    rate: float = option(1e-3, "Pictures per second, 50% of them kept.")
    speed: float = option(1.0, "Pictures per minute.", above=0)
    shares: list[float] = option([], "Share of each picture that is kept.", at_least=0, below=1)
    batch: int = option(8, "Pictures at a time.")
    tags: list[str] = option([], "Words to find them by.")
    sets: list[list[str]] = option([], "Pictures that belong together.", repeat=True)
    extra: dict = option({}, "Further facts.")
    network: str = option("small", "Name of the network.", choices=("small", "large"))


@dataclass
class Draw(Picture, Store):
    """
    Draw pictures.

    Any number of them.
    """

    group: ClassVar[str] = "Drawing"
    presets: ClassVar[str] = "tcae_diffusers.training.configs"

    names: list[str] = option(["first"], "Pictures to draw.", positional=True)
    colour: Literal["red", "blue"] = option("blue", "Colour of the drawing.")


def draw(*argv: str) -> Draw:
    return parse_arguments(Draw, ["--output", "folder", *argv], prog="draw")


def refused(capsys, *argv: str) -> str:
    """The one line with which the command line is refused."""
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(Draw, argv, prog="draw")
    line = capsys.readouterr().err
    assert stopped.value.code == 2 and line.startswith("draw: error: ") and line.count("\n") == 1
    return line.removeprefix("draw: error: ").rstrip()


def config(folder: Path, text: str) -> str:
    (folder / "c.yaml").write_text(text, errors="surrogateescape")
    return str(folder / "c.yaml")


def test_defaults_are_those_of_the_fields():
    assert draw() == Draw(output=Path("folder"))
    assert draw().colour == "blue" and draw().names == ["first"]
    assert draw().tags is not draw().tags


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--colour", "red"], "colour", "red"),
        (["--size", "1", "2"], "size", (1, 2)),
        (["--width", "3"], "width", 3),
        (["--output", "a/b"], "output", Path("a/b")),
        (["--rate=1e-4"], "rate", 1e-4),
        (["--tags", "a", "b-c"], "tags", ["a", "b-c"]),
        (["--sets", "a", "b", "--sets", "c"], "sets", [["a", "b"], ["c"]]),
        (["--extra", '{"a": [1]}'], "extra", {"a": [1]}),
        (["one", "two"], "names", ["one", "two"]),
        (["--tiled"], "tiled", True),
        (["--tiled", "yes"], "tiled", True),
        (["--tiled", "--no_tiled"], "tiled", False),
        (["--smooth", "false"], "smooth", False),
        (["--no_smooth"], "smooth", False),
        (["--no-smooth"], "smooth", False),
    ],
)
def test_annotations_say_how_values_are_read(argv, name, value):
    assert getattr(draw(*argv), name) == value


def test_a_hyphen_is_as_good_as_an_underscore_in_names_only():
    @dataclass
    class Words(Arguments):
        """Words."""

        two_words: str = option("", "Words.")

    assert parse_arguments(Words, ["--two-words=a-b--c"], prog="words").two_words == "a-b--c"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "the following arguments are required: --output"),
        (["--outptu", "x"], "unknown argument --outptu; did you mean --output?"),
        (["--out", "x"], "unknown argument --out; did you mean --output?"),
        (["--names", "x"], "unknown argument --names; give its values without --names"),
        (["xyz", "--zzz"], "unknown argument --zzz; --help lists them"),
        (["--colour", "green"], "argument --colour: invalid choice: 'green' (choose from "),
        (["--network", "huge"], "argument --network: invalid choice: 'huge' (choose from "),
        (["--width", "wide"], "argument --width: invalid int value: 'wide'"),
        (["--width", "0", "--output", "x"], "--width 0 must be at least 1 pixel."),
        (["--rate", "nan", "--output", "x"], "--rate nan must be a number."),
        (["--speed", "0", "--output", "x"], "--speed 0.0 must be positive."),
        (["--speed", "nan", "--output", "x"], "--speed nan must be positive."),
        (["--shares", "0.5", "1", "--output", "x"], "--shares [0.5, 1.0] must be at least 0 and below 1 each."),
        (["--tiled", "perhaps"], "argument --tiled: 'perhaps' is neither true nor false"),
        (["--size", "1"], "argument --size: expected 2 arguments"),
        (["--extra", "{a: 1}"], "argument --extra: '{a: 1}' is not JSON ("),
        (["--extra", "[1]"], "argument --extra: '[1]' is not a JSON object; expected {\"key\": value}"),
        (["--config", "openmoji23"], "--config openmoji23: no such file, and no such preset; did you mean openmoji32"),
    ],
)
def test_what_is_typed_wrongly_is_named_in_one_line(capsys, argv, words):
    assert refused(capsys, *argv).startswith(words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("widht: 3", "unknown key 'widht'; did you mean width?"),
        ("width: wide", "width: 'wide' is a str, expected int"),
        ("width: true", "width: True is a bool, expected int"),
        ("rate: fast", "rate: 'fast' is not a number"),
        ("rate: null", "rate: None is a NoneType, expected float"),
        ("smooth: 1", "smooth: 1 is a int, expected bool"),
        ("colour: green", "colour: 'green' is unknown; expected one of red, blue"),
        ("network: huge", "network: 'huge' is unknown; expected one of small, large"),
        ("tags: a", "tags: 'a' is a str, expected a list"),
        ("tags: [1]", "tags: 1 is a int, expected str"),
        ("size: [1]", "size: [1] is a list, expected a list of 2 values"),
        ("extra: [1]", "extra: [1] is a list, expected dict"),
        ("- 3", "expected `key: value` lines, found list"),
        ("a: [", "is not YAML: "),
        ("output: \udcff", "is not YAML: "),
    ],
)
def test_what_a_config_says_wrongly_is_named_though_the_command_line_says_better(capsys, tmp_path, text, words):
    argv = ["--output", "x", "--width", "1", "--config", config(tmp_path, text)]
    assert words in refused(capsys, *argv)


@dataclass
class Frame(Arguments):
    """Options of the frame."""

    switch: ClassVar[str] = "frame"

    frame: Literal["none", "wood", "steel"] = option("none", "Material of the frame.")
    frame_width: int = option(3, "Width of the frame in pixels.")
    frame_colours: list[str] = option([], "Colours of the frame.")
    grain: int = option(1, "Lines of the wood.", needs=("frame", "wood"))


@dataclass
class FramedDraw(Draw, Frame):
    """Draw pictures with frames."""

    blur: float = option(0.0, "Blur of the picture.")
    blur_steps: int = option(2, "Steps of the blur.", needs="blur")


def test_an_option_is_refused_where_what_it_belongs_to_is_off(capsys, tmp_path):
    def parse(*argv):
        return parse_arguments(FramedDraw, ["--output", "x", *argv], prog="draw")

    for argv, words in (
        (["--frame_width", "4"], "--frame_width 4 has no effect without --frame; omit it or give both."),
        (["--frame", "none", "--frame_colours", "a", "b"], "--frame_colours a b has no effect without --frame;"),
        (["--blur_steps", "4", "--frame", "wood"], "--blur_steps 4 has no effect without --blur;"),
        (["--blur_steps", "4", "--blur", "0"], "--blur_steps 4 has no effect without --blur;"),
        (["--frame", "steel", "--grain", "4"], "--grain 4 has no effect without --frame wood; omit it or give both."),
        (["--grain", "4"], "--grain 4 has no effect without --frame wood;"),
    ):
        with pytest.raises(SystemExit):
            parse(*argv)
        assert words in capsys.readouterr().err
    assert parse("--frame", "wood", "--frame_width", "4", "--blur", "1", "--blur_steps", "4").frame_width == 4
    # Nobody is misled by a default or an off; a preset may hold what belongs to something that is switched off here.
    assert parse("--frame_width", "3", "--blur_steps", "0").blur_steps == 0
    assert parse("--frame", "wood", "--grain", "4").grain == 4
    preset = config(tmp_path, "{frame: wood, frame_width: 9}")
    assert parse("--config", preset, "--frame", "none").frame_width == 9
    assert parse("--config", preset, "--frame_colours", "red").frame_colours == ["red"]


def test_a_config_is_read_as_the_command_line_is(tmp_path):
    text = "output: a\nrate: 1e-4\nsize: [1, 2]\nwidth: null\nsets: [[a]]\nextra: {b: 1}\nnames: [x]\ntags: [t]\n"
    read = parse_arguments(Draw, ["--config", config(tmp_path, text), "--tags", "mine"], prog="draw")
    assert read == Draw(
        output=Path("a"), rate=1e-4, size=(1, 2), sets=[["a"]], extra={"b": 1}, names=["x"], tags=["mine"]
    )


def test_a_config_extends_one_beside_it(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "base.yaml").write_text("{output: from-base, rate: 1e-4}")
    (folder / "mine.yaml").write_text("{extends: base.yaml, rate: 2e-4}")
    (tmp_path / "base.yaml").write_text("{output: of-another-folder}")
    monkeypatch.chdir(tmp_path)
    read = parse_arguments(Draw, ["--config", "configs/mine.yaml"], prog="draw")
    assert (read.output, read.rate) == (Path("from-base"), 2e-4)
    (folder / "base.yaml").write_text("{extends: ../configs/mine.yaml}")
    with pytest.raises(SystemExit):
        parse_arguments(Draw, ["--config", "configs/mine.yaml"], prog="draw")
    assert "extends itself: configs/mine.yaml -> configs/base.yaml ->" in capsys.readouterr().err


def test_only_what_wants_a_config_has_one(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(Picture, ["--config", "openmoji32"], prog="picture")
    assert "unknown argument --config" in capsys.readouterr().err


def test_saved_arguments_are_a_config(tmp_path):
    arguments = draw("--width", "3", "--no_smooth", "--size", "1", "2", "--extra", '{"a": 1}', "one")
    save_arguments(arguments, tmp_path / "arguments.yaml")
    again = parse_arguments(Draw, ["--config", str(tmp_path / "arguments.yaml")], prog="draw")
    assert again == arguments and again.width == 3
    names = [line.partition(":")[0] for line in (tmp_path / "arguments.yaml").read_text().splitlines() if ":" in line]
    assert names[0] == "colour" and names[-1] == "names" and names.index("tiled") < names.index("output")


def test_positional_arguments_and_a_config_of_ones_own_are_read(capsys):
    @dataclass
    class Copy(Arguments):
        """Copy."""

        source: Path = option(MISSING, "File to copy.", positional=True)
        target: str = option(MISSING, "Where to copy it.", positional=True)
        config: str = option(MISSING, "Configuration of the copy.", metavar="NAME")

    read = parse_arguments(Copy, ["a", "b", "--config", "c"], prog="copy")
    assert read == Copy(source=Path("a"), target="b", config="c")
    for argv, words in ((["a"], "required: target, --config"), (["a", "b", "c"], "unknown argument c")):
        with pytest.raises(SystemExit):
            parse_arguments(Copy, argv, prog="copy")
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_arguments(Copy, ["--help"], prog="copy")
    assert capsys.readouterr().out.startswith("usage: copy source target --config NAME [options]")


def test_help_shows_groups_from_the_base_up_with_defaults(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(Draw, ["--help"], prog="tcae draw")
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert text.startswith("usage: tcae draw [names ...] --output FOLDER [options]\n\nDraw pictures.\n\nAny number")
    order = ["Picture:", "--colour", "--size H W", "--tiled", "Store:", "--output FOLDER", "--rate X", "Drawing:"]
    places = [text.index(f"  {each}" if each.startswith("-") else each) for each in order]
    assert places == sorted(places)
    words = " ".join(text.split())
    for sentence in (
        "--config FILE YAML file with options of this command.",
        "Colour of the drawing. (default: blue)",
        "Height and width in pixels. (default: 4 6)",
        "--width PIXELS Width in pixels; that of the screen if unset. --smooth",
        "--batch N Pictures at a time. (default: 8)",
        "Smooth the edges. (default: true; --no_smooth turns it off)",
        "Draw in tiles. (default: false)",
        "Folder of the pictures. (required)",
        "Pictures per second, 50% of them kept. (default: 0.001)",
        "names Pictures to draw. (default: first)",
    ):
        assert sentence in words, text
    assert "--no_smooth " not in words.replace("--no_smooth turns", "")


@pytest.mark.parametrize(
    ("spec", "argv0", "name"),
    [
        (None, "/home/me/bin/tcae-train", "tcae-train"),
        (None, "training/train_tcae.py", "train_tcae.py"),
        ("tcae_diffusers.training.train_tcae", "x.py", "python -m tcae_diffusers.training.train_tcae"),
        ("tcae_diffusers.evaluation.__main__", "x.py", "python -m tcae_diffusers.evaluation"),
    ],
)
def test_a_program_is_called_what_the_user_typed(monkeypatch, spec, argv0, name):
    main = ModuleType("__main__")
    main.__spec__ = spec and SimpleNamespace(name=spec)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", [argv0])
    assert program_name() == name


def test_a_list_that_is_given_twice_is_refused_and_not_cut_short(capsys):
    for name in ("--shares", "--tags"):
        with pytest.raises(SystemExit):
            parse_arguments(Draw, ["--output", "x", name, "0.1", "--colour", "red", name, "0.2"])
        assert f"{name} is given more than once; write all its values behind one {name}" in capsys.readouterr().err
    twice = parse_arguments(Draw, ["--output", "x", "--sets", "a", "b", "--sets", "c"])
    assert twice.sets == [["a", "b"], ["c"]]
    # What is single is what was said last, as a script with options of its own asks.
    assert parse_arguments(Draw, ["--output", "x", "--batch", "1", "--batch", "2"]).batch == 2


def test_a_key_that_is_given_twice_is_refused_and_not_cut_short(capsys, tmp_path):
    config = tmp_path / "twice.yaml"
    config.write_text("batch: 3\nextra: {a: 1}\nbatch: 4\n")
    with pytest.raises(SystemExit):
        parse_arguments(Draw, ["--output", "x", "--config", str(config)])
    assert "is not YAML: key 'batch' is given twice" in capsys.readouterr().err
    with pytest.raises(yaml.YAMLError, match="key 'b' is given twice"):
        read_yaml("a: [{b: 1, b: 1}]")
    # One that replaces what is merged is meant to.
    merged = read_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n1: one\n'1': text")
    assert merged == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, 1: "one", "1": "text"}
