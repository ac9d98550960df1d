"""The page docs/using_in_diffusers.md is true: its snippets run, and its table is what was tested."""

import re
from pathlib import Path

import pytest
import torch

from .stock_pipelines import STOCK_PIPELINES

PAGE = Path(__file__).parents[2] / "docs" / "using_in_diffusers.md"


def test_every_snippet_runs_in_order(tmp_path, monkeypatch):
    text = PAGE.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    # Exported code is copied here when it is loaded; the constant was read from the environment at import.
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    torch.manual_seed(0)
    namespace = {"__name__": "page"}
    snippets = list(re.finditer(r"```python\n(.*?)```", text, re.DOTALL))
    assert len(snippets) > 10
    for snippet in snippets:
        # Keeps the page's line numbers in tracebacks.
        line = text.count("\n", 0, snippet.start(1))
        exec(compile("\n" * line + snippet[1], str(PAGE), "exec"), namespace)


def test_the_table_names_exactly_the_tested_pipelines():
    rows = re.findall(r"^\| `(\w+Pipeline)` \| (?:C|4C) ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    tested = {build()[0].__name__ for build in STOCK_PIPELINES.values()}
    assert sorted(rows) == sorted(tested | {"TCDiTPipeline"})


@pytest.mark.parametrize("name", ["Flux2Pipeline", "QwenImagePipeline"])
def test_what_cannot_work_is_listed_with_its_reason(name):
    assert re.search(rf"^\| `{name}` \| .{{20,}} \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
