"""The provenance of a figure: versions, machine, command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "accelerate",
    "torch-fidelity",
    "numpy",
    "scipy",
    "pillow",
)


def library_versions() -> dict[str, str]:
    """Versions of Python, this package and the libraries that a figure depends on."""
    from tcae_diffusers.version import __version__

    versions = {"python": platform.python_version(), "tcae-diffusers": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory in GiB, accelerators and operating system, as far as they can be read."""
    import torch

    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "accelerators": devices or ["none"],
        "torch_threads": torch.get_num_threads(),
    }


def command_line() -> str:
    """The command that is running, as it can be typed again."""
    arguments = sys.argv[1:]
    if Path(sys.argv[0]).name == "__main__.py" and Path(sys.argv[0]).parent.name == "evaluation":
        return shlex.join(["python", "-m", "tcae_diffusers.evaluation", *arguments])
    return shlex.join([Path(sys.argv[0]).name or "python", *arguments])


def source_commit() -> str:
    """Commit of the code that runs, `-dirty` behind it if tracked files were changed, or `unknown`."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def provenance(**settings: Any) -> dict[str, Any]:
    """The block that every result file carries: `command`, `date`, `settings`, `versions`, `machine`."""
    return {
        "command": command_line(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()},
        "versions": library_versions(),
        "machine": describe_machine(),
    }
