"""A run from recipe to summary: prepare, train or go on, keep the best head, save it, compare."""
from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn as nn
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from .build import model_args
from .checkpoint import unpack
from .config import TrainConfig
from .data.images import EpochSampler, evaluation_loader, stream_loader, training_loader
from .data.streams import StreamedImages, StreamSampler
from .data.training_data import TrainingData
from .distributed.processes import on_main, on_main_only, share_tensors
from .distributed.signals import StoppedError, StopRequest
from .errors import TrainError, found_everywhere, require
from .loop.meter import ExplodedLossError
from .loop.teacher import teacher_line
from .loop.trainer import Listener, Loaders, Trainer
from .paths import BATCH, PLOTS, SINGLE, SUMMARY
from .prepare import Prepared, make_accelerator, prepare
from .record.plots import HOW_TO_GET, can_plot, plot_run
from .record.progress import reset_peak_memory
from .record.provenance import commit, versions
from .record.report import EpochTable, data_line, final_lines, model_lines, print_on_main
from .record.run_folder import RunFolder, RunLock, RunState, choose_folder, inspect_folder
from .record.save import save_pruned, save_tree
from .record.summarize import summarize
from .record.summary import RunSummary
from .record.tracking import Tracking, check_trackers

COMPARED_IMAGES = 32
T = TypeVar('T')


def train(config: TrainConfig) -> RunSummary:
    """Run a recipe, on every process of the launch, or what is left of it where `output` holds a part of the run.

    Returns:
        The summary that `summary.json` holds.

    Raises:
        TrainError: The recipe or its data can't be trained, or `output` can't be used. Nothing has been trained or
            written by then, except where it is an `ExplodedLossError`, a `CheckpointError`, or an image outside the
            cache that can't be decoded: then the checkpoints remain.
        StoppedError: A signal asked the run to stop. It was saved; the same command goes on.
        ExportError: The saved model doesn't give the logits of the head that it was saved from.
    """
    with found_everywhere():
        check_trackers(config.track)
        accelerator = make_accelerator(config)
    folder = Path(on_main(accelerator, lambda: str(choose_folder(config))))
    runs = [(config, folder)]
    if config.compare_single and config.model.num_heads > 1:
        single = dataclasses.replace(config, model=config.model.single(), compare_single=False)
        runs.append((single, folder / SINGLE))
    states = on_main(accelerator, lambda: [inspect_folder(path, each) for each, path in runs])
    if all(state is RunState.FINISHED for state in states):
        print_on_main(accelerator, f"the run in '{folder}' is finished")
        summary = on_main(accelerator, lambda: RunSummary.read(folder / SUMMARY))
        print_on_main(accelerator, *final_lines(summary))
        return summary
    prepared = prepare([each for each, _ in runs], accelerator)
    print_on_main(accelerator, data_line(config, prepared.data.splits))
    if prepared.teacher is not None:
        print_on_main(accelerator, teacher_line(prepared.teacher))

    with on_main_only(accelerator, RunLock(folder)), StopRequest() as stop:
        summaries = [
            ModelRun(each, path, accelerator).train(model, prepared, stop)
            for (each, path), model in zip(runs, prepared.models, strict=True)
        ]
        summary = summaries[0]
        if len(summaries) > 1:
            summary = dataclasses.replace(summary, single=summaries[1])
            on_main(accelerator, lambda: RunFolder(folder, config).write_summary(summary))
    if config.plots:
        print_on_main(accelerator, '', on_main(accelerator, lambda: _plot(folder)))
    print_on_main(accelerator, *final_lines(summary))
    return summary


def _plot(folder: Path) -> str:
    """Draw a finished run; returns what there is to say of it."""
    if not can_plot():
        return HOW_TO_GET
    try:
        plot_run(folder)
    except TrainError as error:  # the run itself is finished
        return f'no plots: {error}; timm-collab plot {folder} tries again'
    return f'plots: {folder / PLOTS}'


class ModelRun:
    """One model through its run, and the folder that holds it.

    The folder belongs to the main process; what goes wrong there is raised everywhere.

    Args:
        config: The recipe.
        path: The run's folder.
        accelerator: The processes.

    Raises:
        TrainError: The folder can't be used.
    """

    def __init__(self, config: TrainConfig, path: Path, accelerator: Accelerator) -> None:
        self.config = config
        self.path = path
        self.accelerator = accelerator
        self.folder: RunFolder | None = None
        self.state = on_main(accelerator, self._open)

    def train(self, model: nn.Module, prepared: Prepared, stop: StopRequest) -> RunSummary:
        """Train the model, or what is left to train, and save its best head; see `train`."""
        if self.state is RunState.FINISHED:
            return self._on_folder(lambda folder: RunSummary.read(folder.path / SUMMARY))
        accelerator, config = self.accelerator, self.config
        self._on_folder(lambda folder: folder.write_labels(prepared.data.splits))
        print_on_main(accelerator, *model_lines(config, model))

        origin = {
            'data': prepared.data.splits.fingerprint,
            'teacher': None if prepared.teacher is None else prepared.teacher.facts.sha256,
            'processes': accelerator.num_processes,
            'versions': versions(),
        }
        code = self._on_folder(lambda _: commit())  # before it can change under a run that takes long
        reset_peak_memory(accelerator.device)
        tracking, table = Tracking(accelerator, config, self.path), EpochTable(config.epochs)

        def on_epoch(row: dict[str, Any]) -> None:
            self._on_folder(lambda folder: folder.log(row))
            tracking.log(row)
            print_on_main(accelerator, *table.lines(row))

        listener = Listener(
            on_epoch=on_epoch,
            on_checkpoint=lambda state, update, score: self._save({**state, 'origin': origin}, update, score),
        )
        trainer = Trainer(
            config, model, _loaders(config, prepared.data, accelerator), accelerator, listener, stop, prepared.teacher)
        if self.state is RunState.UNFINISHED:
            self._resume(trainer, origin)
        try:
            rows = trainer.fit()
        except ExplodedLossError as error:
            raise self._explained(error, trainer, prepared) from None
        except StoppedError:
            again = 'the same command' if config.output else f'the same command with --output {self.path}'
            print_on_main(accelerator, f'stopped and saved after {trainer.num_updates} updates; {again} goes on')
            raise
        test = None if trainer.test_loader is None else trainer.score(trainer.test_loader)
        model = trainer.release()

        summary = summarize(
            config,
            model,
            prepared.data,
            rows,
            test,
            teacher=None if prepared.teacher is None else prepared.teacher.facts,
            num_processes=accelerator.num_processes,
            device=accelerator.device,
            commit=code,
            train_seconds=trainer.seconds,
        )
        load = self._on_folder(lambda folder: self._finish(folder, model, prepared, summary))
        summary = dataclasses.replace(summary, load=load)
        tracking.finish(summary)
        return summary

    def _open(self) -> RunState:
        self.folder = RunFolder(self.path, self.config)
        return self.folder.state

    def _on_folder(self, work: Callable[[RunFolder], T]) -> T:
        return on_main(self.accelerator, lambda: work(self.folder))  # type: ignore[arg-type]

    def _save(self, state: dict[str, Any], update: int, score: float | None) -> None:
        self._on_folder(lambda folder: str(folder.checkpoints.save(state, update, score)))

    def _resume(self, trainer: Trainer, origin: dict[str, Any]) -> None:
        """Put the trainer where the newest intact checkpoint left off; without one it begins at the beginning."""
        tensors: dict[str, Tensor] = {}

        def read(folder: RunFolder) -> Any:
            found = folder.checkpoints.newest()
            if found is None:
                folder.write_log([])
                print(f"'{folder.path}' holds no checkpoint yet: beginning at the beginning", flush=True)
                return None
            for path, reason in found.set_aside:
                print(f"warning: {reason}; it was renamed to '{path.name}'", file=sys.stderr, flush=True)
            was = found.plain['origin']
            require(was['data'] == origin['data'], f"the training data of '{folder.path}' has changed since: labels or"
                                                   ' splits are others, bring them back or choose another output')
            require(was.get('teacher') == origin['teacher'],
                    f"the teacher of '{folder.path}' has changed since: its weights are others, bring them back or"
                    ' choose another output')
            for name in ('processes', 'versions'):
                if was[name] != origin[name]:
                    print(f'warning: {name} changed from {was[name]} to {origin[name]}: the run goes on, but not bit'
                          ' for bit as it would have', file=sys.stderr, flush=True)
            folder.write_log(found.plain['progress']['rows'])
            tensors.update(found.tensors)
            return found.plain

        plain = self._on_folder(read)
        if plain is not None:
            trainer.load_state_dict(unpack(plain, share_tensors(self.accelerator, tensors)))
            print_on_main(self.accelerator, f'going on after {trainer.num_updates} updates, in epoch'
                                  f' {min(trainer.epoch + 1, self.config.epochs)}/{self.config.epochs}')

    def _explained(self, error: ExplodedLossError, trainer: Trainer, prepared: Prepared) -> ExplodedLossError:
        """The error with the batch it happened at, which is written to a file as well."""
        split = prepared.data.splits.train
        what, where = split.located(trainer.batch_indices(error.epoch, error.step))
        batch = {'epoch': error.epoch, 'step': error.step, 'split': split.name, what: where}
        self._on_folder(lambda folder: folder.write_batch({**batch, 'error': str(error)}))
        few = ', '.join(map(str, where[:8])) + ', ...' * (len(where) > 8)
        last = self._on_folder(lambda folder: folder.checkpoints.last_name())
        return ExplodedLossError(
            f"{error}. The batch: {what} {few} of split '{split.name}', all in '{self.path / BATCH}'. "
            + (f"The last checkpoint is '{last}'" if last else 'There is no checkpoint yet'), error.epoch, error.step)

    def _finish(self, folder: RunFolder, model: nn.Module, prepared: Prepared, summary: RunSummary) -> str:
        """Save the kept head and the whole tree, and at last the summary; returns the line that loads the head."""
        save_tree(model, folder.path)
        fixed: Any = prepared.data.val if prepared.data.test is None else prepared.data.test
        images = torch.stack([fixed[index][0] for index in range(min(COMPARED_IMAGES, len(fixed)))]).cpu()
        load = save_pruned(
            model,
            folder.pruned,
            images,
            prepared.data.preprocessing.data_config,
            model_args(self.config.model, self.config.data),
            prepared.data.splits.label_names,
            from_scratch=not self.config.model.pretrained,
            multi_label=self.config.data.multi_label,
        )
        folder.write_summary(dataclasses.replace(summary, load=load))
        return load


def _loaders(config: TrainConfig, data: TrainingData, accelerator: Accelerator) -> Loaders:
    train_loader: DataLoader
    sampler: EpochSampler | StreamSampler
    if isinstance(data.train, StreamedImages):
        process = accelerator.process_index, accelerator.num_processes
        train_loader, sampler = stream_loader(data.train, config, process)
    else:
        train_loader, sampler = training_loader(
            data.train, config.batch_size, config.data.workers, config.seed, config.augment.repeats
        )
    labels = data.splits.labels
    return Loaders(
        train=train_loader,
        sampler=sampler,
        val=evaluation_loader(data.val, config.batch_size, config.data.workers),
        test=None if data.test is None
        else evaluation_loader(data.test, config.batch_size, config.data.workers),
        clean=torch.from_numpy(labels[0]) if labels and data.splits.noise_rate else None,
    )
