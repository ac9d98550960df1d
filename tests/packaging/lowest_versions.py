"""
Prints the lowest versions that setup.cfg allows of the libraries that the package builds on, a `name==version` a line:
the constraints with which `make test-versions` installs its first environment.
"""

import configparser
import re
from pathlib import Path

SETUP = Path(__file__).parents[2] / "setup.cfg"
# torchvision and torch are released together.
LIBRARIES = ("torch", "torchvision", "diffusers", "transformers", "accelerate")


def lowest_versions() -> dict[str, str]:
    """The version after `>=`, for each of `LIBRARIES`."""
    config = configparser.ConfigParser()
    config.read(SETUP, encoding="utf-8")
    bounds = re.findall(r"^([\w-]+)>=([\w.]+)", config["options"]["install_requires"], re.MULTILINE)
    return {name: version for name, version in bounds if name in LIBRARIES}


if __name__ == "__main__":
    for name, version in lowest_versions().items():
        print(f"{name}=={version}")
