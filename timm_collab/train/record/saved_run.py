"""A run read back from its folder: its recipe, its summary, its whole tree."""
from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn as nn
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model

from ..build import build_model
from ..config import TrainConfig
from ..config.parse import parse_config
from ..errors import TrainError, require
from ..paths import CONFIG, SUMMARY, TREE
from .save import KEPT_HEAD


@dataclass(frozen=True)
class SavedRun:
    """A finished run.

    Args:
        path: Its folder.
        config: Its recipe.
        summary: Its `summary.json`.
    """

    path: Path
    config: TrainConfig
    summary: dict[str, Any]

    @property
    def data_config(self) -> dict[str, Any]:
        """timm's configuration of the preprocessing that the run was evaluated with."""
        saved = self.summary['data']['preprocessing']
        return {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}

    @property
    def label_names(self) -> list[str] | None:
        """Names of the classes."""
        return self.summary['data']['label_names']

    def load_tree(self) -> nn.Module:
        """The whole tree as it was validated, on the CPU, in eval mode, with the run's kept head.

        Raises:
            TrainError: Its file is missing or damaged, or isn't this recipe's.
        """
        file = self.path / TREE
        require(file.is_file(), f"run '{self.path}' has no {TREE}, the weights of its whole tree: train it again")
        # The weights come from the file: what the run started from isn't needed again.
        config = dataclasses.replace(self.config.model, pretrained=False, checkpoint_path=None)
        model = build_model(config, self.config.data, self.summary['data']['num_classes'])
        try:
            with safe_open(file, framework='pt') as opened:
                kept_head = int((opened.metadata() or {}).get(KEPT_HEAD, self.summary['kept_head']))
            load_model(model, file)
            model.kept_head = kept_head  # type: ignore[assignment]
        except (SafetensorError, RuntimeError, ValueError, OSError) as error:
            reason = ' '.join(str(error).split())
            raise TrainError(f"run '{self.path}' is damaged: {TREE} does not hold the weights of its recipe's tree"
                             f' ({reason[:300]})') from error
        return model.eval()


def read_run(folder: str | Path) -> SavedRun:
    """Read a finished run.

    Raises:
        TrainError: The folder holds no run, an unfinished one, or a damaged one.
    """
    path = Path(folder).expanduser()
    require(path.is_dir(), f"run '{path}' is no folder: name the folder that training wrote, the one with {CONFIG}")
    require((path / CONFIG).is_file(), f"'{path}' holds no run: it has no {CONFIG}")
    require((path / SUMMARY).is_file(),
            f"run '{path}' is not finished, it has no {SUMMARY}: let it end, or start its command again")
    try:
        summary = json.loads((path / SUMMARY).read_text(encoding='utf-8'))
        missing = [name for name in ('num_classes', 'preprocessing', 'label_names') if name not in summary['data']]
        missing += [name for name in ('kept_head', 'num_heads', 'network') if name not in summary]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f'{type(error).__name__}: {error}'
        raise TrainError(f"run '{path}' is damaged: {SUMMARY} can't be read ({reason})") from error
    require(not missing, f"run '{path}' is damaged, or of another version: {SUMMARY} lacks {', '.join(missing)}")
    try:
        config = parse_config(['--config', str(path / CONFIG)])
    except TrainError as error:
        raise TrainError(f"run '{path}' is damaged, or of another version: {error}") from error
    return SavedRun(path, config, summary)
