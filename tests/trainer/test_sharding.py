"""The launch configurations that ship, and ways to shard that are refused before anything is built."""

from types import SimpleNamespace

import pytest
from accelerate import DistributedType
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

from tcae_diffusers.trainer.deepspeed_zero import set_batch_and_clipping
from tcae_diffusers.trainer.sharding import check_sharding

from ..accelerate_configs import FOLDER, launch_arguments, launch_environment


def sharded_accelerator(mixed_precision="no", **settings):
    plugin = FullyShardedDataParallelPlugin(**{"fsdp_version": 2, "cpu_ram_efficient_loading": False, **settings})
    return SimpleNamespace(
        distributed_type=DistributedType.FSDP,
        mixed_precision=mixed_precision,
        state=SimpleNamespace(fsdp_plugin=plugin),
    )


def test_the_launcher_takes_each_configuration():
    names = {file.stem for file in FOLDER.glob("*.yaml")}
    assert names == {"ddp", "ddp_multi_node", "deepspeed_zero2", "fsdp2"}
    arguments = launch_arguments("ddp", num_processes=4)
    assert arguments.multi_gpu and not arguments.use_fsdp and arguments.num_processes == 4
    environment = launch_environment("fsdp2", num_processes=4)
    assert environment["ACCELERATE_USE_FSDP"] == "true" and environment["FSDP_VERSION"] == "2"
    environment = launch_environment("deepspeed_zero2", num_processes=4)
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true" and environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2"


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
    check_sharding(sharded_accelerator(fsdp_version=None, cpu_ram_efficient_loading=None))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"fsdp_version": 1}, "fsdp_version: 1"),
        ({"state_dict_type": "FULL_STATE_DICT"}, "FULL_STATE_DICT"),
        ({"cpu_ram_efficient_loading": True}, "fsdp_cpu_ram_efficient_loading"),
        ({"activation_checkpointing": True}, "--gradient_checkpointing"),
        ({"cpu_offload": True}, "fsdp_offload_params"),
        ({"mixed_precision": "fp16"}, "bf16 works"),
    ],
)
def test_an_fsdp_setting_that_is_not_supported_is_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named) as refusal:
        check_sharding(sharded_accelerator(**settings))
    assert "fsdp2.yaml" in str(refusal.value)


def deepspeed_accelerator(monkeypatch, mixed_precision="no", **variables):
    for key, value in {**launch_environment("deepspeed_zero2", num_processes=2), **variables}.items():
        monkeypatch.setenv(key, value)
    return SimpleNamespace(
        distributed_type=DistributedType.DEEPSPEED,
        mixed_precision=mixed_precision,
        state=SimpleNamespace(deepspeed_plugin=DeepSpeedPlugin()),
        num_processes=2,
    )


def test_the_shipped_deepspeed_configuration_passes_the_check(monkeypatch):
    check_sharding(deepspeed_accelerator(monkeypatch))


def test_the_batch_and_clipping_of_the_script_replace_those_of_the_launcher(monkeypatch):
    launched = launch_environment(
        "deepspeed_zero2", num_processes=2, gradient_accumulation_steps=2, gradient_clipping=1.0
    )
    accelerator = deepspeed_accelerator(monkeypatch, **launched)
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    assert (config["gradient_accumulation_steps"], config["gradient_clipping"]) == (2, 1.0)
    set_batch_and_clipping(
        accelerator, SimpleNamespace(train_batch_size=3, gradient_accumulation_steps=4, max_grad_norm=0.5)
    )
    assert accelerator.gradient_accumulation_steps == config["gradient_accumulation_steps"] == 4
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_clipping"]) == (3, 0.5)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, "zero_stage: 0"),
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "zero_stage: 3"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "offload_optimizer_device"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "nvme"}, "offload_param_device"),
        ({"ACCELERATE_DEEPSPEED_CONFIG_FILE": '{"zero_optimization": {"stage": 2}}'}, "deepspeed_config_file"),
        ({"mixed_precision": "fp16"}, "bf16 works"),
    ],
)
def test_a_deepspeed_setting_that_is_not_supported_is_refused_with_the_way_out(monkeypatch, settings, named):
    with pytest.raises(ValueError, match=named) as refusal:
        check_sharding(deepspeed_accelerator(monkeypatch, **settings))
    assert "deepspeed_zero2.yaml" in str(refusal.value) and "fsdp2.yaml" in str(refusal.value)


def test_whole_parameters_pass():
    for kind in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        check_sharding(SimpleNamespace(distributed_type=kind))
