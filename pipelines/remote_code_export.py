"""Saves a pipeline or a model together with its code, for people who do not have this package installed."""

import ast
import inspect
import json
import os
from pathlib import Path

import diffusers
from diffusers.models.modeling_utils import ModelMixin
from diffusers.modular_pipelines.modular_pipeline import ModularPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

PACKAGE = "tcae_diffusers"

README = """# {class_name}

This folder carries the Python code of {classes} and loads with plain diffusers {version}:

```py
from diffusers import {loader}

{variable} = {loader}.from_pretrained("path/to/this/folder", trust_remote_code=True)
{afterwards}```

`trust_remote_code=True` runs the `.py` files of this folder, so read them first. The code is licensed under the Apache
License, Version 2.0. With the package {package} installed, save with `save_pretrained` instead: nothing needs trust
then.
"""


def export_with_remote_code(
    pipeline_or_model: DiffusionPipeline | ModularPipeline | ModelMixin,
    folder: str | os.PathLike,
    repo_id: str | None = None,
) -> Path:
    """
    Writes a folder that loads with diffusers alone, and only with `trust_remote_code=True`.

    A model loads with `AutoModel.from_pretrained`, a pipeline (ours, or a stock one around one of our models) with
    `DiffusionPipeline.from_pretrained`, a modular pipeline of our blocks with `ModularPipeline.from_pretrained`; each
    class of this package is saved as one file without imports from the package. Works from a local folder and from
    the Hub.

    Args:
        pipeline_or_model (`DiffusionPipeline`, `ModularPipeline` or `ModelMixin` of diffusers):
            What to save; at least one class in it must be of this package.
        folder (`str` or `os.PathLike`): New or empty folder.
        repo_id (`str`, *optional*):
            Where on the Hub the folder of a modular pipeline will lie, which its index must say; other folders load
            from anywhere.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: if the folder holds files, nothing in `pipeline_or_model` needs its code carried along, or blocks
            of a modular pipeline were replaced, which no class says.
        TypeError: if `pipeline_or_model` is neither a pipeline nor a model.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{folder} exists and is not an empty folder; export to a new folder, so that no old files are mixed in."
        )
    if isinstance(pipeline_or_model, DiffusionPipeline):
        return _export_pipeline(pipeline_or_model, folder)
    if isinstance(pipeline_or_model, ModelMixin):
        return _export_model(pipeline_or_model, folder)
    if isinstance(pipeline_or_model, ModularPipeline):
        return _export_modular(pipeline_or_model, folder, repo_id)
    raise TypeError(
        f"expected a DiffusionPipeline, a ModularPipeline or a ModelMixin, got {type(pipeline_or_model).__name__}."
    )


def _export_pipeline(pipeline: DiffusionPipeline, folder: Path) -> Path:
    own_components = {name: part for name, part in pipeline.components.items() if _is_ours(type(part))}
    classes = [type(part) for part in own_components.values()]
    if _is_ours(type(pipeline)):
        classes.insert(0, type(pipeline))
    if not classes:
        raise ValueError(f"{type(pipeline).__name__} and its components are diffusers' own; use save_pretrained.")

    pipeline.save_pretrained(folder)
    index_file = folder / pipeline.config_name
    index = json.loads(index_file.read_text())
    for name, component in own_components.items():
        _add_code_to_model(type(component), folder / name)
        index[name] = [_module_name(type(component)), type(component).__name__]
    if _is_ours(type(pipeline)):
        index["_class_name"] = [_module_name(type(pipeline)), type(pipeline).__name__]
        _write_source(type(pipeline), folder)
    index_file.write_text(json.dumps(index, indent=2) + "\n")
    _write_readme(folder, type(pipeline).__name__, classes, loader="DiffusionPipeline", variable="pipeline")
    return folder


def _export_modular(pipeline: ModularPipeline, folder: Path, repo_id: str | None) -> Path:
    blocks = pipeline.blocks
    if not _is_ours(type(blocks)):
        raise ValueError(f"{type(blocks).__name__} is not of this package; use save_pretrained.")
    if [type(block) for block in blocks.sub_blocks.values()] != list(type(blocks).block_classes):
        raise ValueError(
            f"{type(blocks).__name__} has other blocks than its class says ({', '.join(blocks.sub_blocks)}), and an "
            "export carries the code of classes; export the blocks as they are, and replace them after loading."
        )
    pipeline.save_pretrained(str(folder), overwrite_modular_index=True)
    blocks.save_pretrained(folder)
    _write_source(type(blocks), folder)
    index_file = folder / pipeline.config_name
    index = json.loads(index_file.read_text())
    classes = [type(blocks)]
    for name, component in pipeline.components.items():
        if component is None:
            continue
        if _is_ours(type(component)):
            classes.append(type(component))
            _add_code_to_model(type(component), folder / name)
            # Without a class, AutoModel loads it, which finds the code.
            index[name][:2], index[name][2]["type_hint"] = [None, None], [None, None]
        if repo_id is not None:
            index[name][2]["pretrained_model_name_or_path"] = repo_id
    index_file.write_text(json.dumps(index, indent=2) + "\n")
    load_components = "pipeline.load_components(trust_remote_code=True)\n"
    names = {"loader": "ModularPipeline", "variable": "pipeline", "afterwards": load_components}
    _write_readme(folder, type(blocks).__name__, classes, **names)
    return folder


def _export_model(model: ModelMixin, folder: Path) -> Path:
    if not _is_ours(type(model)):
        raise ValueError(f"{type(model).__name__} is not a class of this package; use save_pretrained.")
    model.save_pretrained(folder)
    _add_code_to_model(type(model), folder)
    _write_readme(folder, type(model).__name__, [type(model)], loader="AutoModel", variable="model")
    return folder


def _add_code_to_model(cls: type[ModelMixin], folder: Path) -> None:
    _write_source(cls, folder)
    config_file = folder / cls.config_name
    config = json.loads(config_file.read_text())
    config["auto_map"] = {"AutoModel": f"{_module_name(cls)}.{cls.__name__}"}
    config_file.write_text(json.dumps(config, indent=2) + "\n")


def _is_ours(cls: type) -> bool:
    return cls.__module__.split(".")[0] == PACKAGE


def _module_name(cls: type) -> str:
    return cls.__module__.rsplit(".", 1)[-1]


def _write_source(cls: type, folder: Path) -> None:
    source = self_contained_source(Path(inspect.getfile(cls)))
    (folder / f"{_module_name(cls)}.py").write_text(source, encoding="utf-8")


def self_contained_source(file: Path, inlined: set[Path] | None = None) -> str:
    """
    Source of a module with `from .module import name` and `from ..module import name` replaced by the module's source:
    the Hub download of diffusers fetches one code file for each component.

    Raises:
        ValueError: for an import from this package in another form, which cannot be replaced like that.
    """
    inlined = set() if inlined is None else inlined
    inlined.add(file.resolve())
    source = file.read_text(encoding="utf-8")
    lines = source.splitlines()
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == PACKAGE for alias in node.names):
            raise ValueError(f"{file}, line {node.lineno}: cannot export an absolute import from {PACKAGE}.")
        if not isinstance(node, ast.ImportFrom) or (node.level == 0 and (node.module or "").split(".")[0] != PACKAGE):
            continue
        sibling = (file.parents[max(node.level, 1) - 1] / f"{node.module}.py").resolve()
        if not (node.level and sibling.is_file()) or any(alias.asname for alias in node.names):
            raise ValueError(f"{file}, line {node.lineno}: only `from .module import name` can be exported.")
        replacement = [] if sibling in inlined else self_contained_source(sibling, inlined).splitlines()
        lines[node.lineno - 1 : node.end_lineno] = replacement
    return "\n".join(lines) + "\n"


def _write_readme(
    folder: Path, class_name: str, classes: list[type], loader: str, variable: str, afterwards: str = ""
) -> None:
    names = " and ".join(sorted({f"`{cls.__name__}`" for cls in classes}))
    text = README.format(
        class_name=class_name,
        classes=names,
        version=diffusers.__version__,
        loader=loader,
        variable=variable,
        afterwards=afterwards,
        package=PACKAGE,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
