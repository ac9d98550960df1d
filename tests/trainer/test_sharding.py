"""The launch configurations that ship, and ways to shard that are refused before anything is built."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

from tcae_diffusers.trainer.sharding import CONFIG, check_sharding
from tcae_diffusers.training import cache_latents, finetune_decoder, train_dit, train_tcae

from ..accelerate_configs import FOLDER, launch_arguments, launch_environment
from ..latent_commands import calibrated, home, run


def sharded_accelerator(mixed_precision="no", **settings):
    plugin = FullyShardedDataParallelPlugin(**{"fsdp_version": 2, "cpu_ram_efficient_loading": False, **settings})
    return SimpleNamespace(
        distributed_type=DistributedType.FSDP,
        mixed_precision=mixed_precision,
        state=SimpleNamespace(fsdp_plugin=plugin),
    )


def test_the_launcher_takes_each_configuration():
    names = {file.stem for file in FOLDER.glob("*.yaml")}
    assert names == {"ddp", "ddp_multi_node", "fsdp2"}
    arguments = launch_arguments("ddp", num_processes=4)
    assert arguments.multi_gpu and not arguments.use_fsdp and arguments.num_processes == 4
    environment = launch_environment("fsdp2", num_processes=4)
    assert environment["ACCELERATE_USE_FSDP"] == "true" and environment["FSDP_VERSION"] == "2"


def test_the_configuration_of_several_machines_divides_its_processes_among_them():
    arguments = launch_arguments("ddp_multi_node", machine_rank=1, main_process_ip="10.0.0.1")
    prepare_multi_gpu_env(arguments)
    assert (arguments.nnodes, arguments.nproc_per_node, arguments.node_rank) == ("2", "8", 1)
    assert arguments.rdzv_endpoint == "10.0.0.1:29500"


def test_the_number_of_gpus_must_be_given_where_the_file_cannot_know_it():
    for name in ("ddp", "fsdp2"):
        with pytest.raises(ValueError, match="--num_processes"):
            launch_arguments(name)


def test_the_shipped_fsdp_configuration_passes_the_check(monkeypatch):
    for key, value in launch_environment("fsdp2", num_processes=2).items():
        monkeypatch.setenv(key, value)
    check_sharding(sharded_accelerator(fsdp_version=None, cpu_ram_efficient_loading=None), {"--ssl_drop_path": True})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"fsdp_version": 1}, "fsdp_version: 1"),
        ({"state_dict_type": "FULL_STATE_DICT"}, "FULL_STATE_DICT"),
        ({"cpu_ram_efficient_loading": True}, "fsdp_cpu_ram_efficient_loading"),
        ({"cpu_offload": True}, "fsdp_offload_params"),
        ({"mixed_precision": "fp16"}, "bf16 works"),
    ],
)
def test_an_fsdp_setting_that_is_not_supported_is_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named) as refusal:
        check_sharding(sharded_accelerator(**settings), {})
    assert "fsdp2.yaml" in str(refusal.value)


def test_activations_are_recomputed_in_one_way_and_never_of_dropped_branches():
    accelerator = sharded_accelerator(activation_checkpointing=True)
    check_sharding(accelerator, {"--gradient_checkpointing": False, "--ssl_drop_path": False})
    with pytest.raises(ValueError, match="fsdp_activation_checkpointing: true and --ssl_drop_path cannot be combined"):
        check_sharding(accelerator, {"--gradient_checkpointing": False, "--ssl_drop_path": True})


def test_offloaded_activations_are_refused():
    accelerator = sharded_accelerator(activation_checkpointing=True)
    accelerator.state.fsdp_plugin.activation_checkpointing_offload = True
    with pytest.raises(ValueError, match=r"fsdp_activation_checkpointing_offload.*fsdp2.yaml"):
        check_sharding(accelerator, {})


@pytest.mark.parametrize("command", [cache_latents, train_dit, train_tcae, finetune_decoder])
def test_each_command_refuses_deepspeed_with_the_way_to_shard_and_leaves_no_folder(
    monkeypatch, tmp_path, capsys, command
):
    tokenizer, latents = calibrated()
    inputs = {
        cache_latents: {"tokenizer": tokenizer, "data": home() / "images"},
        train_dit: {"tokenizer": tokenizer, "latents": latents, "max_train_steps": 1},
        train_tcae: {"train_data": home() / "images", "max_train_steps": 1},
        finetune_decoder: {"train_data": home() / "images", "autoencoder": tokenizer, "max_train_steps": 1},
    }[command]
    # As `accelerate launch` does with `distributed_type: DEEPSPEED`.
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(command.main, **inputs, output_dir=tmp_path / "run")
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and "DeepSpeed" in line and f"--config_file {CONFIG}" in line
    assert (Path(__file__).parents[2] / CONFIG).is_file()
    assert not (tmp_path / "run").exists()


def test_whole_parameters_pass():
    for kind in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        check_sharding(SimpleNamespace(distributed_type=kind), {"--gradient_checkpointing": True})
