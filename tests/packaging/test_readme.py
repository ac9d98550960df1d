"""The commands in README.md and on two pages of docs/ are understood, and the files that they link to exist."""

import ast
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
import yaml

from tcae_diffusers.arguments import parse_arguments
from tcae_diffusers.evaluation.__main__ import COMMANDS
from tcae_diffusers.evaluation.arguments.app import AppArguments
from tcae_diffusers.training.cache_arguments import CacheArguments
from tcae_diffusers.training.dit_arguments import DiTArguments
from tcae_diffusers.training.tokenizer_arguments import TokenizerArguments

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/app.md", "docs/evaluation.md")
SCRIPTS = {
    "training/train_tcae.py": TokenizerArguments,
    "training/cache_latents.py": CacheArguments,
    "training/train_dit.py": DiTArguments,
}
EVALUATION = (["tcae-evaluate"], ["python", "-m", "tcae_diffusers.evaluation"])


def commands():
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        for block in (block for language, block in blocks if language in ("", "bash")):
            for line in block.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield pytest.param(words, id=f"{page} {' '.join(words[:4])}")


@pytest.mark.parametrize("words", list(commands()))
def test_commands_are_understood(words):
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "tcae-app":
        parse_arguments(AppArguments, words[1:])
    elif words[:2] == ["pip", "install"]:
        (extra,) = re.findall(r"\[(\w+)\]", words[-1])
        assert re.search(rf"^{extra} =$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    elif words[:2] == ["accelerate", "launch"]:
        parse_arguments(SCRIPTS[words[2]], words[3:])
    else:
        (program,) = (prefix for prefix in EVALUATION if words[: len(prefix)] == prefix)
        command, *argv = words[len(program) :]
        arguments_type, _ = COMMANDS[command]
        parse_arguments(arguments_type, argv)


def test_there_are_commands_on_every_page():
    assert {parameter.id.split()[0] for parameter in commands()} == set(PAGES)


def test_the_recipe_for_a_space_starts_the_page():
    text = (ROOT / "docs" / "app.md").read_text(encoding="utf-8")
    blocks = {
        language: block for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    }
    card = yaml.safe_load(blocks["yaml"].strip("-\n"))
    assert card["sdk"] == "gradio" and card["app_file"] == "app.py"
    *imports, call = ast.parse(blocks["python"]).body
    main = pkgutil.resolve_name("tcae_diffusers.evaluation.app.__main__:main")
    assert [(line.module, line.names[0].name) for line in imports] == [(main.__module__, "main")]
    arguments = parse_arguments(AppArguments, ast.literal_eval(call.value.args[0]))
    # What a Space expects of a program.
    assert (arguments.host, arguments.port) == ("0.0.0.0", 7860)


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
)
def test_links_lead_to_files_and_headings(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    for link in links:
        file, _, heading = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}, link
