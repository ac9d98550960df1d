"""The page docs/using_in_diffusers.md is true: its snippets run, and its table is what was tested."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tcae_diffusers import AutoencoderTC

from .loopback_hub import LoopbackHub
from .stock_pipelines import STOCK_PIPELINES

PAGE = Path(__file__).parents[2] / "docs" / "using_in_diffusers.md"


RUN = r"""
import re, sys
from pathlib import Path
import torch

torch.manual_seed(0)
torch.set_num_threads(1)
page, namespace = Path(sys.argv[1]), {"__name__": "page"}
text = page.read_text(encoding="utf-8")
for snippet in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
    # Keeps the page's line numbers in tracebacks.
    line = text.count("\n", 0, snippet.start(1))
    exec(compile("\n" * line + snippet[1], str(page), "exec"), namespace)
"""


def test_every_snippet_runs_in_order(tmp_path):
    for package in ("onnxruntime", "onnxscript", "torchao"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    (tmp_path / "empty").mkdir()
    with LoopbackHub({}, tmp_path / "hub") as hub:
        finished = subprocess.run(
            [sys.executable, "-c", RUN, PAGE],
            cwd=tmp_path / "empty",
            env={
                **os.environ,
                "HF_ENDPOINT": hub.endpoint,
                "HF_HOME": str(tmp_path / "hf_home"),  # exported code is copied here when it is loaded
                "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1",
                "HF_TOKEN": "hf_loopback",
            },
            capture_output=True,
            text=True,
        )
    assert finished.returncode == 0, finished.stderr
    pushed = tmp_path / "hub" / "lab" / "my-tokenizer"
    assert "### Reconstruction: photos, 2 images of 32×32" in (pushed / "README.md").read_text(encoding="utf-8")
    assert AutoencoderTC.from_pretrained(pushed).config.latent_channels == 32


def test_the_table_names_exactly_the_tested_pipelines():
    rows = re.findall(r"^\| `(\w+Pipeline)` \| (?:C|4C) ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    tested = {build()[0].__name__ for build in STOCK_PIPELINES.values()}
    assert sorted(rows) == sorted(tested | {"TCDiTPipeline"})
    readme = (PAGE.parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"{len(tested)} stock pipelines" in readme


@pytest.mark.parametrize("name", ["LongCatImagePipeline", "Kandinsky6TI2VAPipeline", "Kandinsky6SRPipeline"])
def test_what_cannot_work_is_listed_with_its_reason(name):
    assert re.search(rf"^\| `{name}` \| .{{20,}} \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
