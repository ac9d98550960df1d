"""One test per way to load, as the package promises them; see tcae_diffusers/registration.py."""

import json
import os
import pickle
import subprocess
import sys
import warnings
from types import ModuleType

import diffusers
import pytest
import torch
from diffusers import AutoModel, DDIMScheduler, DiffusionPipeline, DiTPipeline
from diffusers.pipelines import pipeline_loading_utils

import tcae_diffusers
from tcae_diffusers import AutoencoderTC, TCDiTPipeline
from tcae_diffusers.registration import TESTED_DIFFUSERS, check_loading, register_with_diffusers

from .loopback_hub import LoopbackHub


@pytest.fixture(scope="module")
def pipeline_folder(tiny_vae, tiny_transformer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved_pipeline")
    TCDiTPipeline(tiny_vae, tiny_transformer, DDIMScheduler(clip_sample=False), id2label={0: "flags"}).save_pretrained(
        folder, variant="fp16"
    )
    TCDiTPipeline(tiny_vae, tiny_transformer, DDIMScheduler(clip_sample=False), id2label={0: "flags"}).save_pretrained(
        folder
    )
    return folder


def assert_same_weights(loaded, expected):
    assert type(loaded) is type(expected)
    state = loaded.state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.state_dict().items())


def test_pipelines_save_the_short_library_name(pipeline_folder):
    index = json.loads((pipeline_folder / "model_index.json").read_text())
    assert index["vae"] == ["tcae", "AutoencoderTC"]
    assert index["_class_name"] == "TCDiTPipeline"


@pytest.mark.parametrize("pipeline_class", [DiffusionPipeline, TCDiTPipeline])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_plain_and_own_pipeline_class_load_a_folder(pipeline_folder, tiny_vae, pipeline_class, variant):
    pipeline = pipeline_class.from_pretrained(pipeline_folder, variant=variant)
    assert type(pipeline) is TCDiTPipeline
    assert pipeline.id2label == {0: "flags"}
    assert_same_weights(pipeline.vae, tiny_vae)


def test_stock_dit_pipeline_takes_the_autoencoder(tiny_vae, tmp_path):
    """Stock DiTPipeline takes 1000 for the null class and reads `out_channels`: the transformer must have both."""
    from .conftest import make_transformer

    transformer = make_transformer(num_embeds_ada_norm=1000)
    TCDiTPipeline(tiny_vae, transformer, DDIMScheduler(clip_sample=False), id2label={0: "flags"}).save_pretrained(
        tmp_path
    )
    vae = AutoencoderTC.from_pretrained(tmp_path, subfolder="vae")
    stock = DiTPipeline.from_pretrained(tmp_path, vae=vae)
    ours = DiffusionPipeline.from_pretrained(tmp_path)
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "np"}
    stock_images, our_images = (
        pipeline(pipeline.get_label_ids(["flags"]), generator=torch.manual_seed(0), **settings).images
        for pipeline in (stock, ours)
    )
    assert stock_images.shape == (1, 16, 16, 3)
    torch.testing.assert_close(torch.tensor(stock_images), torch.tensor(our_images), rtol=1e-4, atol=1e-4)


def test_auto_model_loads_the_model_alone_or_from_a_pipeline(pipeline_folder, tiny_vae):
    assert_same_weights(AutoModel.from_pretrained(str(pipeline_folder / "vae")), tiny_vae)
    assert_same_weights(AutoModel.from_pretrained(str(pipeline_folder), subfolder="vae"), tiny_vae)
    assert type(AutoModel.from_config(tiny_vae.config)) is AutoencoderTC


PROBE = """
import json, pickle, sys
pickled, folder, repository = sys.argv[1:]
with open(pickled, "rb") as file:
    model = pickle.load(file)          # before any import of ours: the pickle must bring the package by itself
results = {"unpickled": type(model).__name__}

import tcae_diffusers
from diffusers import AutoencoderTC, AutoModel, DiffusionPipeline, DiTPipeline

def loaded(pipeline):
    weights = pipeline.vae.state_dict()
    same = all(weights[name].equal(value) for name, value in model.state_dict().items())
    return [type(pipeline).__name__, type(pipeline.vae) is AutoencoderTC and same]

results["local"] = loaded(DiffusionPipeline.from_pretrained(folder))
results["hub"] = loaded(DiffusionPipeline.from_pretrained(repository))
results["hub own class"] = loaded(tcae_diffusers.TCDiTPipeline.from_pretrained(repository))
vae = AutoencoderTC.from_pretrained(repository, subfolder="vae")
results["hub stock"] = loaded(DiTPipeline.from_pretrained(repository, vae=vae))
results["hub auto model"] = type(AutoModel.from_pretrained(repository, subfolder="vae")).__name__
results["hub model alone"] = type(AutoModel.from_pretrained(repository + "-vae")).__name__
print("RESULTS" + json.dumps(results))
"""


@pytest.mark.parametrize("disable_remote_code", ["0", "1"])
def test_a_fresh_process_loads_from_pickle_folder_and_hub(pipeline_folder, tiny_vae, tmp_path, disable_remote_code):
    """None of these ways executes code of the repository, so forbidding that must change nothing."""
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(tiny_vae))
    with LoopbackHub({"lab/flags": pipeline_folder, "lab/flags-vae": pipeline_folder / "vae"}) as hub:
        finished = subprocess.run(
            [sys.executable, "-c", PROBE, tmp_path / "model.pickle", pipeline_folder, "lab/flags"],
            env={
                **os.environ,
                "HF_ENDPOINT": hub.endpoint,
                "HF_HOME": str(tmp_path / "hf_home"),
                "HF_HUB_OFFLINE": "0",
                "DIFFUSERS_DISABLE_REMOTE_CODE": disable_remote_code,
            },
            capture_output=True,
            text=True,
        )
    assert finished.returncode == 0, finished.stderr
    results = json.loads(finished.stdout.split("RESULTS")[1])
    assert results == {
        "unpickled": "AutoencoderTC",
        "local": ["TCDiTPipeline", True],
        "hub": ["TCDiTPipeline", True],
        "hub own class": ["TCDiTPipeline", True],
        "hub stock": ["DiTPipeline", True],
        "hub auto model": "AutoencoderTC",
        "hub model alone": "AutoencoderTC",
    }
    assert any("diffusion_pytorch_model.safetensors" in request for request in hub.requests)


def test_pickle_round_trip_in_one_process(tiny_vae):
    assert_same_weights(pickle.loads(pickle.dumps(tiny_vae)), tiny_vae)
    assert pickle.loads(pickle.dumps(TCDiTPipeline)) is TCDiTPipeline


def test_importing_the_package_imports_nothing_that_takes_seconds_and_registers_all_the_same():
    code = """
import importlib.util, sys, tcae_diffusers
assert {"AutoencoderTC", "TCDiTPipeline"} <= set(dir(tcae_diffusers)) and tcae_diffusers.AUTOENCODER_TC_PRESETS
# What other libraries do to learn whether diffusers is installed must not count as its import.
assert importlib.util.find_spec("diffusers") is not None
assert not {"diffusers", "torch", "torchao", "transformers"} & sys.modules.keys()

import diffusers
assert not {"torchao", "transformers"} & sys.modules.keys()
from diffusers.pipelines.tcae import AutoencoderTC
assert AutoencoderTC is tcae_diffusers.AutoencoderTC is diffusers.AutoencoderTC
for module in (diffusers, tcae_diffusers):
    assert hasattr(module, "TCDiTPipeline") and not hasattr(module, "TCDiTPipelines"), module
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_registering_again_changes_nothing():
    holder = register_with_diffusers()
    assert holder is register_with_diffusers() is diffusers.pipelines.tcae is sys.modules["diffusers.pipelines.tcae"]
    assert diffusers.AutoencoderTC is tcae_diffusers.AutoencoderTC is holder.AutoencoderTC
    assert sys.modules[AutoencoderTC.__module__].AutoencoderTC is AutoencoderTC


# A diffusers without the internals -----------------------------------------------------------------------------------


def the_only_sentence(warned):
    (warning,) = warned
    sentence = str(warning.message)
    assert sentence.endswith(f"pip install 'diffusers=={TESTED_DIFFUSERS}'.") and ". " not in sentence
    assert "may not find" in sentence
    return sentence


def run_with_stub(tmp_path, code, **files):
    """Runs `code` where `diffusers` is a package of these files."""
    for name, text in {"__init__.py": "__version__ = '9.0'", "pipelines/__init__.py": "", **files}.items():
        (tmp_path / "diffusers" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "diffusers" / name).write_text(text)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import tcae_diffusers\n{code}"
    return subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True)


def test_a_diffusers_that_loads_pipelines_elsewhere_is_named_and_still_imported(tmp_path):
    finished = run_with_stub(tmp_path, "import diffusers; print(diffusers.__version__)")
    assert finished.returncode == 0 and finished.stdout == "9.0\n"
    (line,) = (line for line in finished.stderr.splitlines() if "RuntimeWarning" in line)
    assert "diffusers 9.0 lacks the module diffusers.pipelines.pipeline_loading_utils" in line


def test_a_diffusers_that_finds_no_class_by_the_library_name_is_named_when_it_loads(tmp_path):
    """As 0.42.0 did: what AutoModel calls imported a component's library by its name alone."""
    loading = """
def simple_get_class_obj(library_name, class_name):
    from diffusers import pipelines
    return getattr(getattr(pipelines, library_name), class_name)

def get_class_obj_and_candidates(library_name, class_name, importable_classes, pipelines, is_pipeline_module):
    return getattr(__import__(library_name), class_name), {}
"""
    code = "import diffusers; print('imported'); import diffusers.pipelines.pipeline_loading_utils"
    finished = run_with_stub(tmp_path, code, **{"pipelines/pipeline_loading_utils.py": loading})
    assert finished.returncode == 0 and finished.stdout == "imported\n"
    (line,) = (line for line in finished.stderr.splitlines() if "RuntimeWarning" in line)
    assert "pipeline_loading_utils.get_class_obj_and_candidates that finds registered classes" in line
    assert "No module named 'tcae'" in line


def test_a_class_whose_base_is_gone_says_so(tmp_path):
    finished = run_with_stub(tmp_path, "tcae_diffusers.AutoencoderTC")
    last = finished.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "ImportError: tcae_diffusers.AutoencoderTC needs a part of diffusers that diffusers 9.0 does"
    )
    assert "No module named 'diffusers." in last and f"pip install 'diffusers=={TESTED_DIFFUSERS}'" in last


@pytest.mark.parametrize(
    "name", ["simple_get_class_obj", "get_class_obj_and_candidates", "_fetch_class_library_tuple"]
)
def test_each_function_of_loading_is_tried_out(monkeypatch, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_loading(pipeline_loading_utils)
    monkeypatch.setattr(pipeline_loading_utils, name, lambda *arguments: ("another", "class"))
    with pytest.warns(RuntimeWarning) as warned:
        check_loading(pipeline_loading_utils)
    assert f"{name} that finds registered classes (another answer)" in the_only_sentence(warned)
    monkeypatch.delattr(pipeline_loading_utils, name)
    with pytest.warns(RuntimeWarning) as warned:
        check_loading(pipeline_loading_utils)
    assert f"has no attribute '{name}'" in the_only_sentence(warned)


def test_a_top_level_module_that_asks_nobody_is_named(monkeypatch):
    class Deaf(ModuleType):
        """Never asks the `__getattr__` that is set on it."""

        def __getattribute__(self, name):
            if name in ("AutoencoderTC", "__tcae_probe__"):
                raise AttributeError(name)
            return super().__getattribute__(name)

    deaf = Deaf("diffusers")
    deaf.__dict__.update(__version__="9.0", pipelines=diffusers.pipelines, __path__=diffusers.__path__)
    monkeypatch.setitem(sys.modules, "diffusers", deaf)
    with pytest.warns(RuntimeWarning) as warned:
        register_with_diffusers()
    assert "diffusers 9.0 lacks a top-level module that asks" in the_only_sentence(warned)


def test_a_class_of_diffusers_own_is_not_replaced(monkeypatch):
    monkeypatch.setattr(diffusers, "AutoencoderTC", torch.nn.Linear)
    with pytest.raises(ImportError, match="has its own AutoencoderTC"):
        register_with_diffusers()
