"""A run's metrics in TensorBoard, Weights & Biases or trackio, by Accelerate's trackers.

Everything a tracker writes here lies in the run's folder `tracking/`, with the id by which a resumed run goes on in the
same place.
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
from ..errors import TrainError, require
from ..paths import TRACKING
from .summary import RunSummary

RUN_ID = 'id'


def check_trackers(names: Sequence[str]) -> None:
    """See whether the packages behind trackers are installed.

    Raises:
        TrainError: One is not; the message says how to install it.
    """
    for name in names:
        require(find_spec(name) is not None,
                f"track: {name} is not installed: pip install 'timm-collab[tracking]', or leave it out")


class Tracking:
    """The trackers of one run; does nothing on other processes than the main one, and nothing if none is asked for.

    Args:
        accelerator: What the run trains with.
        config: The recipe, whose keys are stored with the run.
        folder: The run's folder, which exists.

    Raises:
        TrainError: A tracker doesn't start, for want of a login, say.
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
        accelerator.project_configuration.logging_dir = str(logs)  # a run before this one had its own
        settings = {
            # Both know a run by this id, or name, and go on with the one they know.
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
        except Exception as error:  # each tracker's own kinds
            raise TrainError(f'track: {", ".join(config.track)} can\'t start ({type(error).__name__}:'
                             f' {" ".join(str(error).split())})') from None

    def log(self, row: Mapping[str, Any]) -> None:
        """Log the row of an epoch, at the step of that epoch."""
        if self.active:
            values = {name: value for name, value in flatten(row).items() if isinstance(value, int | float)}
            self.accelerator.log(values, step=row['epoch'])

    def finish(self, summary: RunSummary) -> None:
        """Log the final scores, and close this run's trackers; another run may follow in this process."""
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
    """Nested data as `val/top1_heads/0: 91.5`, of the kinds that every tracker takes; None is left out."""
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
    """Without what trackio prints: the address of its dashboard holds a token that lets others write."""
    if 'trackio' not in names:
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
