"""Which epoch a run keeps, and when it stops."""
from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from accelerate import Accelerator

from tests.train import toys
from timm_collab.train.loop.kept_epochs import Best
from timm_collab.train.loop.prediction_changes import PredictionChanges
from timm_collab.train.record.summary_parts import EpochScores


def epoch(number: int) -> EpochScores:
    return EpochScores(number, False, 0, {})


def test_the_best_is_the_first_of_equal_ones():
    best = Best()
    for number, rank in enumerate([(50., -1.), (60., -2.), (60., -1.5), (60., -1.5), (math.nan, 0.), (59., 0.)]):
        best.offer(rank, epoch(number), {'of': number}, lambda number=number: {'w': torch.tensor(number)})
    assert (best.scores.epoch, best.rank, best.details, best.weights['w'].item()) == (2, (60., -1.5), {'of': 2}, 2)
    other = Best()
    other.load_state_dict(best.state_dict(), best.weights)
    assert (other.scores, other.rank, other.details) == (best.scores, best.rank, best.details)


def test_a_number_is_better_than_none():
    best = Best(with_weights=False)
    best.offer((math.nan, -1.), epoch(0), {}, lambda: pytest.fail('weights that nobody keeps'))
    best.offer((0., -9.), epoch(1), {}, dict)
    assert best.scores.epoch == 1 and best.weights is None


def test_changes_are_counted_against_the_epoch_before():
    changes = PredictionChanges(6, 2, Accelerator(cpu=True))
    predictions = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2, 0], [0, 1, 2, 1, 0, 0], [1, 1, 2, 1, 0, 0]])
    found = []
    for predicted_N in predictions:
        for index_B in torch.arange(6).split(4):
            logits_HBC = torch.randn(3, len(index_B), 3) / 10
            logits_HBC += 3 * torch.nn.functional.one_hot(predicted_N[index_B], 3)
            changes.store(index_B, logits_HBC)
        found.append((changes.end_epoch(), changes.smoothed))
    assert found == [(None, None), (3, 3.), (1, 2.), (1, 1.)]


def test_an_image_that_an_epoch_leaves_out_keeps_its_prediction():
    changes = PredictionChanges(3, 1, Accelerator(cpu=True))
    one = torch.eye(3)[None]
    changes.store(torch.tensor([0, 1]), one[:, :2])
    changes.end_epoch()
    changes.store(torch.tensor([1, 2]), one[:, [2, 2]])  # 2 is seen for the first time, 0 not at all
    assert changes.end_epoch() == 1
    assert changes.predicted_N.tolist() == [0, 2, 2]


def scored(trainer, scores: list[float], average: list[float] | None = None):
    """Make the trainer's model, and its average, have these validation scores after the epochs."""
    given = iter(zip(scores, average or scores, strict=True))
    real, pending = trainer.score, []

    def score(loader, model=None):
        found = real(loader, model)
        if not pending:
            pending.extend(next(given))
        value = pending.pop(0)
        if trainer.state.ema is None:
            pending.clear()
        heads = len(found.score_H)
        return dataclasses.replace(found, score_H=[value] * heads, loss_H=[1.0] * heads)

    trainer.score = score


@pytest.mark.parametrize(('keep', 'kept'), [('best', 1), ('last', 4)])
def test_the_weights_are_those_of_the_kept_epoch(recipe, keep, kept):
    config = recipe('--epochs=5', '--batch_size=16', f'--keep={keep}')
    weights = []
    trainer = toys.make_trainer(
        config, toys.make_model(2), lambda row: weights.append(copy(trainer.state.model.state_dict())))
    scored(trainer, [10., 30., 20., 30., 25.])
    trainer.fit()
    tested = trainer.finish()
    assert (tested.kept.epoch, tested.last.epoch, tested.oracle) == (kept, 4, None)
    released = trainer.release()
    assert released.kept_head == tested.kept.kept_head
    assert all(torch.equal(tensor, weights[kept][name]) for name, tensor in released.state_dict().items())


@pytest.mark.parametrize(('average', 'kept', 'averaged'), [
    ([10., 20., 35.], 2, True), ([10., 20., 30.], 1, False), ([10., 30., 20.], 1, False), ([26., 9., 9.], 1, False),
])
def test_model_and_average_are_both_candidates(recipe, average, kept, averaged):
    trainer = toys.make_trainer(recipe('--epochs=3', '--batch_size=16', '--ema.decay=0.5'), toys.make_model(2))
    scored(trainer, [25., 30., 20.], average)
    seen = []
    trainer.callbacks = toys.Callbacks(lambda row: seen.append(
        [copy(trainer.state.model.state_dict()), copy(trainer.state.ema.module.state_dict())]))
    trainer.fit()
    found = trainer.finish().kept
    assert (found.epoch, found.averaged) == (kept, averaged)
    released = trainer.release().state_dict()
    assert all(torch.equal(tensor, seen[kept][found.averaged][name]) for name, tensor in released.items())


def test_training_stops_when_there_was_no_better_epoch(recipe):
    trainer = toys.make_trainer(
        recipe('--epochs=9', '--batch_size=16', '--stop.patience=2', '--keep=last'), toys.make_model(2))
    scored(trainer, [10., 30., 20., 31., 30., 31., 40., 50., 60.])
    rows = trainer.fit()
    assert len(rows) == 6 and trainer.is_finished
    assert trainer.finish().kept.epoch == 5  # stopping is one thing, keeping the best another


def test_the_first_minimum_of_changes_is_kept(recipe):
    config = recipe('--epochs=8', '--batch_size=16', '--stop.on=predictions', '--stop.patience=2',
                    '--stop.smoothing_epochs=1')
    trainer = toys.make_trainer(config, toys.make_model(2))
    counts = iter([None, 9, 5, 7, 6, 1, 0, 0])

    def end_epoch():
        trainer.state.changes.history.append(next(counts))
        return trainer.state.changes.history[-1]

    trainer.state.changes.end_epoch = end_epoch
    rows = trainer.fit()
    assert [row['changed_predictions'] for row in rows] == [None, 9, 5, 7, 6]
    assert trainer.finish().kept.epoch == 2


def test_labels_before_noise_choose_the_oracle_and_nothing_else(recipe):
    config = recipe('--epochs=3', '--batch_size=16')
    trainer = toys.make_trainer(config, toys.make_model(2))
    label_N = toys.make_data()[1][:20]
    trainer.epochs.val_clean = torch.where(torch.arange(20) < 8, (label_N + 1) % 10, label_N)
    rows = trainer.fit()
    tested = trainer.finish()
    clean = [row['val_clean']['top1_kept'] for row in rows]
    assert tested.oracle.epoch == clean.index(max(clean)) and tested.oracle.val_clean['count'] == 20
    given = [(row['val']['top1_kept'], -row['val']['loss_heads'][row['kept_head']]) for row in rows]
    assert tested.kept.epoch == given.index(max(given))


def copy(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}
