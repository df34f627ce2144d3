"""The training loop: a model through its epochs, from wherever the run was left.

A resumed run ends exactly as if it had not been stopped: what a step draws at random depends on its place in the run
alone, and everything else is in `Trainer.state_dict`.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from timm.utils import distribute_bn
from torch import Tensor
from torch.utils.data import DataLoader

from ...model import CollabModel
from ..config import TrainConfig
from ..data.loading.images import EpochSampler, used_indices
from ..data.loading.streaming import StreamSampler
from ..distributed.signals import StoppedError, StopRequest
from ..metrics.metric import Scores, metric_for
from ..record.progress import Progress
from ..record.summary_parts import TestedEpochs
from .evaluate import evaluate
from .kept_epochs import KeptEpochs
from .meter import LoaderClock, LossMeter
from .step import TrainState
from .teacher import Teacher

CHECK_EVERY = 20
"""Steps between two checks of the loss: each check waits for the device, and updates the progress bar."""


@dataclass(frozen=True)
class Loaders:
    """Data loaders of a run.

    Args:
        train: Training batches.
        sampler: The sampler of `train`.
        val: Validation batches.
        test: Test batches, if there is a test split.
        clean: The labels of each training example before noise, where noise changed some.
        labels: The labels of each training example that are learned; None for a stream.
        val_clean: The labels of each validation example before noise, where noise changed some.
    """

    train: DataLoader
    sampler: EpochSampler | StreamSampler
    val: DataLoader
    test: DataLoader | None
    clean: Tensor | None = None
    labels: Tensor | None = None
    val_clean: Tensor | None = None


@dataclass(frozen=True)
class Callbacks:
    """What a trainer calls while it trains, on every process.

    Args:
        on_epoch: Called with the row of each epoch, for logs and the screen.
        on_checkpoint: Called with what `Trainer.load_state_dict` takes, the number of updates so far, and the
            validation score of the best head in percent, None in the middle of an epoch.
    """

    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None
    on_checkpoint: Callable[[dict[str, Any], int, float | None], None] = lambda state, update, score: None


class Trainer:
    """Train one model.

    Args:
        config: The recipe.
        model: The model.
        loaders: Data loaders, not prepared by Accelerate yet.
        accelerator: Where and how to run.
        callbacks: Called with rows and checkpoints.
        stop: Whether to stop; checked now and then.
        teacher: Teacher to distill from, if any.
        class_weights: Weight of each class in the loss against the labels, [C].

    Attributes:
        rows: The row of each epoch.
        epochs: The last epoch and the best ones, with their weights.
    """

    def __init__(
            self,
            config: TrainConfig,
            model: CollabModel,
            loaders: Loaders,
            accelerator: Accelerator,
            callbacks: Callbacks | None = None,
            stop: StopRequest | None = None,
            teacher: Teacher | None = None,
            class_weights: Tensor | None = None,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.callbacks = callbacks or Callbacks()
        self.stop = stop or StopRequest()
        self.sampler = loaders.sampler
        self.images = loaders.train.dataset
        self.clean = loaders.clean
        self.metric = metric_for(config.data.multi_label)
        self.updates_per_epoch = len(loaders.train)
        self.state = TrainState(
            config, model, self.updates_per_epoch, accelerator, teacher, class_weights, loaders.labels)
        self.train_loader, self.val_loader = accelerator.prepare(loaders.train, loaders.val)
        self.test_loader = None if loaders.test is None else accelerator.prepare(loaders.test)
        self.rows: list[dict[str, Any]] = []
        self.epoch = 0
        self.meter = self._new_meter()
        self.waiting = LoaderClock(accelerator.device)
        self.epochs = KeptEpochs(config, self.state, loaders.val_clean)
        self.stopping = False
        self.seconds = 0.0
        self.lr = self.state.lr
        self._needs_index = self.clean is not None or self.state.needs_index
        self._keys: Iterator[Any] = iter(())
        self._started = time.perf_counter()

    @property
    def step(self) -> int:
        """Number of updates made in this epoch."""
        return self.meter.checked + len(self.meter.unchecked)

    @property
    def num_updates(self) -> int:
        """Number of updates made in the run."""
        return self.epoch * self.updates_per_epoch + self.step

    def fit(self) -> list[dict[str, Any]]:
        """Train to the last epoch, or until there was no better one for `stop.patience` epochs.

        Afterwards the model still has the weights of the last epoch; `finish` gives it those that are kept.

        Returns:
            A row for each epoch, those before a resume included.

        Raises:
            ExplodedLossError: The loss became NaN, infinite or larger than `max_loss`.
            StoppedError: The run was asked to stop, and its state was saved through the callbacks.
        """
        self._started = time.perf_counter() - self.seconds
        while not self.is_finished:
            images_per_second = self.train_one_epoch()
            row = self.validate(images_per_second)
            self._end_epoch(row)
        self.seconds = time.perf_counter() - self._started
        return self.rows

    @property
    def is_finished(self) -> bool:
        """Whether no epoch follows."""
        return self.epoch == self.config.epochs or self.epochs.is_stalled(self.epoch)

    def finish(self) -> TestedEpochs:
        """Give the trained model the weights and the head that are kept, and test it, see `KeptEpochs.test_all`."""
        return self.epochs.test_all(lambda: None if self.test_loader is None else self.score(self.test_loader))

    def train_one_epoch(self) -> float:
        """Train for what is left of the epoch.

        Returns:
            Images per second, of all processes together.
        """
        self._begin_epoch()
        first, start = self.step, time.perf_counter()
        with self._progress_bar() as bar:
            for images, given in self.waiting.timed(self.train_loader):
                index = self._batch_index() if self._needs_index else None
                clean = given if self.clean is None else self.clean[index].to(given.device)
                index = index if index is None else index.to(given.device)
                self.meter.add(self.state.train_step(images, given, clean, self.epoch, self.step, index))
                if self._is_check_due():
                    # Signals reach processes at different moments; all of them learn of one in the same check.
                    self.stopping = self.meter.check(self.stop.requested)
                    self.waiting.collect()
                    bar.update(self.config.batch_size, self.meter.loss, self.meter.score['given'])
                    self._save_within_epoch()
                else:
                    bar.update(self.config.batch_size)
        return (self.step - first) * self.config.batch_size / (time.perf_counter() - start)

    def validate(self, images_per_second: float) -> dict[str, Any]:
        """Evaluate after an epoch, choose the head to keep, and keep the weights of the best epoch.

        Args:
            images_per_second: Speed of training, for the row.

        Returns:
            The row of the epoch.
        """
        online = self.score(self.val_loader, self.state.model)
        has_ema = self.state.ema is not None
        scores = self.score(self.val_loader) if has_ema else online
        self.state.model.kept_head = scores.best_head
        changed = None if self.state.changes is None else self.state.changes.end_epoch()
        last = self.epochs.end_epoch(self.epoch, online, scores if has_ema else None)
        hard_H, soft_H = self.meter.terms()
        row = {
            'epoch': self.epoch,
            'lr': self.lr,
            'beta': self.state.task.criterion.beta,
            'temperature': self.state.task.criterion.temperature,
            'train_loss': self.meter.loss,
            'train_hard_heads': hard_H,
            'train_soft_heads': soft_H,
            'images_per_second': images_per_second,
            'wait_seconds': self._longest_wait(),
            'kept_head': scores.best_head,
            'val': last.val,
        }
        if last.val_clean is not None:
            row['val_clean'] = last.val_clean
        if self.state.changes is not None:
            row['changed_predictions'] = changed
        if not self.config.augment.mixes:  # mixed images have no single label
            score = self.meter.score
            row[self.metric.train_key] = score if self.clean is not None else {'given': score['given']}
        if has_ema:
            row['val_without_ema'] = online.row(online.best_head)
        return row

    def score(self, loader: DataLoader, model: CollabModel | None = None) -> Scores:
        """Evaluate a model, by default the one that is kept; BatchNorm statistics are averaged over processes first.

        Args:
            loader: A prepared loader.
            model: The model.
        """
        model = self.state.eval_model if model is None else model
        if self.accelerator.num_processes > 1:
            distribute_bn(model, self.accelerator.num_processes, reduce=True)
        return evaluate(model, loader, self.accelerator, self.metric)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on; every process has to call it."""
        progress = {
            'epoch': self.epoch,
            'meter': self.meter.state_dict(),
            'wait_seconds': self.waiting.seconds,
            'rows': self.rows,
            'seconds': time.perf_counter() - self._started,
            'lr': self.lr,
        }
        # Evaluation at the end of an epoch averages the processes' statistics.
        buffers_differ = self.accelerator.num_processes > 1 and self.step > 0
        return {'progress': progress, 'epochs': self.epochs.state_dict(), **self.state.state_dict(buffers_differ)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of another run of the same recipe with as many processes."""
        progress = state['progress']
        self.epoch, self.rows = progress['epoch'], progress['rows']
        self.seconds, self.lr = progress['seconds'], progress['lr']
        self.meter = self._new_meter()
        self.meter.load_state_dict(progress['meter'])
        self.waiting = LoaderClock(self.accelerator.device, progress.get('wait_seconds', 0.0))
        self.epochs.load_state_dict(state.get('epochs'), self.rows)
        self.state.load_state_dict(state)

    def batch_indices(self, epoch: int, step: int) -> list[int]:
        """Indices into the training data of the examples of a batch, over all processes."""
        self.sampler.epoch = epoch
        return self.sampler.indices()[step * self.config.batch_size:][:self.config.batch_size]

    def release(self) -> CollabModel:
        """Return the trained model that is kept, on the CPU and unwrapped; call `finish` first."""
        model = self.state.release()
        model.kept_head = self.epochs.kept.kept_head
        return model

    def _begin_epoch(self) -> None:
        self.sampler.epoch = self.epoch
        self.sampler.skip = self.step * self.config.batch_size
        self.state.begin_epoch(self.epoch)
        if self._needs_index:
            self._keys = iter(self.sampler)
        if self.step == 0:
            self.lr = self.state.lr

    def _end_epoch(self, row: dict[str, Any]) -> None:
        """Report the epoch, save a checkpoint where one is due, and stop where that was requested."""
        self.rows.append(row)
        self.epoch += 1
        self.meter = self._new_meter()
        self.waiting = LoaderClock(self.accelerator.device)
        self.callbacks.on_epoch(row)
        is_last = self.is_finished
        due = self.epoch % self.config.checkpoint.every_epochs == 0 or self._is_checkpoint_due()
        if due or is_last or self.stopping:
            self._save(max(self.metric.kept(row[name]) for name in ('val', 'val_without_ema') if name in row))
        if self.stopping and not is_last:
            raise StoppedError(self.stop.signal_number)

    def _is_check_due(self) -> bool:
        """Whether all processes check the loss after this step, and whether to stop."""
        stops_alone = self.accelerator.num_processes == 1 and self.stop.requested
        is_last = self.step == self.updates_per_epoch
        return self.step % CHECK_EVERY == 0 or is_last or self._is_checkpoint_due() or stops_alone

    def _is_checkpoint_due(self) -> bool:
        every = self.config.checkpoint.every_updates
        return every is not None and self.num_updates % every == 0

    def _save_within_epoch(self) -> None:
        """Save where that is due, and stop on request; after the last step the epoch is finished first."""
        if self.step == self.updates_per_epoch:
            return
        if self.stopping or self._is_checkpoint_due():
            self._save()
        if self.stopping:
            raise StoppedError(self.stop.signal_number)

    def _save(self, score: float | None = None) -> None:
        self.callbacks.on_checkpoint(self.state_dict(), self.num_updates, score)

    def _batch_index(self) -> Tensor:
        """Indices into the training data of this process's part of the current batch, [B]."""
        size = self.config.batch_size // self.accelerator.num_processes
        keys = list(islice(self._keys, self.config.batch_size))[self.accelerator.process_index * size:][:size]
        return torch.tensor(used_indices(self.images, keys))

    def _longest_wait(self) -> float:
        """Seconds that the processes waited for their loaders in this epoch, of the one that waited longest."""
        own = torch.tensor([self.waiting.collect()], device=self.accelerator.device)
        return self.accelerator.gather(own).max().item()

    def _new_meter(self) -> LossMeter:
        return LossMeter(self.accelerator, self.epoch, self.config.max_loss)

    def _progress_bar(self) -> Progress:
        return Progress(
            self.updates_per_epoch * self.config.batch_size,
            self.epoch,
            self.config.epochs,
            self.accelerator.device,
            self.accelerator.is_main_process,
            done=self.sampler.skip,
            score_name=self.metric.train_name,
        )
