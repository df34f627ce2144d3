"""The loop: one model through its epochs, on Accelerate, from wherever it was left.

A run that was stopped goes on exactly as if it hadn't been: what an update draws depends on where it is, not on what
came before, and everything else is in `Trainer.state_dict`.
"""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn as nn
from accelerate import Accelerator
from timm.utils import distribute_bn
from torch import Tensor
from torch.utils.data import DataLoader

from ..config import TrainConfig
from ..data.images import EpochSampler
from ..data.streams import StreamSampler
from ..distributed.signals import StoppedError, StopRequest
from ..metrics.metric import metric_for
from ..record.progress import Progress
from .evaluate import Scores, evaluate
from .meter import LossMeter
from .step import Updater
from .teacher import Teacher

CHECK_EVERY = 20
"""Updates between two looks at the loss: each look waits for the device, and shows in the progress bar."""


@dataclass(frozen=True)
class Loaders:
    """Loaders of one run.

    Args:
        train: Training batches.
        sampler: That of `train`.
        val: Validation batches.
        test: Test batches, if there are any.
        clean: The labels of each training example before noise, where noise changed some.
    """

    train: DataLoader
    sampler: EpochSampler | StreamSampler
    val: DataLoader
    test: DataLoader | None
    clean: Tensor | None = None


@dataclass(frozen=True)
class Listener:
    """What a trainer tells while it trains, on every process.

    Args:
        on_epoch: Given the row of each epoch, for logs and the screen.
        on_checkpoint: Given what `Trainer.load_state_dict` takes, the number of updates so far, and the validation
            score of the kept head in percent, None in the middle of an epoch.
    """

    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None
    on_checkpoint: Callable[[dict[str, Any], int, float | None], None] = lambda state, update, score: None


class Trainer:
    """Train one model.

    Args:
        config: The recipe.
        model: `CollabModel`.
        loaders: Data, not prepared yet.
        accelerator: Where and how to run.
        listener: Told of epochs and checkpoints.
        stop: Asked whether to stop.
        teacher: Who teaches the model besides, if anyone.
    """

    def __init__(
            self,
            config: TrainConfig,
            model: nn.Module,
            loaders: Loaders,
            accelerator: Accelerator,
            listener: Listener | None = None,
            stop: StopRequest | None = None,
            teacher: Teacher | None = None,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.listener = listener or Listener()
        self.stop = stop or StopRequest()
        self.sampler = loaders.sampler
        self.clean = loaders.clean
        self.model = model
        self.metric = metric_for(config.data.multi_label)
        self.updates_per_epoch = len(loaders.train)
        self.updater = Updater(config, model, self.updates_per_epoch, accelerator, teacher)
        self.train_loader, self.val_loader = accelerator.prepare(loaders.train, loaders.val)
        self.test_loader = None if loaders.test is None else accelerator.prepare(loaders.test)
        self.rows: list[dict[str, Any]] = []
        self.epoch = 0
        self.meter = self._new_meter()
        self.seconds = 0.0
        self.lr = self.updater.lr
        self._order: list[int] = []
        self._started = time.perf_counter()

    @property
    def step(self) -> int:
        """Updates made in this epoch."""
        return self.meter.checked + len(self.meter.unchecked)

    @property
    def num_updates(self) -> int:
        """Updates made in all."""
        return self.epoch * self.updates_per_epoch + self.step

    def fit(self) -> list[dict[str, Any]]:
        """Train to the last epoch; afterwards the model keeps the best head of the last epoch's validation.

        With a running average of the weights it is that which is validated, and which `judged` is.

        Returns:
            A row for each epoch, those before a resume included.

        Raises:
            ExplodedLossError: The loss became NaN, infinite or larger than `max_loss`.
            StoppedError: The run was told to stop, and has told its listener the state to go on from.
        """
        self._started = time.perf_counter() - self.seconds
        saving = self.config.checkpoint
        while self.epoch < self.config.epochs:
            stopping, images_per_second = self._train_epoch()
            self.rows.append(self._validated(images_per_second))
            self.epoch += 1
            self.meter = self._new_meter()
            self.listener.on_epoch(self.rows[-1])
            finished = self.epoch == self.config.epochs
            if self.epoch % saving.every_epochs == 0 or finished or stopping:
                self._save(self.metric.kept(self.rows[-1]['val']))
            if stopping and not finished:
                raise StoppedError(self.stop.signal_number)
        self.model.kept_head = self.rows[-1]['kept_head']
        self.seconds = time.perf_counter() - self._started
        return self.rows

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on; every process has to ask for it."""
        progress = {
            'epoch': self.epoch,
            'meter': self.meter.state_dict(),
            'rows': self.rows,
            'seconds': time.perf_counter() - self._started,
            'lr': self.lr,
        }
        # Between epochs the processes' statistics are averaged.
        apart = self.accelerator.num_processes > 1 and self.step > 0
        return {'progress': progress, **self.updater.state_dict(apart)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another trainer of the same recipe and number of processes took this state."""
        progress = state['progress']
        self.epoch, self.rows = progress['epoch'], progress['rows']
        self.seconds, self.lr = progress['seconds'], progress['lr']
        self.meter = self._new_meter()
        self.meter.load_state_dict(progress['meter'])
        self.updater.load_state_dict(state)

    def batch_indices(self, epoch: int, step: int) -> list[int]:
        """Which examples of the training data an update learns from, over all processes."""
        self.sampler.epoch = epoch
        return self.sampler.indices()[step * self.config.batch_size:][:self.config.batch_size]

    @property
    def judged(self) -> nn.Module:
        """The model that is validated, tested and kept: the running average of the weights, if there is one."""
        ema = self.updater.ema
        return self.model if ema is None else ema.module

    def score(self, loader: DataLoader, model: nn.Module | None = None) -> Scores:
        """Evaluate `judged`, or another model, on a prepared loader, BatchNorm statistics averaged over processes."""
        model = self.judged if model is None else model
        if self.accelerator.num_processes > 1:
            distribute_bn(model, self.accelerator.num_processes, reduce=True)
        return evaluate(model, loader, self.accelerator, self.metric)

    def release(self) -> nn.Module:
        """The trained model on the CPU, as it was validated, free of what Accelerate put around it."""
        model = self.updater.release()
        model.kept_head = self.rows[-1]['kept_head']
        return model

    def _train_epoch(self) -> tuple[bool, float]:
        """What is left of the epoch; returns whether the run is to stop, and images per second."""
        self.sampler.epoch = self.epoch
        self.sampler.skip = self.step * self.config.batch_size
        self.updater.begin_epoch(self.epoch)
        self._order = [] if self.clean is None else self.sampler.indices()
        saving = self.config.checkpoint
        bar = Progress(
            self.updates_per_epoch * self.config.batch_size,
            self.epoch,
            self.config.epochs,
            self.accelerator.device,
            self.accelerator.is_main_process,
            done=self.sampler.skip,
            score_name=self.metric.train_name,
        )
        if self.step == 0:
            self.lr = self.updater.lr
        stopping = False
        first, start = self.step, time.perf_counter()
        with bar:
            for images, given in self.train_loader:
                clean = given if self.clean is None else self._clean_labels().to(given.device)
                self.meter.add(self.updater.update(images, given, clean, self.epoch, self.step))
                # Signals reach processes at different moments, so all learn of them in the same look.
                alone = self.accelerator.num_processes == 1 and self.stop.requested
                due = saving.every_updates is not None and self.step % saving.every_updates == 0
                looking = self.step % CHECK_EVERY == 0 or self.step == self.updates_per_epoch or due or alone
                if looking:
                    stopping = self.meter.check(self.stop.requested)
                now = (self.meter.loss, self.meter.score['given']) if looking else ()
                bar.update(self.config.batch_size, *now)
                if (stopping or due) and self.step < self.updates_per_epoch:
                    self._save()
                    if stopping:
                        raise StoppedError(self.stop.signal_number)
        return stopping, (self.step - first) * self.config.batch_size / (time.perf_counter() - start)

    def _validated(self, images_per_second: float) -> dict[str, Any]:
        """The row of the epoch that was trained."""
        online = self.score(self.val_loader, self.model)
        scores = online if self.judged is self.model else self.score(self.val_loader)
        self.model.kept_head = scores.best_head  # type: ignore[assignment]
        hard_H, soft_H = self.meter.terms()
        row = {
            'epoch': self.epoch,
            'lr': self.lr,
            'beta': self.updater.task.criterion.beta,
            'temperature': self.updater.task.criterion.temperature,
            'train_loss': self.meter.loss,
            'train_hard_heads': hard_H,
            'train_soft_heads': soft_H,
            'images_per_second': images_per_second,
            'kept_head': scores.best_head,
            'val': scores.row(scores.best_head),
        }
        if not self.config.augment.mixes:  # the images of a mixture have no one label
            score = self.meter.score
            row[self.metric.train_key] = score if self.clean is not None else {'given': score['given']}
        if scores is not online:
            row['val_without_ema'] = online.row(online.best_head)
        return row

    def _clean_labels(self) -> Tensor:
        """Labels before noise of this process's part of the batch at hand."""
        assert self.clean is not None
        size = self.config.batch_size // self.accelerator.num_processes
        first = self.step * self.config.batch_size + self.accelerator.process_index * size
        return self.clean[self._order[first:first + size]]

    def _save(self, score: float | None = None) -> None:
        self.listener.on_checkpoint(self.state_dict(), self.num_updates, score)

    def _new_meter(self) -> LossMeter:
        return LossMeter(self.accelerator, self.epoch, self.config.max_loss)
