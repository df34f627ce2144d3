"""A run from recipe to summary: prepare, train or resume, keep the best head, save it, compare."""
from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader

from ..model import CollabModel
from .build import model_args
from .checkpoint import unpack
from .config import TrainConfig
from .data.augment.preprocess import shows_whole_images
from .data.decoding.image_split import ImageSplit
from .data.decoding.stored import change, is_copy
from .data.labels.class_balance import is_imbalanced
from .data.loading.images import BatchedImages, EpochSampler, evaluation_loader, stream_loader, training_loader
from .data.loading.streaming import StreamedImages, StreamSampler
from .data.training_data import TrainingData
from .distributed.processes import broadcast_tensors, enter_on_main, run_on_main
from .distributed.signals import StoppedError, StopRequest
from .errors import TrainError, found_everywhere, require
from .loop.meter import ExplodedLossError
from .loop.teacher import teacher_line
from .loop.trainer import Callbacks, Loaders, Trainer
from .paths import BATCH, PLAIN, PLOTS, SINGLE, SUMMARY
from .prepare import Prepared, make_accelerator, prepare
from .record.plots import HOW_TO_GET, can_plot, plot_run
from .record.progress import reset_peak_memory
from .record.provenance import commit, versions
from .record.report import EpochTable, against_waiting, data_lines, final_lines, model_lines, print_on_main
from .record.run_folder import RunFolder, RunLock, RunState, choose_folder, inspect_folder
from .record.save import save_pruned, save_tree
from .record.summarize import summarize
from .record.summary import RunSummary
from .record.tracking import Tracking, check_trackers

COMPARED_IMAGES = 32
"""Images on which the logits of the saved model are compared with those of the trained head."""
T = TypeVar('T')


def train(config: TrainConfig) -> RunSummary:
    """Run a recipe on every process of the launch, or the rest of it where `output` holds an unfinished run.

    Returns:
        The summary that `summary.json` holds.

    Raises:
        TrainError: The recipe or its data can't be trained, or `output` can't be used. Mistakes are found before
            training wherever that is possible. After an `ExplodedLossError`, a full disk, or an image outside the cache
            that can't be decoded, the checkpoints remain and the same command resumes.
        StoppedError: A signal asked the run to stop. Its state was saved; the same command resumes it.
        ExportError: The saved model doesn't give the logits of the head that it was saved from.
    """
    with found_everywhere():
        check_trackers(config.track)
        accelerator = make_accelerator(config)
    folder = Path(run_on_main(accelerator, lambda: str(choose_folder(config))))
    runs = [(config, folder), *((each, folder / name) for name, each in config.compared().items())]
    states = run_on_main(accelerator, lambda: [inspect_folder(path, each) for each, path in runs])
    if all(state is RunState.FINISHED for state in states):
        print_on_main(accelerator, f"the run in '{folder}' is finished")
        return _conclude(config, folder, accelerator)
    prepared = prepare([each for each, _ in runs], accelerator)
    print_on_main(accelerator, *data_lines(config, prepared.data), *prepared.data.splits.notes)
    if prepared.teacher is not None:
        print_on_main(accelerator, teacher_line(prepared.teacher))

    with enter_on_main(accelerator, RunLock(folder)), StopRequest() as stop:
        for (each, path), model in zip(runs, prepared.models, strict=True):
            run = ModelRun(each, path, accelerator, prepared)
            if run.state is not RunState.FINISHED:
                trainer = run.start(model, stop)
                with run.explain_errors(trainer):
                    trainer.fit()
                run.finish(trainer)
        return _conclude(config, folder, accelerator)


def _conclude(config: TrainConfig, folder: Path, accelerator: Accelerator) -> RunSummary:
    """Compare a finished tree with the network alone, draw and print; what a killed run left of that is done here."""

    def read() -> RunSummary:
        summary = RunSummary.read(folder / SUMMARY)
        for name in (SINGLE, PLAIN):
            if getattr(summary, name) is None and (folder / name / SUMMARY).is_file():
                found: dict[str, Any] = {name: RunSummary.read(folder / name / SUMMARY)}
                summary = dataclasses.replace(summary, **found)
                summary.write(folder / SUMMARY)
        return summary

    summary = run_on_main(accelerator, read)
    if config.plots and not run_on_main(accelerator, lambda: any((folder / PLOTS).glob('*'))):
        print_on_main(accelerator, '', run_on_main(accelerator, lambda: _plot(folder)))
    print_on_main(accelerator, *final_lines(summary))
    return summary


def _plot(folder: Path) -> str:
    """Draw a finished run; returns the line to print."""
    if not can_plot():
        return HOW_TO_GET
    try:
        plot_run(folder)
    except TrainError as error:  # the run itself is finished
        return f'no plots: {error}; timm-collab plot {folder} tries again'
    return f'plots: {folder / PLOTS}'


class ModelRun:
    """The run of one model, and the folder that holds it.

    The main process alone reads and writes the folder; its errors are raised on every process.

    Args:
        config: The recipe.
        path: The run's folder.
        accelerator: The processes.
        prepared: Data and teacher.

    Raises:
        TrainError: The folder can't be used.
    """

    def __init__(self, config: TrainConfig, path: Path, accelerator: Accelerator, prepared: Prepared) -> None:
        self.config = config
        self.path = path
        self.accelerator = accelerator
        self.data = prepared.data
        self.teacher = prepared.teacher
        self.class_weights = prepared.class_weights
        self.folder: RunFolder | None = None
        self.state = run_on_main(accelerator, self._open)

    def _open(self) -> RunState:
        self.folder = RunFolder(self.path, self.config)
        return self.folder.state

    def _with_folder(self, work: Callable[[RunFolder], T]) -> T:
        return run_on_main(self.accelerator, lambda: work(self.folder))  # type: ignore[arg-type]

    def start(self, model: CollabModel, stop: StopRequest) -> Trainer:
        """Make the trainer of a model, with the state of the newest checkpoint if there is one."""
        accelerator, config = self.accelerator, self.config
        self._with_folder(lambda folder: folder.write_labels(self.data.splits))
        self._with_folder(lambda folder: folder.write_bad_images(self.data.bad))
        print_on_main(accelerator, *model_lines(config, model))
        self.origin = {
            'data': self.data.splits.fingerprint,
            'images': self._with_folder(lambda _: self.data.stored),
            'teacher': None if self.teacher is None else self.teacher.facts.sha256,
            'processes': accelerator.num_processes,
            'versions': versions(),
            'evaluation': str(self.data.preprocessing.data_config),
        }
        self.commit = self._with_folder(lambda _: commit())  # now, as the code may change during a long run
        reset_peak_memory(accelerator.device)
        self.tracking = Tracking(accelerator, config, self.path)
        loaders = _make_loaders(config, self.data, accelerator)
        if config.data.workers == 'auto' and (workers := loaders.train.num_workers):
            print_on_main(accelerator, f'data.workers auto: {workers} per training process')
        self.table = self._table(len(loaders.train) * config.batch_size)
        callbacks = Callbacks(on_epoch=self._log, on_checkpoint=self._save)
        trainer = Trainer(
            config, model, loaders, accelerator, callbacks, stop, self.teacher, self.class_weights)
        if self.state is RunState.UNFINISHED:
            self._resume(trainer)
        return trainer

    def _table(self, images_per_epoch: int) -> EpochTable:
        """The table of epochs, with the balanced accuracy where that is not the accuracy, or the recipe aims at it."""
        data, val = self.config.data, self.data.val.split.labels
        balanced = not data.multi_label and (
            data.class_weights is not None or data.sampling == 'balanced'
            or is_imbalanced(val, self.data.splits.num_classes))
        batched = isinstance(self.data.train, BatchedImages)
        return EpochTable(
            self.config.epochs, balanced, None if batched else images_per_epoch, against_waiting(self.data.train))

    @contextmanager
    def explain_errors(self, trainer: Trainer) -> Iterator[None]:
        """Add to an error of the trainer what the user can do about it."""
        try:
            yield
        except ExplodedLossError as error:
            raise self._with_batch(error, trainer) from None
        except StoppedError:
            folder = self.path.parent if self.path.name in (SINGLE, PLAIN) else self.path
            command = 'the same command' if self.config.output else f'the same command with --output {folder}'
            print_on_main(
                self.accelerator, f'stopped and saved after {trainer.num_updates} updates; {command} resumes it')
            raise

    def finish(self, trainer: Trainer) -> None:
        """Test the trained model, save its best head and the whole tree, and at last the summary."""
        accelerator = self.accelerator
        if len(trainer.rows) < self.config.epochs:
            print_on_main(accelerator, f'stopped after epoch {len(trainer.rows)} of {self.config.epochs}, none better'
                                       f' for stop.patience {self.config.stop.patience}')
        tested = trainer.finish()
        bad = gather_object(self.data.bad)  # processes replace different ones while training
        self._with_folder(lambda folder: folder.write_bad_images(bad))
        model = trainer.release()
        teacher = None if self.teacher is None else self.teacher.facts
        summary = summarize(
            self.config,
            model,
            self.data,
            trainer.rows,
            tested,
            teacher=teacher,
            num_processes=accelerator.num_processes,
            device=accelerator.device,
            commit=self.commit,
            train_seconds=trainer.seconds,
        )
        self.tracking.finish(self._with_folder(lambda folder: self._save_model(folder, model, summary)))

    def _log(self, row: dict[str, Any]) -> None:
        self._with_folder(lambda folder: folder.log(row))
        self.tracking.log(row)
        print_on_main(self.accelerator, *self.table.lines(row))

    def _save(self, state: dict[str, Any], update: int, score: float | None) -> None:
        state = {**state, 'origin': self.origin}
        self._with_folder(lambda folder: str(folder.checkpoints.save(state, update, score)))

    def _resume(self, trainer: Trainer) -> None:
        """Load the newest intact checkpoint into the trainer; without one, training starts from the beginning."""
        tensors: dict[str, Tensor] = {}

        def read(folder: RunFolder) -> Any:
            found = folder.checkpoints.newest()
            if found is None:
                folder.write_log([])
                print(f"'{folder.path}' holds no checkpoint yet: starting from the beginning", flush=True)
                return None
            for path, reason in found.set_aside:
                print(f"warning: {reason}; it was renamed to '{path.name}'", file=sys.stderr, flush=True)
            self._check_origin(found.plain['origin'])
            folder.write_log(found.plain['progress']['rows'])
            tensors.update(found.tensors)
            return found.plain

        plain = self._with_folder(read)
        if plain is not None:
            trainer.load_state_dict(unpack(plain, broadcast_tensors(self.accelerator, tensors)))
            epochs = self.config.epochs
            epoch = min(trainer.epoch + 1, epochs)
            print_on_main(self.accelerator, f'resuming after {trainer.num_updates} updates, in epoch {epoch}/{epochs}')

    def _check_origin(self, saved: dict[str, Any]) -> None:
        """Compare what a checkpoint was made from with what this run has.

        Raises:
            TrainError: The data or the teacher are others.
        """
        require(saved['data'] == self.origin['data'],
                f"the training data of '{self.path}' has changed since: labels or splits differ, restore them or choose"
                ' another output')
        for role, before in saved.get('images', {}).items():  # absent in checkpoints of older versions
            now = self.origin['images'].get(role, {})
            what = change(before, now)
            require(what is None,
                    f"the {role} images of '{self.path}' have changed since: {what} differ, restore them (with their"
                    ' times, which cp -p, tar and rsync -t keep) or choose another output')
            if is_copy(before, now):
                print(f'warning: the modification times of all {role} images have changed, but no size: the run takes'
                      ' them for a copy of the same images and resumes', file=sys.stderr, flush=True)
        require(saved.get('teacher') == self.origin['teacher'],
                f"the teacher of '{self.path}' has changed since: its weights differ, restore them or choose another"
                ' output')
        for name in ('processes', 'versions'):
            if saved[name] != self.origin[name]:
                print(f'warning: {name} changed from {saved[name]} to {self.origin[name]}: the run resumes, but its'
                      ' results will not be bit-identical', file=sys.stderr, flush=True)
        before = saved.get('evaluation')
        if before is None and shows_whole_images(self.config.data, self.config.augment):
            before = "the architecture's crop"  # as older versions, which did not save it, evaluated every run
        if before not in (None, self.origin['evaluation']):
            print(f'warning: evaluation changed from {before} to {self.origin["evaluation"]}: the run resumes, but its'
                  ' validation results before and after are not comparable', file=sys.stderr, flush=True)

    def _with_batch(self, error: ExplodedLossError, trainer: Trainer) -> ExplodedLossError:
        """The error with the batch that it happened at, which is written to a file as well."""
        split = self.data.splits.train
        indices = trainer.batch_indices(error.epoch, error.step)
        what, where = split.located(indices)
        batch = {'epoch': error.epoch, 'step': error.step, 'split': split.name, what: where}
        if isinstance(split, ImageSplit):
            batch['files'] = [split.file(index) for index in indices]
        self._with_folder(lambda folder: folder.write_batch({**batch, 'error': str(error)}))
        listed = ', '.join(map(str, where[:8]))
        if len(where) > 8:
            listed += ', ...'
        last = self._with_folder(lambda folder: folder.checkpoints.last_name())
        checkpoint = f"The last checkpoint is '{last}'" if last else 'There is no checkpoint yet'
        return ExplodedLossError(
            f"{error}. The batch: {what} {listed} of split '{split.name}', all in '{self.path / BATCH}'. {checkpoint}",
            error.epoch, error.step)

    def _save_model(self, folder: RunFolder, model: CollabModel, summary: RunSummary) -> RunSummary:
        """Save the tree, the pruned model and at last the summary, which says that the run is finished."""
        save_tree(model, folder.path)
        images: Any = self.data.val if self.data.test is None else self.data.test
        compared = torch.stack([images[index][0] for index in range(min(COMPARED_IMAGES, len(images)))]).cpu()
        load = save_pruned(
            model,
            folder.pruned,
            compared,
            self.data.preprocessing.data_config,
            model_args(self.config.model, self.config.data),
            self.data.splits.label_names,
            from_scratch=not self.config.model.pretrained,
            multi_label=self.config.data.multi_label,
        )
        summary = dataclasses.replace(summary, load=load)
        folder.write_summary(summary)
        return summary


def _make_loaders(config: TrainConfig, data: TrainingData, accelerator: Accelerator) -> Loaders:
    train_loader: DataLoader
    sampler: EpochSampler | StreamSampler
    if isinstance(data.train, StreamedImages):
        process = accelerator.process_index, accelerator.num_processes
        train_loader, sampler = stream_loader(data.train, config, process)
    else:
        train_loader, sampler = training_loader(
            data.train, config.batch_size, config.data.workers, config.seed, config.augment.repeats,
            config.data.sampling == 'balanced')
    labels = data.splits.labels
    return Loaders(
        train=train_loader,
        sampler=sampler,
        val=evaluation_loader(data.val, config.batch_size, config.data.workers),
        test=None if data.test is None else evaluation_loader(data.test, config.batch_size, config.data.workers),
        clean=torch.from_numpy(labels[0]) if labels and data.splits.noise_rate else None,
        labels=torch.from_numpy(labels[1]) if labels else None,
        val_clean=None if data.splits.val_clean is None else torch.from_numpy(data.splits.val_clean),
    )
