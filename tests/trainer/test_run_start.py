"""What a tokenizer run refuses before it starts, and which errors end a command without a traceback."""

from types import SimpleNamespace

import pytest
from accelerate import DistributedType

from tcae_diffusers.arguments import program_name
from tcae_diffusers.errors import InputError
from tcae_diffusers.trainer.arguments import RunArguments
from tcae_diffusers.trainer.build_autoencoder import build_autoencoder
from tcae_diffusers.trainer.run import discard_new_folder_on_error, reset_accelerate, start_accelerator
from tcae_diffusers.trainer.sharding import require_whole_parameters
from tcae_diffusers.trainer.user_errors import RUN_ERRORS, exit_on_user_error


def test_a_discriminator_beside_sharded_parameters_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"FSDP.*discriminator.*DistributedDataParallel.*--multi_gpu"):
        require_whole_parameters(SimpleNamespace(distributed_type=DistributedType.FSDP))
    require_whole_parameters(SimpleNamespace(distributed_type=DistributedType.MULTI_GPU))


def test_a_preset_takes_overrides_and_a_saved_folder_keeps_its_weights(tmp_path):
    model = build_autoencoder("tc-ae-xs-f8c32", {"latent_channels": 4})
    assert model.config.latent_channels == 4 and model.config.patch_size == 2
    model.save_pretrained(tmp_path / "model")
    again = build_autoencoder(str(tmp_path / "model"))
    assert all((value == again.state_dict()[name]).all() for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "value"), [("MIXED_PRECISION", "bf16"), ("GRADIENT_ACCUMULATION_STEPS", "4")], ids=str.lower
)
def test_what_accelerate_was_asked_for_is_not_passed_over(tmp_path, monkeypatch, name, value):
    arguments = RunArguments(output_dir=str(tmp_path / "run"), report_to="none", gradient_accumulation_steps=2)
    for harmless in ("no", "1", ""):
        monkeypatch.setenv(f"ACCELERATE_{name}", harmless)
        try:
            assert start_accelerator(arguments).gradient_accumulation_steps == 2
        finally:
            reset_accelerate()
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    with pytest.raises(InputError, match=f"was given {name.lower()} {value}, and this run has --{name.lower()} "):
        start_accelerator(arguments)


def test_a_defect_in_the_loop_keeps_its_traceback_where_bad_input_at_the_start_does_not(capsys):
    with pytest.raises(SystemExit), exit_on_user_error():
        raise ValueError("bad\ninput")
    assert capsys.readouterr().err == f"{program_name()}: error: bad input\n"
    with pytest.raises(ValueError, match="defect"), exit_on_user_error(RUN_ERRORS):
        raise ValueError("defect")
    with pytest.raises(SystemExit), exit_on_user_error(RUN_ERRORS):
        raise InputError("a tar is damaged")
    assert capsys.readouterr().err == f"{program_name()}: error: a tar is damaged\n"


def test_only_a_folder_that_the_failed_start_made_is_removed(tmp_path):
    (tmp_path / "old").mkdir()
    for name in ("old", "new"):
        with pytest.raises(ValueError), discard_new_folder_on_error(tmp_path / name):
            (tmp_path / name / "part").mkdir(parents=True)
            raise ValueError
    assert (tmp_path / "old" / "part").exists() and not (tmp_path / "new").exists()
