"""Every command reads its options, and refuses wrong ones, before it imports anything that takes seconds."""

import configparser
import json
import subprocess
import sys
import textwrap

from tcae_diffusers.evaluation.__main__ import COMMANDS

from .test_import_direction import ROOT, package_files

TAKE_SECONDS = ("accelerate", "diffusers", "gradio", "numpy", "torch", "torchao", "transformers")


def modules() -> list[str]:
    """What `python -m` runs."""
    files = {name: file for name, file in package_files().items() if 'if __name__ == "__main__":' in file.read_text()}
    return [f"tcae_diffusers.{name.removesuffix('.__main__')}" for name in files]


def console_scripts() -> list[str]:
    """`module:function` of each."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")
    return [line.partition("=")[2].strip() for line in lines if line]


def test_help_and_typos_are_answered_before_torch_is_imported():
    """All in one process: it must not have imported torch after the last of them."""
    code = """
        import contextlib, io, json, pkgutil, runpy, sys

        start = {
            "module": lambda name: runpy.run_module(name, run_name="__main__", alter_sys=True),
            "file": lambda name: runpy.run_path(name, run_name="__main__"),
            "function": lambda name: sys.exit(pkgutil.resolve_name(name)()),
        }
        commands, take_seconds = json.loads(sys.argv[1])
        for kind, name, *words in commands:
            for option, code, answer in (("--help", 0, "usage:"), ("--no_such_option", 2, "--no_such_option")):
                sys.argv = [name, *words, option]
                said = io.StringIO()
                try:
                    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                        start[kind](name)
                    raise AssertionError(f"{sys.argv} went on")
                except SystemExit as stop:
                    assert (stop.code or 0, answer in said.getvalue()) == (code, True), (sys.argv, said.getvalue())
                imported = sorted(set(take_seconds) & sys.modules.keys())
                assert not imported, (sys.argv, imported)
    """
    commands = [("module", name) for name in modules()]
    commands += [("module", "tcae_diffusers.evaluation", name) for name in COMMANDS]
    commands += [("file", str(ROOT / "training" / f"{name}.py")) for name in ("train_tcae", "train_dit")]
    commands += [("function", name) for name in console_scripts()]
    assert len(commands) >= 25
    arguments = [sys.executable, "-c", textwrap.dedent(code), json.dumps([commands, TAKE_SECONDS])]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
