"""The demo's plan: commands that exist, in an order that works, resumed where they stopped. The run is `make demo`."""

import importlib
from typing import get_type_hints

import pytest

from tcae_diffusers.arguments import parse_arguments
from tcae_diffusers.training import cache_latents, demo, finetune_decoder, train_dit, train_tcae

ARGUMENTS = {
    "training.train_tcae": train_tcae.TokenizerArguments,
    "training.cache_latents": cache_latents.CacheArguments,
    "training.finetune_decoder": finetune_decoder.DecoderArguments,
    "training.train_dit": train_dit.DiTArguments,
}


def test_every_command_of_the_demo_is_understood_by_its_program(tmp_path):
    for stage in demo.stages(tmp_path, minutes=10, num_samples=500, seed=0):
        if stage.module in ARGUMENTS:
            parse_arguments(ARGUMENTS[stage.module], stage.arguments)
        else:
            command = importlib.import_module(f"tcae_diffusers.{stage.module}.commands.{stage.arguments[0]}")
            parse_arguments(get_type_hints(command.run)["arguments"], stage.arguments[1:])


def test_minutes_scale_the_training_steps_and_nothing_else(tmp_path):
    short, long = (demo.stages(tmp_path, minutes, num_samples=500, seed=0) for minutes in (10, 30))
    changed = [
        (a.module, x, y)
        for a, b in zip(short, long, strict=True)
        for x, y in zip(a.arguments, b.arguments, strict=True)
        if x != y
    ]
    modules = [
        *2 * ["training.train_tcae"],
        *3 * ["training.finetune_decoder"],
        *2 * ["training.train_dit"],
        "evaluation",
    ]
    assert [module for module, _, _ in changed] == modules
    assert all(int(y[-8:]) == 3 * int(x[-8:]) for _, x, y in changed[:-1])
    # Samples are led away from what the DiT was after as many steps as its pipelines are saved.
    (_, *saved), (_, *weaker) = changed[-2:]
    for steps, pipeline in zip(saved, weaker, strict=True):
        assert pipeline.endswith(f"/dit/pipelines/step-{int(steps):08d}")


def test_in_the_shortest_demo_the_discriminator_still_begins_before_the_decoder_learns_from_it(tmp_path):
    (decoder,) = (
        stage
        for stage in demo.stages(tmp_path, minutes=0.01, num_samples=5, seed=0)
        if stage.module == "training.finetune_decoder"
    )
    options = parse_arguments(finetune_decoder.DecoderArguments, decoder.arguments)
    assert 0 < options.discriminator_start_step < options.adversarial_start_step < options.max_train_steps


class FakeCommands:
    """Stands for the commands: makes their results, or is interrupted at one of them."""

    def __init__(self, interrupted_at: int | None = None):
        self.interrupted_at = interrupted_at
        self.ran = []

    def __call__(self, stage: demo.Stage) -> int:
        self.ran.append(stage.title)
        if len(self.ran) == self.interrupted_at:
            return 0  # a training script saves and exits with 0 after Ctrl-C, without its result
        stage.result.parent.mkdir(parents=True, exist_ok=True)
        stage.result.touch()
        return 0


def test_an_interrupted_demo_goes_on_with_the_command_that_was_interrupted(tmp_path, monkeypatch, capsys):
    first, second, third = FakeCommands(interrupted_at=3), FakeCommands(), FakeCommands()
    monkeypatch.setattr(demo, "run_stage", first)
    with pytest.raises(SystemExit) as stopped:
        demo.main(["--output_dir", str(tmp_path)])
    assert stopped.value.code == 130 and "stopped in step 3" in capsys.readouterr().out

    monkeypatch.setattr(demo, "run_stage", second)
    demo.main(["--output_dir", str(tmp_path)])
    assert second.ran[0] == first.ran[2] and len(first.ran) - 1 + len(second.ran) == 11
    assert "report.html" in capsys.readouterr().out

    monkeypatch.setattr(demo, "run_stage", third)
    demo.main(["--output_dir", str(tmp_path)])
    assert third.ran == []


def test_a_stage_of_another_command_and_all_after_it_run_again(tmp_path, monkeypatch):
    runs = [FakeCommands() for _ in range(2)]
    for run, samples in zip(runs, ("100", "200"), strict=True):
        monkeypatch.setattr(demo, "run_stage", run)
        demo.main(["--output_dir", str(tmp_path), "--num_samples", samples])
    (first_drawn,) = (place for place, title in enumerate(runs[0].ran) if title == "draw samples")
    assert runs[1].ran == runs[0].ran[first_drawn:]


def test_where_results_of_another_command_are_in_the_way_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "run_stage", FakeCommands())
    demo.main(["--output_dir", str(tmp_path), "--num_samples", "100"])
    monkeypatch.setattr(demo, "run_stage", lambda stage: 2)
    folder = tmp_path / "minutes-10-seed-0"
    for _ in range(2):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            demo.main(["--output_dir", str(tmp_path), "--num_samples", "200"])
        assert f"results of other commands are in {folder}" in capsys.readouterr().out


def test_a_failing_command_ends_the_demo_with_its_exit_code(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "run_stage", lambda stage: 2)
    with pytest.raises(SystemExit) as stopped:
        demo.main(["--output_dir", str(tmp_path)])
    assert stopped.value.code == 2


@pytest.mark.parametrize("arguments", [["--minutes", "0"], ["--minutes", "-3"], ["--minutes", "soon"]])
def test_bad_minutes_are_refused(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        demo.main([*arguments, "--output_dir", str(tmp_path)])
    assert stopped.value.code == 2 and "minutes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("minutes", "words"), [("soon", "DEMO_MINUTES is 'soon'; expected a number"), ("-3", "-3.0 must be positive")]
)
def test_bad_minutes_in_the_environment_are_refused(minutes, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DEMO_MINUTES", minutes)
    with pytest.raises(SystemExit) as stopped:
        demo.main(["--output_dir", str(tmp_path / "demo")])
    assert stopped.value.code == 2 and words in capsys.readouterr().err and not (tmp_path / "demo").exists()


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        demo.main(["--output_dir", str(tmp_path / "file")])
    assert str(tmp_path / "file") in capsys.readouterr().err
