"""Every command reads its options, and refuses wrong ones, before it imports anything that takes seconds."""

import configparser
import json
import subprocess
import sys
import textwrap

from .test_import_direction import ROOT, package_files

TAKE_SECONDS = ("accelerate", "diffusers", "numpy", "torch", "torchao", "transformers")


def programs() -> list[str]:
    """Dotted names of the modules that `python -m` runs."""
    files = {name: file for name, file in package_files().items() if 'if __name__ == "__main__":' in file.read_text()}
    return [f"tcae_diffusers.{name}" for name in files if name != "evaluation.__main__"]


def console_scripts() -> list[str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")
    return [line.partition("=")[2].strip() for line in lines if line and "evaluation" not in line]


def test_help_and_typos_are_answered_before_torch_is_imported():
    """In one process for all: what one command imports would be found whichever it is."""
    code = """
        import contextlib, io, json, pkgutil, runpy, sys

        programs, scripts, console_scripts, take_seconds = json.loads(sys.argv[1])
        starts = {name: lambda name=name: runpy.run_module(name, None, "__main__", True) for name in programs}
        starts |= {path: lambda path=path: runpy.run_path(path, None, "__main__") for path in scripts}
        starts |= {name: lambda name=name: sys.exit(pkgutil.resolve_name(name)()) for name in console_scripts}
        for name, start in starts.items():
            for option, code in (("--help", 0), ("--no_such_option", 2)):
                sys.argv = [name, option]
                said = io.StringIO()
                try:
                    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                        start()
                    raise AssertionError(f"{name} {option} went on")
                except SystemExit as stop:
                    assert (stop.code or 0) == code, (name, option, stop.code, said.getvalue())
                assert ("usage:" if code == 0 else "--no_such_option") in said.getvalue(), (name, said.getvalue())
                imported = sorted(set(take_seconds) & sys.modules.keys())
                assert not imported, (name, option, imported)
        print(len(starts))
    """
    scripts = [str(ROOT / "training" / f"{name}.py") for name in ("train_tcae", "train_dit")]
    names = [programs(), scripts, console_scripts(), TAKE_SECONDS]
    command = [sys.executable, "-c", textwrap.dedent(code), json.dumps(names)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == sum(map(len, names[:3])) >= 13
