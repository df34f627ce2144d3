"""Export a finished run to a folder that plain timm and transformers load: weights, config, card, recipe, summary.

The folder is written atomically, after everything in it has been verified.
"""
from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from .. import __version__
from ..pretrained.download import sha256_of
from ..train.config.differences import differences
from ..train.paths import CONFIG, MODEL_CONFIG, PLOTS, RECIPE, SUMMARY, TREE, WEIGHTS, atomic
from ..train.record.finished_run import Run, load_run
from ..train.record.run_folder import check_writable
from ..train.record.summary import RunSummary
from ..train.record.summary_parts import ExportSummary, TeacherSummary
from ..tree import PREFIX
from .card import write_card
from .check import check_reload, trained_logits
from .errors import HubError, require
from .folder import check_label_names
from .formats import write_formats
from .options import ExportOptions, check_license
from .weights import sort_metadata, write_head

BASELINE_KEYS = ('model.heads', 'model.pattern', 'model.tree', 'seed')
"""Keys in which the recipe of a single network may differ from a tree's and still count as the same recipe."""


def export_run(run: Run, folder: Path, options: ExportOptions) -> Path:
    """Export a run, and verify in another process that plain timm gives the logits of the trained head.

    Args:
        run: The run.
        folder: Folder to create.
        options: Options.

    Returns:
        The folder.

    Raises:
        TrainError: The options don't fit the run, the folder exists or can't be created, or the exported weights give
            other logits. Nothing is left then.
    """
    folder = folder.expanduser()
    check_writable(folder)
    require(not folder.exists(), f"'{folder}' exists: choose another --output, or delete it")
    with atomic(folder) as partial:
        head = write_folder(run, partial, options)
        check_reload([partial], [trained_logits(run, head, options.half)], run.needs_plugin)
        write_formats(partial, folder, options.formats)
    return folder


def write_folder(run: Run, folder: Path, options: ExportOptions) -> int:
    """Write the folder, without verifying it.

    Returns:
        Index of the exported head.

    Raises:
        TrainError: The options don't fit the run.
    """
    check_license(options.license, options.license_name, options.license_link)
    head = run.find_head(options.head)
    labels = run.class_names
    if options.labels is not None:
        labels = _read_labels(options.labels)
    origin = f"label_names of '{run.path / SUMMARY}'" if options.labels is None else f"--labels '{options.labels}'"
    check_label_names(labels, run.summary.data.num_classes, origin)
    require(not options.tree or run.tree_file is not None, f"--tree: '{run.path}' has no {TREE}")
    baseline = None if options.baseline is None else _baseline(run, options.baseline)
    single = run.summary.single if baseline is None else baseline.summary

    folder.mkdir(parents=True)
    metadata = {
        'format': 'pt',
        'architecture': run.architecture,
        'head': str(head),
        'tree': run.summary.tree,
        'timm_collab': __version__,
    }
    write_head(run, head, folder / WEIGHTS, options.half, metadata)
    config = {**run.model_config, **({'label_names': labels} if labels else {})}
    if 'model_args' in config:
        config['model_args'] = _without_folders(config['model_args'])
    if options.tree:
        assert run.tree_file is not None
        shutil.copyfile(run.tree_file, folder / TREE)
        sort_metadata(folder / TREE)
        config['head_tree'] = {'tree': run.summary.tree, 'kept_head': head}
    summary = dataclasses.replace(
        public_summary(run.summary, options.dataset),
        single=None if single is None else public_summary(single, options.dataset),
        export=ExportSummary(
            head=head,
            dtype='float16' if options.half else 'float32',
            sha256=sha256_of(folder / WEIGHTS),
            timm_collab=__version__,
            baseline=None if baseline is None or _same_recipe(run, baseline) else baseline.path.resolve().name,
        ),
    )
    saved = yaml.safe_load((run.path / CONFIG).read_text(encoding='utf-8'))  # without keys that came after the run
    recipe = public_recipe(saved, options.dataset)
    _write_json(folder / MODEL_CONFIG, config)
    _write_json(folder / SUMMARY, summary.to_dict())
    (folder / RECIPE).write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding='utf-8')
    for plot in run.plots():
        (folder / PLOTS).mkdir(exist_ok=True)
        shutil.copyfile(plot, folder / PLOTS / plot.name)
    write_card(folder, run, summary, recipe, config, options)
    return head


def public_path(path: str, dataset: str | None) -> str:
    """The path of the data as it is published: the data set's id, or the last name of a local path."""
    if dataset is not None:
        return dataset
    local = path.startswith(('.', '/', '~')) or '\\' in path or Path(path).exists()
    return _last_name(path) if local else path


def public_summary(summary: RunSummary, dataset: str | None) -> RunSummary:
    """A summary without the paths of this machine."""
    data = dataclasses.replace(summary.data, path=public_path(summary.data.path, dataset))
    teacher = summary.teacher
    if teacher is not None:
        teacher = TeacherSummary(**_without_teacher_folders(dataclasses.asdict(teacher)))
    return dataclasses.replace(summary, data=data, teacher=teacher, load=None, single=None)


def public_recipe(recipe: Mapping[str, Any], dataset: str | None) -> dict[str, Any]:
    """A recipe without the paths of this machine and the project of its trackers."""
    public = {key: copy.deepcopy(value) for key, value in recipe.items() if key != 'project'}
    data, model, optim = (public.setdefault(group, {}) for group in ('data', 'model', 'optim'))
    data['path'] = public_path(str(data.get('path')), dataset)
    data.pop('cache_dir', None)
    for group, key in ((data, 'root'), (model, 'checkpoint_path')):
        if group.get(key):
            group[key] = _last_name(str(group[key]))
    for group in (model, optim):
        if 'kwargs' in group:
            group['kwargs'] = _without_folders(group['kwargs'])
    if 'teacher' in public:
        public['teacher'] = _without_teacher_folders(public['teacher'])
    return public


def _without_folders(value: Any) -> Any:
    """Plain data in which every absolute path is replaced by its last name."""
    if isinstance(value, Mapping):
        return {key: _without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_folders(each) for each in value]
    local = isinstance(value, str) and (value.startswith('~') or _is_absolute(value))
    return _last_name(value) if local else value


def _is_absolute(path: str) -> bool:
    return PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()


def _last_name(path: str) -> str:
    # PureWindowsPath takes both slashes, and gives '' for '/'.
    return PureWindowsPath(path).name


def _without_teacher_folders(teacher: Mapping[str, Any]) -> dict[str, Any]:
    """Keep only the last names of the paths that a teacher was loaded from."""
    public = dict(teacher)
    for key in ('path', 'name', 'checkpoint'):
        value = str(public.get(key) or '')
        prefix = 'local-dir:' if key == 'name' else ''
        if value and value.startswith(prefix):
            public[key] = prefix + _last_name(value.removeprefix(prefix))
    return public


def _read_labels(path: Path) -> list[str]:
    path = path.expanduser()
    require(path.is_file(), f"--labels: there is no file '{path}'")
    try:
        return path.read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError as error:
        raise HubError(f"--labels '{path}' is not UTF-8 text (byte {error.start}): save it as UTF-8") from None


def _same_recipe(run: Run, baseline: Run) -> bool:
    """Whether a single network was trained by the recipe of a run, but for the tree and the seed."""
    saved, name = baseline.config.to_dict(), str(run.config.model.name)
    if str(saved['model']['name']).removeprefix(PREFIX) == name.removeprefix(PREFIX):
        saved['model']['name'] = name  # a single network needs no prefix
    return all(text.split()[0] in BASELINE_KEYS for text in differences(saved, run.config))


def _baseline(run: Run, path: Path) -> Run:
    baseline = load_run(path)
    heads, error_on, metric = baseline.summary.num_heads, baseline.summary.error_on, baseline.summary.metric
    require(heads == 1, f"--baseline '{path}' is a tree of {heads} heads: name a run with one head")
    require(baseline.architecture == run.architecture and error_on == run.summary.error_on,
            f"--baseline '{path}' is {baseline.architecture} measured on {error_on}, the run is"
            f" {run.architecture} measured on {run.summary.error_on}: they can't be compared")
    require(metric is run.summary.metric, f"--baseline '{path}' has {metric.title}, the run"
                                          f" {run.summary.metric.title}: they can't be compared")
    return baseline


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
