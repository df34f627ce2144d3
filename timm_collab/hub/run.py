"""A finished run, as it lies in its folder: read, and found whole, before anything is made of it."""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from ..train.metrics.metric import Metric, metric_of
from ..train.paths import CONFIG, MODEL_CONFIG, PLOTS, PRUNED, SINGLE, SUMMARY, TREE, WEIGHTS
from ..train.record.save import needs_plugin
from .errors import HubError, require

_SUMMARY_KEYS = (
    'network', 'tree', 'num_heads', 'kept_head', 'error_on', 'val', 'parameters', 'data', 'noise', 'epochs', 'versions',
    'device', 'train_seconds', 'num_processes',
)


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended well.

    Args:
        path: Its folder.
        recipe: The resolved recipe.
        summary: What was measured.
        config: timm's config of the kept head.
    """

    path: Path
    recipe: dict[str, Any]
    summary: dict[str, Any]
    config: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> FinishedRun:
        """Read a run's folder.

        Raises:
            HubError: There is no run, it hasn't ended, or something in it is damaged.
        """
        require(path.is_dir(), f"no run in '{path}': there is no such folder")
        if not (path / SUMMARY).is_file():
            require((path / CONFIG).is_file(), f"no run in '{path}': it has no {CONFIG}")
            raise HubError(f"the run in '{path}' has not finished: it has no {SUMMARY}; let it end, or resume it")
        summary = _mapping(path / SUMMARY, json.loads)
        recipe = _mapping(path / CONFIG, yaml.safe_load)
        config = _mapping(path / PRUNED / MODEL_CONFIG, json.loads)
        final = metric_of(summary).final
        needed = *_SUMMARY_KEYS, *(f'{final}_{whose}' for whose in ('kept', 'heads', 'consensus'))
        missing = [key for key in needed if key not in summary]
        require(not missing, f"'{path / SUMMARY}' lacks {', '.join(missing)}: it is damaged, or from another version")
        for key in ('architecture', 'num_classes', 'pretrained_cfg'):
            require(key in config, f"'{path / PRUNED / MODEL_CONFIG}' lacks {key}: it is damaged")
        measured = len(summary[f'{final}_heads'])
        require(measured == summary['num_heads'] > summary['kept_head'] >= 0,
                f"'{path / SUMMARY}' contradicts itself: scores of {measured} heads,"
                f" {summary['num_heads']} heads, head {summary['kept_head']} kept")
        run = cls(path, recipe, summary, config)
        tensor_names(run.weights)
        check_labels(run.label_names, run.num_classes, f"label_names of '{path / PRUNED / MODEL_CONFIG}'")
        return run

    @property
    def weights(self) -> Path:
        """The weights of the kept head."""
        return self.path / PRUNED / WEIGHTS

    @property
    def tree_file(self) -> Path | None:
        """The weights of the whole tree, where the run has them."""
        file = self.path / TREE
        return file if file.is_file() else None

    @property
    def architecture(self) -> str:
        """timm's name of the network."""
        return str(self.config['architecture'])

    @property
    def model_args(self) -> dict[str, Any]:
        """Arguments of the architecture."""
        return dict(self.config.get('model_args', {}))

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return int(self.config['num_classes'])

    @property
    def num_heads(self) -> int:
        """Number of heads, H."""
        return int(self.summary['num_heads'])

    @property
    def kept_head(self) -> int:
        """The head that did best on validation."""
        return int(self.summary['kept_head'])

    @property
    def metric(self) -> Metric:
        """What its heads were compared by."""
        return metric_of(self.summary)

    @property
    def label_names(self) -> list[str] | None:
        """Names of the classes."""
        names = self.config.get('label_names')
        return None if names is None else list(names)

    @property
    def needs_plugin(self) -> bool:
        """Whether the architecture is one that timm alone doesn't have."""
        return needs_plugin(self.architecture)

    @property
    def single(self) -> dict[str, Any] | None:
        """The summary of the network that was trained alone beside the tree."""
        single: dict[str, Any] | None = self.summary.get(SINGLE)
        return single

    def plots(self) -> list[Path]:
        """Pictures of the run."""
        return sorted(file for file in (self.path / PLOTS).glob('*') if file.suffix in ('.png', '.svg'))

    def head(self, wanted: str | int) -> int:
        """The head that is meant: `best`, or a number.

        Raises:
            HubError: There is no such head, or its weights weren't kept.
        """
        if wanted == 'best':
            return self.kept_head
        require(str(wanted).isdigit() and int(wanted) < self.num_heads,
                f'--head {wanted}: this tree has heads 0 to {self.num_heads - 1}; write one of them, or best')
        require(int(wanted) == self.kept_head or self.tree_file is not None,
                f"--head {wanted}: '{self.path}' has no {TREE}, only the weights of head {self.kept_head}")
        return int(wanted)


def check_labels(names: Sequence[str] | None, num_classes: int, origin: str) -> None:
    """See whether there is a name for each class.

    Raises:
        HubError: There isn't.
    """
    require(names is None or len(names) == num_classes,
            f'{origin}: {len(names or ())} names for {num_classes} classes: write one for each, in their order')
    require(names is None or all(isinstance(name, str) and name for name in names), f'{origin}: a name is empty')


def tensor_names(file: Path) -> list[str]:
    """Names of the tensors in a file.

    Raises:
        HubError: It isn't there, or was cut short.
    """
    try:
        with safe_open(file, framework='pt') as tensors:
            return list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise HubError(f"'{file}' is missing or damaged: {error}") from None


def _mapping(file: Path, parse: Any) -> dict[str, Any]:
    try:
        found = parse(file.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise HubError(f"'{file}' is missing: the run is damaged") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise HubError(f"'{file}' is damaged: {' '.join(str(error).split())}") from None
    require(isinstance(found, dict), f"'{file}' is damaged: it holds no mapping")
    return dict(found)
