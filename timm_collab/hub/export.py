"""A finished run as a folder that plain timm, and transformers, load: weights, config, card, recipe, what was measured.

The folder appears under its name only when everything in it has been checked.
"""
from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .. import __version__
from ..download import CONFIG, TREE, WEIGHTS, sha256_of
from ..train.run_folder import SUMMARY
from .card import write_card
from .check import check_reload, trained_logits
from .errors import require
from .formats import write_formats
from .licenses import check_license
from .run import PLOTS, FinishedRun, check_labels
from .weights import sort_metadata, write_head

RECIPE = 'recipe.yaml'


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to make of a run.

    Args:
        license: The Hub's name of the licence of the weights; `other` needs the next two.
        license_name: What another licence calls itself.
        license_link: Where it is to be read.
        head: `best`, the one that validation chose, or a number.
        half: Round the weights to float16.
        tree: Add the whole tree, to go on training, to prune another head, or to ask all heads.
        labels: File with the name of a class on each line, in place of the run's.
        dataset: Id on the Hub of the data set that the run read from a local folder.
        baseline: Run of the network alone to compare with, where the run has none beside it.
        note: What else a reader of the card must know, of the data for instance.
        formats: `pt2` (torch.export) and `onnx`, to be written next to the folder.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    head: str | int = 'best'
    half: bool = False
    tree: bool = False
    labels: Path | None = None
    dataset: str | None = None
    baseline: Path | None = None
    note: str | None = None
    formats: tuple[str, ...] = ()


def export_run(run: FinishedRun, folder: Path, options: ExportOptions) -> Path:
    """Export a run and check that plain timm gets the trained head back, in a process of its own.

    Args:
        run: The run.
        folder: Folder to create.
        options: What to make of it.

    Returns:
        The folder.

    Raises:
        HubError: The options don't fit the run, the folder exists, or what was written isn't what was trained. Nothing
            is left then.
    """
    require(not folder.exists(), f"'{folder}' exists: choose another --output, or delete it")
    partial = folder.with_name(f'.{folder.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    try:
        head = write_folder(run, partial, options)
        check_reload([partial], [trained_logits(run, head, options.half)], run.needs_plugin)
        write_formats(partial, folder, options.formats)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def write_folder(run: FinishedRun, folder: Path, options: ExportOptions) -> int:
    """Write the folder, unchecked.

    Returns:
        The head that is in it.

    Raises:
        HubError: The options don't fit the run.
    """
    check_license(options.license, options.license_name, options.license_link)
    head = run.head(options.head)
    labels = run.label_names
    if options.labels is not None:
        require(options.labels.is_file(), f"--labels: there is no file '{options.labels}'")
        labels = options.labels.read_text(encoding='utf-8').splitlines()
        check_labels(labels, run.num_classes, f"--labels '{options.labels}'")
    require(not options.tree or run.tree_file is not None, f"--tree: '{run.path}' has no {TREE}")
    baseline = run.single if options.baseline is None else _baseline(run, options.baseline)

    folder.mkdir(parents=True)
    metadata = {
        'format': 'pt',
        'architecture': run.architecture,
        'head': str(head),
        'tree': str(run.summary['tree']),
        'timm_collab': __version__,
    }
    write_head(run, head, folder / WEIGHTS, options.half, metadata)
    config = {**run.config, **({'label_names': labels} if labels else {})}
    if options.tree:
        assert run.tree_file is not None
        shutil.copyfile(run.tree_file, folder / TREE)
        sort_metadata(folder / TREE)
        config['head_tree'] = {'tree': run.summary['tree'], 'kept_head': head}
    summary = public_summary(run.summary, options.dataset)
    if baseline is not None:
        summary['single'] = public_summary(baseline, options.dataset)
    summary['export'] = {
        'head': head,
        'dtype': 'float16' if options.half else 'float32',
        'sha256': sha256_of(folder / WEIGHTS),
        'timm_collab': __version__,
    }
    recipe = copy.deepcopy(run.recipe)
    recipe.setdefault('data', {})['path'] = public_path(recipe['data'].get('path'), options.dataset)
    _hide_folders(recipe.get('teacher') or {})
    _write_json(folder / CONFIG, config)
    _write_json(folder / SUMMARY, summary)
    (folder / RECIPE).write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding='utf-8')
    for plot in run.plots():
        (folder / PLOTS).mkdir(exist_ok=True)
        shutil.copyfile(plot, folder / PLOTS / plot.name)
    write_card(folder, run, summary, recipe, config, options)
    return head


def public_path(path: str | None, dataset: str | None) -> str | None:
    """What the world is told of where the data lay: the data set's id, or the last name of a local path."""
    if dataset is not None:
        return dataset
    local = path is not None and (path.startswith(('.', '/', '~')) or '\\' in path or Path(path).exists())
    return Path(path).expanduser().name if path is not None and local else path


def public_summary(summary: Mapping[str, Any], dataset: str | None) -> dict[str, Any]:
    """A summary without what it says of the machine's folders."""
    told = {key: copy.deepcopy(value) for key, value in summary.items() if key not in ('load', 'single')}
    told['data']['path'] = public_path(told['data'].get('path'), dataset)
    _hide_folders(told.get('teacher') or {})
    return told


def _hide_folders(teacher: dict[str, Any]) -> None:
    """Leave the last names of the paths that say where a teacher lay."""
    for key in ('path', 'name', 'checkpoint'):
        told = str(teacher.get(key) or '')
        prefix = 'local-dir:' if key == 'name' else ''
        if told and told.startswith(prefix):
            teacher[key] = prefix + Path(told.removeprefix(prefix)).name


def _baseline(run: FinishedRun, path: Path) -> dict[str, Any]:
    baseline = FinishedRun.read(path)
    require(baseline.num_heads == 1, f"--baseline '{path}' is a tree of {baseline.num_heads} heads, no network alone")
    require(baseline.architecture == run.architecture and baseline.summary['error_on'] == run.summary['error_on'],
            f"--baseline '{path}' is {baseline.architecture} measured on {baseline.summary['error_on']}, the run is"
            f" {run.architecture} measured on {run.summary['error_on']}: they can't be compared")
    require(baseline.metric is run.metric, f"--baseline '{path}' has {baseline.metric.title}, the run"
                                           f" {run.metric.title}: they can't be compared")
    return baseline.summary


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
