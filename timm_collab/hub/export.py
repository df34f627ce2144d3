"""A finished run as a folder that plain timm, and transformers, load: weights, config, card, recipe, what was measured.

The folder appears under its name only when everything in it has been checked.
"""
from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from .. import __version__
from ..pretrained.download import sha256_of
from ..train.config import COLLAB_PREFIX
from ..train.config.differences import differences
from ..train.config.parse import parse_config
from ..train.errors import TrainError
from ..train.paths import CONFIG, MODEL_CONFIG, PLOTS, RECIPE, SUMMARY, TREE, WEIGHTS, atomic
from ..train.record.run_folder import check_writable
from .card import write_card
from .check import check_reload, trained_logits
from .errors import HubError, require
from .formats import write_formats
from .licenses import check_license
from .options import ExportOptions
from .run import FinishedRun, check_labels
from .weights import sort_metadata, write_head

ALONE = ('model.heads', 'model.pattern', 'model.tree', 'seed')
"""Keys in which the recipe of a network alone may differ from a tree's, and still be the same."""


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
        TrainError: The folder can't be created.
    """
    folder = folder.expanduser()
    check_writable(folder)
    require(not folder.exists(), f"'{folder}' exists: choose another --output, or delete it")
    with atomic(folder) as partial:
        head = write_folder(run, partial, options)
        check_reload([partial], [trained_logits(run, head, options.half)], run.needs_plugin)
        write_formats(partial, folder, options.formats)
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
        labels = _read_labels(options.labels)
        check_labels(labels, run.num_classes, f"--labels '{options.labels}'")
    require(not options.tree or run.tree_file is not None, f"--tree: '{run.path}' has no {TREE}")
    baseline = None if options.baseline is None else _baseline(run, options.baseline)
    single = run.single if baseline is None else baseline.summary

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
    if 'model_args' in config:
        config['model_args'] = _without_folders(config['model_args'])
    if options.tree:
        assert run.tree_file is not None
        shutil.copyfile(run.tree_file, folder / TREE)
        sort_metadata(folder / TREE)
        config['head_tree'] = {'tree': run.summary['tree'], 'kept_head': head}
    summary = public_summary(run.summary, options.dataset)
    if single is not None:
        summary['single'] = public_summary(single, options.dataset)
    summary['export'] = {
        'head': head,
        'dtype': 'float16' if options.half else 'float32',
        'sha256': sha256_of(folder / WEIGHTS),
        'timm_collab': __version__,
    }
    if baseline is not None and not _same_recipe(run, baseline):
        summary['export']['baseline'] = baseline.path.resolve().name
    recipe = public_recipe(run.recipe, options.dataset)
    _write_json(folder / MODEL_CONFIG, config)
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
    return _last_name(path) if path is not None and local else path


def public_summary(summary: Mapping[str, Any], dataset: str | None) -> dict[str, Any]:
    """A summary without what it says of the machine's folders."""
    told = {key: copy.deepcopy(value) for key, value in summary.items() if key not in ('load', 'single')}
    told['data']['path'] = public_path(told['data'].get('path'), dataset)
    _hide_folders(told.get('teacher') or {})
    return told


def public_recipe(recipe: Mapping[str, Any], dataset: str | None) -> dict[str, Any]:
    """A recipe without what it says of the machine's folders and of whose trackers it was followed on."""
    told = {key: copy.deepcopy(value) for key, value in recipe.items() if key != 'project'}
    data, model, optim = (told.setdefault(group, {}) for group in ('data', 'model', 'optim'))
    data['path'] = public_path(data.get('path'), dataset)
    data.pop('cache_dir', None)
    for group, key in ((data, 'root'), (model, 'checkpoint_path')):
        if group.get(key):
            group[key] = _last_name(str(group[key]))
    for group in (model, optim):
        if 'kwargs' in group:
            group['kwargs'] = _without_folders(group['kwargs'])
    _hide_folders(told.get('teacher') or {})
    return told


def _without_folders(value: Any) -> Any:
    """Plain data in which every text that is a path of this machine is its last name."""
    if isinstance(value, Mapping):
        return {key: _without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_folders(each) for each in value]
    local = isinstance(value, str) and (value.startswith('~') or _is_absolute(value))
    return _last_name(value) if local else value


def _is_absolute(path: str) -> bool:
    return PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()


def _last_name(path: str) -> str:
    # PureWindowsPath takes both kinds of slash, and leaves nothing of '/'.
    return PureWindowsPath(path).name


def _hide_folders(teacher: dict[str, Any]) -> None:
    """Leave the last names of the paths that say where a teacher lay."""
    for key in ('path', 'name', 'checkpoint'):
        told = str(teacher.get(key) or '')
        prefix = 'local-dir:' if key == 'name' else ''
        if told and told.startswith(prefix):
            teacher[key] = prefix + _last_name(told.removeprefix(prefix))


def _read_labels(path: Path) -> list[str]:
    path = path.expanduser()
    require(path.is_file(), f"--labels: there is no file '{path}'")
    try:
        return path.read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError as error:
        raise HubError(f"--labels '{path}' is no text in UTF-8 (byte {error.start}): save it as such") from None


def _same_recipe(run: FinishedRun, baseline: FinishedRun) -> bool:
    """Whether a network alone was trained as a run was, but for the tree and the seed."""
    try:
        asked = parse_config(['--config', str(run.path / CONFIG)])
    except TrainError:  # it is of another version, and nobody can tell
        return False
    saved = copy.deepcopy(baseline.recipe)
    name = str(asked.model.name)
    if str(saved['model']['name']).removeprefix(COLLAB_PREFIX) == name.removeprefix(COLLAB_PREFIX):
        saved['model']['name'] = name  # one head needs no prefix
    return all(text.split()[0] in ALONE for text in differences(saved, asked))


def _baseline(run: FinishedRun, path: Path) -> FinishedRun:
    baseline = FinishedRun.read(path.expanduser())
    require(baseline.num_heads == 1, f"--baseline '{path}' is a tree of {baseline.num_heads} heads, no network alone")
    require(baseline.architecture == run.architecture and baseline.summary['error_on'] == run.summary['error_on'],
            f"--baseline '{path}' is {baseline.architecture} measured on {baseline.summary['error_on']}, the run is"
            f" {run.architecture} measured on {run.summary['error_on']}: they can't be compared")
    require(baseline.metric is run.metric, f"--baseline '{path}' has {baseline.metric.title}, the run"
                                           f" {run.metric.title}: they can't be compared")
    return baseline


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
