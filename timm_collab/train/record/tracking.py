"""Log a run's metrics to TensorBoard, Weights & Biases or trackio, through Accelerate's trackers.

Trackers write to `tracking/` in the run's folder. An id there lets a resumed run continue in the same place.
"""
from __future__ import annotations

import contextlib
import io
import uuid
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import filter_trackers

from ..config import TrainConfig
from ..errors import TrainError, one_line, require
from ..paths import TRACKING
from .summary import RunSummary

RUN_ID = 'id'


def check_trackers(names: Sequence[str]) -> None:
    """Check that the packages of trackers are installed.

    Raises:
        TrainError: A package is missing; the message says how to install it.
    """
    for name in names:
        require(find_spec(name) is not None,
                f"track: {name} is not installed: pip install 'timm-collab[tracking]', or leave it out")


class Tracking:
    """The trackers of a run. Does nothing on other processes than the main one, or if the recipe names no tracker.

    Args:
        accelerator: The accelerator of the run.
        config: The recipe, whose keys are stored with the run.
        folder: The run's folder, which exists.

    Raises:
        TrainError: A tracker can't start, e.g. without a login.
    """

    def __init__(self, accelerator: Accelerator, config: TrainConfig, folder: Path) -> None:
        self.accelerator = accelerator
        self.active = bool(config.track) and accelerator.is_main_process
        if not self.active:
            return
        logs = folder / TRACKING
        logs.mkdir(exist_ok=True)
        name = f'{folder.name}-{_run_id(logs)}'
        accelerator.log_with = filter_trackers(list(config.track), str(logs))
        accelerator.project_configuration.logging_dir = str(logs)  # an earlier run in this process set its own
        settings = {
            # With a known id, or name, they continue that run.
            'wandb': {'id': _run_id(logs), 'name': folder.name, 'dir': str(logs), 'resume': 'allow'},
            'trackio': {'name': name, 'resume': 'allow'},
        }
        try:
            with _silenced(config.track):
                accelerator.init_trackers(
                    config.project,
                    config=flatten(config.to_dict()),
                    init_kwargs={tracker: settings[tracker] for tracker in config.track if tracker in settings},
                )
        except Exception as error:  # each tracker has its own types
            raise TrainError(f'track: {", ".join(config.track)} can\'t start ({type(error).__name__}:'
                             f' {one_line(error)})') from None

    def log(self, row: Mapping[str, Any]) -> None:
        """Log the row of an epoch, with the epoch as the step."""
        if self.active:
            values = {name: value for name, value in flatten(row).items() if isinstance(value, int | float)}
            self.accelerator.log(values, step=row['epoch'])

    def finish(self, summary: RunSummary) -> None:
        """Log the final scores and close the trackers; another run may follow in this process."""
        if not self.active:
            return
        name, scores = summary.metric.final, summary.scores
        final = {f'final/{name}_kept': scores.kept, f'final/{name}_consensus': scores.consensus}
        with _silenced([tracker.name for tracker in self.accelerator.trackers]):
            self.accelerator.log(final, step=summary.epochs)
            for tracker in self.accelerator.trackers:
                tracker.finish()
        self.accelerator.trackers = []
        self.active = False


def flatten(values: Any, prefix: str = '') -> dict[str, Any]:
    """Flatten nested data to `val/top1_heads/0: 91.5`, in types that every tracker takes; None is left out."""
    if isinstance(values, Mapping):
        children = [(str(name), value) for name, value in values.items()]
    elif isinstance(values, list | tuple) and values and all(isinstance(value, int | float) for value in values):
        children = [(str(index), value) for index, value in enumerate(values)]
    elif values is None:
        return {}
    else:
        return {prefix: values if isinstance(values, bool | int | float | str) else str(values)}
    flat: dict[str, Any] = {}
    for name, value in children:
        flat |= flatten(value, f'{prefix}/{name}' if prefix else name)
    return flat


def _run_id(folder: Path) -> str:
    file = folder / RUN_ID
    if not file.exists():
        file.write_text(uuid.uuid4().hex[:16], encoding='utf-8')
    return file.read_text(encoding='utf-8').strip()


@contextlib.contextmanager
def _silenced(names: Sequence[str]) -> Any:
    """Suppress what trackio prints: the address of its dashboard contains a token with write access."""
    if 'trackio' not in names:
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
