"""An entry of the catalogue, made of an exported folder: nothing in it is typed by hand."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from timm.models import _registry

from ..pretrained.catalogue import CatalogueError, read_catalogue
from ..pretrained.download import sha256_of
from ..train.paths import CARD, SUMMARY, WEIGHTS
from ..train.record.summary import RunSummary
from .errors import HubError, require
from .folder import check_folder

MAX_SHIPPED = 2 * 10**6  # bytes that a head in the wheel may have


def add_entry(
        folder: Path,
        catalogue: Path,
        tag: str,
        repo: str | None = None,
        revision: str | None = None,
) -> str:
    """Add a head to a catalogue.

    Args:
        folder: The exported folder. Without a repository it must lie beside the catalogue, which then ships it.
        catalogue: The `heads.yaml`.
        tag: What tells it from the architecture's other weights.
        repo: Where it was pushed to.
        revision: The commit there, in full.

    Returns:
        The head's name.

    Raises:
        HubError: The folder can't be published, the entry can't be, or its name is taken, by timm's weights too.
    """
    upload = check_folder(folder)
    config = upload.config
    name = f'{config["architecture"]}.{tag}'
    require(name not in _registry._model_pretrained_cfgs,
            f'{name}: timm has weights of that name: choose another --tag')
    shipped = folder.resolve().parent == catalogue.resolve().parent
    require(repo is not None or shipped,
            f"'{folder}' lies elsewhere than '{catalogue}': put it beside, or name the --repo it was pushed to")
    require(not shipped or upload.size(WEIGHTS) <= MAX_SHIPPED,
            f"'{folder / WEIGHTS}' has {upload.size(WEIGHTS):,} bytes: a head of more than {MAX_SHIPPED:,} is not"
            ' shipped with the package; push it, and name its --repo and --revision')
    entry = _entry(folder, config, folder.name if shipped else None, repo, revision)
    partial = catalogue.with_name(f'.{catalogue.name}.partial')
    try:
        known = read_catalogue(catalogue)
        require(name not in known, f"'{catalogue}' has a head '{name}' already: choose another --tag")
        before = catalogue.read_text(encoding='utf-8')
        comments = ''.join(line for line in before.splitlines(keepends=True) if line.startswith('#'))
        entries = {**(yaml.safe_load(before) or {}), name: entry}
        partial.write_text(comments + yaml.safe_dump(entries, sort_keys=False, allow_unicode=True), encoding='utf-8')
        read_catalogue(partial)
        os.replace(partial, catalogue)
    except CatalogueError as error:
        partial.unlink(missing_ok=True)
        raise HubError(str(error)) from None
    return name


def _entry(folder: Path, config: dict[str, Any], shipped: str | None, repo: str | None, revision: str | None) -> Any:
    summary = RunSummary.read(folder / SUMMARY)
    assert summary.export is not None  # `check_folder` requires it
    metric, score = summary.metric, summary.scores.heads[summary.export.head]
    metrics = {metric.key: metric.in_final(score), 'images': summary.measured['count']}
    if summary.single is not None:
        metrics[f'{metric.key}_alone'] = metric.in_final(summary.single.scores.kept)
    keep = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode', 'first_conv', 'classifier',
            'fixed_input_size', 'pool_size')
    cfg = {key: config['pretrained_cfg'][key] for key in keep if key in config['pretrained_cfg']}
    return {
        **({'folder': shipped} if shipped else {}),
        **({'repo': repo, 'revision': revision} if repo else {}),
        'sha256': sha256_of(folder / WEIGHTS),
        'license': ModelCard.load(folder / CARD).data.license,
        'dataset': summary.data.path,
        'tree': summary.tree,
        'metrics': metrics,
        'pretrained_cfg': {**cfg, 'num_classes': config['num_classes']},
        'model_args': config.get('model_args', {}),
    }


