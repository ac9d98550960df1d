"""The wheel installs one top-level name and works without the checkout."""

import subprocess
import sys
import sysconfig
import textwrap
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str, cwd: Path) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy of what git tracks: a build in the checkout leaves build/ behind, and could pick up stale files.
    files = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), cwd=folder / "source")
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_exactly_one_top_level_name(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top_level = {name.split("/")[0] for name in names}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"tcae_diffusers"}


def test_the_wheel_holds_every_module_and_data_file_of_the_checkout(wheel):
    folders = {
        "tcae_diffusers": "tcae_diffusers",
        "pipelines": "tcae_diffusers/pipelines",
        "training": "tcae_diffusers/training",
        "evaluation": "tcae_diffusers/evaluation",
    }
    expected = set()
    for name in filter(None, run("git", "ls-files", "-z", cwd=ROOT).split("\0")):
        folder, _, rest = name.partition("/")
        if folder in folders and not name.endswith(".md"):
            expected.add(f"{folders[folder]}/{rest}")
    assert expected <= set(zipfile.ZipFile(wheel).namelist())


def test_every_module_imports_and_every_command_starts_from_the_installed_wheel(wheel, tmp_path):
    """In a fresh environment that sees the dependencies of this one, but neither the checkout nor its installation."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--quiet",
        str(wheel),
        cwd=tmp_path,
    )
    site = next((tmp_path / "env" / "lib").glob("python*")) / "site-packages"
    # Paths in a .pth file are added, but their own .pth files (the editable installation) are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    code = """
        import importlib, pkgutil, sys
        import tcae_diffusers
        assert tcae_diffusers.__file__.startswith(sys.prefix), tcae_diffusers.__file__
        names = [m.name for m in pkgutil.walk_packages(tcae_diffusers.__path__, "tcae_diffusers.")]
        for name in names:
            importlib.import_module(name)
        for name in ("pipelines", "training.train_tcae", "training.configs", "evaluation.__main__"):
            assert f"tcae_diffusers.{name}" in names, name
        from importlib.metadata import entry_points
        commands = [e for e in entry_points(group="console_scripts") if e.value.startswith("tcae_diffusers")]
        assert len(commands) >= 5, commands
        for command in commands:
            assert callable(command.load())
        print(len(names))
    """
    count = int(run(str(python), "-c", textwrap.dedent(code), cwd=tmp_path).split()[-1])
    assert count > 40
