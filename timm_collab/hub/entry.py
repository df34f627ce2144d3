"""Add an exported folder to a catalogue of heads."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from timm.models import _registry

from ..pretrained.catalogue import CatalogueError, read_catalogue
from ..pretrained.download import sha256_of
from ..train.paths import CARD, SUMMARY, WEIGHTS, atomic
from ..train.record.summary import RunSummary
from .errors import HubError, require
from .folder import check_folder

MAX_SHIPPED = 2 * 10**6  # bytes of the weights of a head that the wheel carries


def add_entry(
        folder: Path,
        catalogue: Path,
        tag: str,
        repo: str | None = None,
        revision: str | None = None,
) -> str:
    """Add a head to a catalogue.

    Args:
        folder: Exported folder. Without a repository it must lie beside the catalogue, which then ships it.
        catalogue: Path of the `heads.yaml`.
        tag: Tag of the weights; the head is named `architecture.tag`.
        repo: Repository that the folder was pushed to.
        revision: Full SHA of the commit there.

    Returns:
        Name of the head.

    Raises:
        HubError: The folder or the entry is invalid, or timm or the catalogue has the name already.
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
    try:
        known = read_catalogue(catalogue)
        require(name not in known, f"'{catalogue}' has a head '{name}' already: choose another --tag")
        before = catalogue.read_text(encoding='utf-8')
        comments = ''.join(line for line in before.splitlines(keepends=True) if line.startswith('#'))
        entries = yaml.safe_dump(
            {**(yaml.safe_load(before) or {}), name: entry}, sort_keys=False, allow_unicode=True)
        with atomic(catalogue) as partial:
            partial.write_text(comments + entries, encoding='utf-8')
            read_catalogue(partial)
    except CatalogueError as error:
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
