"""Runs the latent and DiT commands in this process on a tiny tokenizer and a tiny image folder."""

import atexit
import functools
import itertools
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderRAE
from PIL import Image
from safetensors.torch import load_file

from tcae_diffusers import AutoencoderTC
from tcae_diffusers.trainer.run import reset_accelerate
from tcae_diffusers.training import cache_latents, train_dit

CLASSES = ("circles", "squares", "stripes")
NUM_IMAGES = 22
TOKENIZER = {
    "sample_size": 16,
    "spatial_compression_ratio": 8,
    "patch_size": 2,
    "latent_channels": 4,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "encoder_num_layers": (1, 1),
}
SMALL_DIT = {
    "max_train_steps": 6,
    "train_batch_size": 4,
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "learning_rate": 1e-2,
    "lr_warmup_fraction": 0,
    "ema_decay": 0.5,
    "checkpointing_steps": 3,
    "sample_steps": 100,
    "samples_per_class": 1,
    "sample_num_inference_steps": 2,
    "report_to": "none",
    "log_steps": 2,
}


# Autoencoders of diffusers, tiny.
FOREIGN = {
    "AutoencoderKL": lambda: AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.3,
        shift_factor=0.2,
    ),
    "AutoencoderDC": lambda: AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.4,
    ),
    # 16 pixels are resized to 56, which are 4x4 patches of 14, and 4x4 patches of 4 are decoded.
    "AutoencoderRAE": lambda: AutoencoderRAE(
        encoder_hidden_size=64,
        encoder_patch_size=14,
        encoder_num_hidden_layers=1,
        encoder_input_size=56,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        patch_size=4,
        scaling_factor=0.5,
    ),
}


def run(main, *positional, **options):
    """`main(argv)` of a command; accelerate's process-wide state is new for each."""
    argv = [*positional]
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        argv += [f"--{name}", *(str(part) for part in values)]
    reset_accelerate()
    try:
        return main(argv)
    finally:
        reset_accelerate()


def signalling(function, at_call, number=signal.SIGTERM):
    """`function`, whose call `at_call` (the first is 1) begins with a signal to this process."""
    calls = itertools.count(1)

    def signalled(*arguments):
        if next(calls) == at_call:
            os.kill(os.getpid(), number)
        return function(*arguments)

    return signalled


@functools.cache
def home() -> Path:
    """A folder for the whole test process with `images/` and `tokenizer/`, and what the tests below it share."""
    folder = Path(tempfile.mkdtemp(prefix="tcae-latent-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    generator = np.random.default_rng(0)
    for index in range(NUM_IMAGES):
        place = folder / "images" / CLASSES[index % len(CLASSES)]
        place.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (20, 24, 3)).astype(np.uint8)
        pixels[5:12, 3 + index % 9 : 12 + index % 9] = generator.integers(0, 256, 3)
        Image.fromarray(pixels).save(place / f"{index:03d}.png")
    torch.manual_seed(0)
    AutoencoderTC(**TOKENIZER).save_pretrained(folder / "tokenizer")
    return folder


def cache(output, **options):
    """`cache_latents` with shards of 8 images in batches of 3. The tokenizer, which tests share, stays as it is."""
    defaults = {"tokenizer": home() / "tokenizer", "data": home() / "images", "batch_size": 3, "shard_size": 8}
    run(cache_latents.main, **{**defaults, "write_statistics": False, **options}, output_dir=output)
    return Path(output)


@functools.cache
def calibrated() -> tuple[Path, Path]:
    """`(tokenizer, latents)`: a tokenizer with the statistics of its cache written into it."""
    tokenizer = shutil.copytree(home() / "tokenizer", home() / "calibrated")
    cache(home() / "latents", tokenizer=tokenizer, write_statistics=True)
    return tokenizer, home() / "latents"


@functools.cache
def with_tokens() -> Path:
    """The latents of the calibrated tokenizer, and its tokens beside them."""
    return cache(home() / "latents_with_tokens", tokenizer=calibrated()[0], tokens="tokenizer")


def train(output, **options):
    """`train_dit` with the options of `SMALL_DIT`."""
    tokenizer, latents = calibrated()
    run(
        train_dit.main,
        **{**SMALL_DIT, "tokenizer": tokenizer, "latents": latents, **options},
        output_dir=output,
    )
    return Path(output)


def weights(folder) -> dict[str, torch.Tensor]:
    """All tensors of the safetensors files in a folder."""
    return {
        key: value for file in sorted(Path(folder).glob("*.safetensors")) for key, value in load_file(file).items()
    }


def tensors_of(value, name="") -> dict[str, torch.Tensor]:
    """Every tensor and number in nested dictionaries and lists, by its path."""
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in tensors_of(part, f"{name}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for place, part in enumerate(value) for k, v in tensors_of(part, f"{name}/{place}").items()}
    return {name: value} if isinstance(value, torch.Tensor | int | float) else {}


def assert_same_training_state(first, second):
    """Weights, optimizer, averaged weights and counters of two checkpoints are equal, bit for bit."""
    first, second = Path(first), Path(second)
    names = sorted(file.name for file in first.iterdir() if file.suffix in (".safetensors", ".bin", ".pkl"))
    assert any("optimizer" in name for name in names) and any("custom_checkpoint" in name for name in names)
    for name in names:
        if name.startswith("random_states"):
            continue
        if name.endswith(".safetensors"):
            ours, theirs = load_file(first / name), load_file(second / name)
        else:
            ours, theirs = (tensors_of(torch.load(folder / name, weights_only=True)) for folder in (first, second))
        assert ours.keys() == theirs.keys() and ours
        for key, value in ours.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[key])), f"{name}: {key}"


def fork_ranks(function, world_size=2, wait=True) -> list[int]:
    """
    `function(rank)` in forked processes that form a gloo group the way `accelerate launch --cpu` sets one up; with one
    process, in a fork without a group. Returns their exit codes, or with `wait=False` their process ids.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sys.stdout.flush(), sys.stderr.flush()
    children = []
    for rank in range(world_size):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if world_size > 1:
                    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
                    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
                reset_accelerate()
                # torch renews its thread pool at the first use after a fork, and two threads at once would find none.
                torch.set_num_threads(torch.get_num_threads())
                function(rank)
                code = 0
            except SystemExit as stop:
                code = stop.code or 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    return _codes_of(children) if wait else children


def _codes_of(children) -> list[int]:
    """Exit codes; ranks that wait for each other for ever are killed, so that a test fails and not the whole run."""
    codes, deadline = {}, time.monotonic() + 600
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                if time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
                pid, status = os.waitpid(child, 0 if time.monotonic() > deadline else os.WNOHANG)
                if pid:
                    codes[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return [codes[child] for child in children]


def assert_equal(ours, theirs):
    """Two dictionaries of tensors are equal, bit for bit."""
    assert ours and ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key


def assert_close(ours, theirs):
    """Two dictionaries of tensors are equal up to the rounding of differently divided sums."""
    assert ours and ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(
            value, theirs[key], atol=1e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )
