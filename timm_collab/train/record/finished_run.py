"""A finished run, read back from its folder."""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import timm.data
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model

from ...model.collab_model import CollabModel
from ..build import build_model
from ..checkpoint import Checkpoints, unpack
from ..config import TrainConfig
from ..config.parse import parse_config
from ..errors import TrainError, one_line, require
from ..paths import CHECKPOINTS, CONFIG, MODEL_CONFIG, PLOTS, PRUNED, SUMMARY, TREE, WEIGHTS
from .save import KEPT_HEAD, needs_plugin
from .summary import RunSummary


@dataclass(frozen=True)
class Run:
    """A finished run: its recipe, its summary, and the models that it trained. Made by `load_run`.

    Args:
        path: The run's folder.
        config: The resolved recipe.
        summary: What `summary.json` holds.
    """

    path: Path
    config: TrainConfig
    summary: RunSummary

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, in the order of the logits; None if the data has none."""
        return self.summary.data.label_names

    @property
    def data_config(self) -> dict[str, Any]:
        """timm's data config of the evaluation: input size, mean, std, interpolation, crop."""
        return self.summary.data.data_config

    @property
    def transform(self) -> Callable[[Any], Any]:
        """The transform of the evaluation, a new one each time: from a PIL image to a tensor [in_chans, H, W]."""
        return timm.data.create_transform(**self.data_config, is_training=False)

    @property
    def tree_file(self) -> Path | None:
        """The weights of all heads; None if the file is missing."""
        file = self.path / TREE
        return file if file.is_file() else None

    @property
    def weights_file(self) -> Path:
        """The weights of the pruned model."""
        return self.path / PRUNED / WEIGHTS

    @cached_property
    def model_config(self) -> dict[str, Any]:
        """timm's `config.json` of the pruned model.

        Raises:
            TrainError: The file is missing or damaged.
        """
        file = self.path / PRUNED / MODEL_CONFIG
        try:
            config = json.loads(file.read_text(encoding='utf-8'))
            missing = [key for key in ('architecture', 'num_classes', 'pretrained_cfg') if key not in config]
        except (OSError, ValueError, TypeError) as error:
            raise self._damaged(f'{PRUNED}/{MODEL_CONFIG} is missing or damaged ({one_line(error)[:300]})') from error
        if missing:
            raise self._damaged(f'{PRUNED}/{MODEL_CONFIG} lacks {", ".join(missing)}')
        return config

    @property
    def architecture(self) -> str:
        """timm's name of the network."""
        return str(self.model_config['architecture'])

    @property
    def model_args(self) -> dict[str, Any]:
        """Arguments of the architecture beyond `num_classes`."""
        return dict(self.model_config.get('model_args', {}))

    @property
    def needs_plugin(self) -> bool:
        """Whether `timm_collab` must be imported to load the pruned model."""
        return needs_plugin(self.architecture)

    def plots(self) -> list[Path]:
        """Files of the run's plots."""
        return sorted(file for file in (self.path / PLOTS).glob('*') if file.suffix in ('.png', '.svg'))

    def find_head(self, head: str | int) -> int:
        """The index of a head, given as `best` (the kept head), or as a number from 0.

        Raises:
            TrainError: There is no such head, or its weights weren't saved.
        """
        if head == 'best':
            return self.summary.kept_head
        require(str(head).isdecimal() and int(head) < self.summary.num_heads,
                f"--head '{head}': write best, or a number from 0 to {self.summary.num_heads - 1}")
        require(int(head) == self.summary.kept_head or self.tree_file is not None,
                f"--head '{head}': run '{self.path}' has no {TREE}, only the weights of head {self.summary.kept_head}")
        return int(head)

    def load_tree(self) -> CollabModel:
        """Load the tree with all heads, on the CPU, in eval mode, `kept_head` set.

        Raises:
            TrainError: Its file is missing or damaged, or doesn't fit the recipe.
        """
        file = self.tree_file
        if file is None:
            raise TrainError(f"run '{self.path}' has no {TREE}, the weights of all heads: train it again")
        model = self._new_tree()
        try:
            with safe_open(file, framework='pt') as opened:
                kept_head = int((opened.metadata() or {}).get(KEPT_HEAD, self.summary.kept_head))
            load_model(model, file)  # the file has a tied tensor under one of its names
            model.kept_head = kept_head
        except (SafetensorError, RuntimeError, ValueError, OSError) as error:
            raise self._damaged(
                f"{TREE} does not hold the weights of its recipe's tree ({one_line(error)[:300]})") from error
        return model.eval()

    def load_epoch(self, epoch: str | int) -> CollabModel:
        """Load the tree as it was after an epoch, with the head that was best then, on the CPU, in eval mode.

        Args:
            epoch: `best` by validation, `last`, or a number from 1. Other epochs than the kept one come from their
                checkpoints, as the moving average of the weights where there is one.

        Raises:
            TrainError: There is no such epoch or no checkpoint of it, or a file is damaged.
        """
        summary = self.summary
        numbers = {'best': summary.best_epoch.epoch + 1, 'last': summary.epochs}
        require(epoch in numbers or (str(epoch).isdecimal() and 1 <= int(epoch) <= summary.epochs),
                f"--epoch '{epoch}': write best, last, or a number from 1 to {summary.epochs}")
        number = numbers[str(epoch)] if epoch in numbers else int(epoch)
        best = summary.best_epoch
        averaged = best.averaged if epoch == 'best' and best.averaged is not None else self.config.ema.is_on
        if number == summary.kept_epoch and (summary.kept is None or summary.kept.averaged == averaged):
            return self.load_tree()
        checkpoints = Checkpoints(self.path / CHECKPOINTS)
        saved = checkpoints.after_epochs()
        there = f'of epochs {", ".join(map(str, saved))}' if saved else 'none'
        require(number in saved, f"run '{self.path}' has no checkpoint of epoch {number}, but {there}: train with a"
                                 ' larger --checkpoint.keep_last to keep more')
        plain, tensors = checkpoints.load(saved[number])
        state = unpack(plain, tensors)
        model = self._new_tree()
        model.load_state_dict(state['ema'] if averaged else state['model'])
        head = best.kept_head if epoch == 'best' else None
        model.kept_head = state['progress']['rows'][-1]['kept_head'] if head is None else head
        return model.eval()

    def _new_tree(self) -> CollabModel:
        """The tree, with random weights: what training started from isn't needed again."""
        config = dataclasses.replace(self.config.model, pretrained=False, checkpoint_path=None)
        return build_model(config, self.config.data, self.summary.data.num_classes)

    def load_pruned(self) -> nn.Module:
        """Load the kept head, a plain timm model, on the CPU, in eval mode.

        Raises:
            TrainError: Its files are missing or damaged.
        """
        folder = self.path / PRUNED
        again = (f'move {PRUNED}/ away and write it again with `timm-collab prune {self.path} --output'
                 f' {folder}`')
        if not ((folder / MODEL_CONFIG).is_file() and self.weights_file.is_file()):
            raise self._damaged(f'{PRUNED}/, the pruned model, is incomplete: {again}')
        try:
            return timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
        except Exception as error:  # timm, safetensors and json raise many types
            raise self._damaged(f"{PRUNED}/ can't be loaded ({one_line(error)[:300]}): {again}") from error

    def _damaged(self, what: str) -> TrainError:
        return TrainError(f"run '{self.path}' is damaged: {what}")


def load_run(folder: str | Path) -> Run:
    """Load a finished run.

    Args:
        folder: The folder that training wrote.

    Raises:
        TrainError: The folder holds no run, an unfinished one, or a damaged one.

    Example:

    ```python
    from PIL import Image, ImageOps

    run = timm_collab.load_run('runs/my-run')
    model = run.load_pruned()  # a plain timm model
    image = ImageOps.exif_transpose(Image.open('photo.jpg')).convert('RGB')  # upright, as in training
    logits = model(run.transform(image).unsqueeze(0))
    print(run.class_names[logits.argmax()], run.summary.scores.kept)
    ```
    """
    path = Path(folder).expanduser()
    require(path.is_dir(), f"run '{path}' is no folder: name the folder that training wrote, the one with {CONFIG}")
    require((path / CONFIG).is_file(), f"'{path}' holds no run: it has no {CONFIG}")
    require((path / SUMMARY).is_file(),
            f"run '{path}' is not finished, it has no {SUMMARY}: wait until it ends, or run its command again")
    summary = RunSummary.read(path / SUMMARY)
    try:
        config = parse_config(['--config', str(path / CONFIG)])
    except TrainError as error:
        raise TrainError(f"run '{path}' is damaged, or from another version: {error}") from error
    return Run(path, config, summary)
