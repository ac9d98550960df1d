"""The export loads where this package is not installed, and never runs its code without being trusted."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, DDIMScheduler, DiTPipeline

from tcae_diffusers.pipelines import export_with_remote_code
from tcae_diffusers.pipelines.remote_code_export import self_contained_source

from .conftest import make_transformer
from .loopback_hub import LoopbackHub

PROBE = """
import json, os, sys
# An import of the package, or of what diffusers does not need, fails from here on, as if it were not installed.
sys.modules |= dict.fromkeys(["tcae_diffusers", "accelerate", "peft", "psutil", "transformers"])
import numpy, torch
from diffusers import AutoModel, DiffusionPipeline
trust = json.loads(sys.argv[1])
results = {}

def attempt(name, load, use):
    before = set(sys.modules)
    try:
        loaded = load()
    except Exception as error:
        ran_code = any(module.startswith("diffusers_modules.") for module in set(sys.modules) - before)
        results[name] = [f"{type(error).__name__}: {error}", ran_code]
    else:
        results[name] = use(loaded)

def draw(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline([1], generator=torch.manual_seed(0), num_inference_steps=2, output_type="np").images
    numpy.save(sys.argv[2], image)
    return [type(pipeline).__name__, float(numpy.abs(image - expected[type(pipeline).__name__]).max())]

def decode(model):
    return [type(model).__name__, float((model.decode(torch.ones(1, 4, 2, 2)).sample - decoded).abs().max())]

expected = {"TCDiTPipeline": numpy.load("ours.npy"), "DiTPipeline": numpy.load("stock.npy")}
decoded = torch.from_numpy(numpy.load("decoded.npy"))
for place in ("", "lab/"):
    load = DiffusionPipeline.from_pretrained
    attempt(place + "ours", lambda: load(place + "ours", trust_remote_code=trust), draw)
    attempt(place + "stock", lambda: load(place + "stock", trust_remote_code=trust), draw)
    attempt(place + "model", lambda: AutoModel.from_pretrained(place + "model", trust_remote_code=trust), decode)
vae = os.path.join("ours", "vae")
attempt("component", lambda: AutoModel.from_pretrained(vae, trust_remote_code=trust), decode)
print("RESULTS" + json.dumps(results))
"""


@pytest.fixture(scope="module")
def exports(tiny_vae, tiny_transformer, tmp_path_factory):
    from diffusers import FlowMatchEulerDiscreteScheduler

    from tcae_diffusers import TCDiTPipeline

    folder = tmp_path_factory.mktemp("exports")
    ours = TCDiTPipeline(tiny_vae, tiny_transformer, FlowMatchEulerDiscreteScheduler(), id2label={1: "flags"})
    stock = DiTPipeline(
        make_transformer(num_embeds_ada_norm=1000), tiny_vae, DDIMScheduler(clip_sample=False), id2label={1: "flags"}
    )
    for name, exported in (("ours", ours), ("stock", stock), ("model", tiny_vae)):
        export_with_remote_code(exported, folder / name)
        if exported is not tiny_vae:
            exported.set_progress_bar_config(disable=True)
            generator = torch.manual_seed(0)
            images = exported([1], generator=generator, num_inference_steps=2, output_type="np").images
            np.save(folder / f"{name}.npy", images)
    np.save(folder / "decoded.npy", tiny_vae.decode(torch.ones(1, 4, 2, 2)).sample.detach().numpy())
    return folder


def run_probe(exports, hf_home, trust, disable_remote_code):
    names = ("ours", "stock", "model")
    with LoopbackHub({f"lab/{name}": exports / name for name in names}) as hub:
        finished = subprocess.run(
            [sys.executable, "-c", PROBE, json.dumps(trust), hf_home / "image.npy"],
            cwd=exports,
            env={
                **os.environ,
                "HF_ENDPOINT": hub.endpoint,
                "HF_HOME": str(hf_home),
                "HF_HUB_OFFLINE": "0",
                "DIFFUSERS_DISABLE_REMOTE_CODE": disable_remote_code,
            },
            capture_output=True,
            text=True,
        )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.split("RESULTS")[1])


def test_with_trust_it_loads_without_the_package(exports, tmp_path):
    results = run_probe(exports, tmp_path, trust=True, disable_remote_code="0")
    assert len(results) == 7
    for name, (loaded_class, difference) in results.items():
        expected = {"ours": "TCDiTPipeline", "stock": "DiTPipeline"}.get(name.split("/")[-1], "AutoencoderTC")
        assert loaded_class == expected, (name, loaded_class)
        assert difference < 1e-4, (name, difference)


@pytest.mark.parametrize(("trust", "disable_remote_code"), [(False, "0"), (True, "1")])
def test_without_trust_or_where_forbidden_no_code_runs(exports, tmp_path, trust, disable_remote_code):
    results = run_probe(exports, tmp_path, trust=trust, disable_remote_code=disable_remote_code)
    expected = "trust_remote_code=True" if disable_remote_code == "0" else "DIFFUSERS_DISABLE_REMOTE_CODE"
    assert len(results) == 7
    for name, (message, ran_code) in results.items():
        assert message.startswith("ValueError") and expected in message, (name, message)
        assert not ran_code, name


def test_exported_files_name_no_module_of_the_package(exports):
    code_files = sorted(exports.rglob("*.py"))
    assert {file.name for file in code_files} == {"autoencoder_tc.py", "pipeline_tc_dit.py"}
    for file in code_files:
        source = file.read_text()
        compile(source, str(file), "exec")
        imports = [line for line in source.splitlines() if line.lstrip().startswith(("import ", "from "))]
        assert not any(line.split()[1].startswith((".", "tcae_diffusers")) for line in imports)
    assert "trust_remote_code=True" in (exports / "ours" / "README.md").read_text()


def test_only_siblings_can_be_inlined(tmp_path):
    (tmp_path / "sibling.py").write_text("VALUE = 1\n")
    module = tmp_path / "module.py"
    module.write_text("import torch\nfrom .sibling import (\n    VALUE,\n)\nprint(VALUE)\n")
    assert self_contained_source(module) == "import torch\nVALUE = 1\nprint(VALUE)\n"
    siblings = "only `from .module import name` can be exported"
    for line, message in (
        ("import tcae_diffusers", "cannot export an absolute import from tcae_diffusers"),
        ("from ..data import x", siblings),
        ("from .sibling import VALUE as v", siblings),
        ("from . import y", siblings),
    ):
        module.write_text(f"{line}\n")
        with pytest.raises(ValueError, match=rf"module\.py, line 1: {message}"):
            self_contained_source(module)


def test_an_export_that_makes_no_sense_is_refused(exports, tmp_path, tiny_vae):
    with pytest.raises(ValueError, match="not an empty folder"):
        export_with_remote_code(tiny_vae, exports / "model")
    with pytest.raises(ValueError, match="AutoencoderDC is not a class of this package"):
        export_with_remote_code(AutoencoderDC.__new__(AutoencoderDC), tmp_path / "dc")
    foreign = DiTPipeline(make_transformer(), make_transformer(), DDIMScheduler(clip_sample=False))
    with pytest.raises(ValueError, match="diffusers' own"):
        export_with_remote_code(foreign, tmp_path / "foreign")
    with pytest.raises(TypeError, match="got str"):
        export_with_remote_code("pipeline", tmp_path / "text")
    assert not list(tmp_path.iterdir())
