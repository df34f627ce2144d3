"""Which epoch of a run is kept: the weights of the best one, and how long there has been no better one.

Shapes: N examples.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..config import TrainConfig
from ..distributed.sharding import copy_state, gather_state, shard_model_state
from ..metrics.metric import Scores
from ..record.summary_parts import EpochScores, TestedEpochs
from .step import TrainState

Rank = tuple[float, ...]
"""How good an epoch is. Ranks are compared number by number; higher is better."""


class Best:
    """The best of the epochs that were offered, the first of equal ones.

    Args:
        with_weights: Whether to keep its weights.

    Attributes:
        rank: Its rank; None before the first offer.
        scores: Its scores.
        details: What `Scores.details` gave of its validation.
        weights: Its weights and buffers by name, if they are kept.
    """

    def __init__(self, with_weights: bool = True) -> None:
        self.with_weights = with_weights
        self.rank: Rank | None = None
        self.scores: EpochScores | None = None
        self.details: dict[str, Any] = {}
        self.weights: dict[str, Tensor] | None = None

    def offer(
            self,
            rank: Rank,
            scores: EpochScores,
            details: dict[str, Any],
            weights: Callable[[], dict[str, Tensor]],
    ) -> None:
        """Take an epoch if it is better than the one so far.

        Args:
            rank: How good it is; NaN is worse than any number.
            scores: Its scores.
            details: See `details`.
            weights: Makes a copy of its weights.
        """
        rank = tuple(-float('inf') if value != value else value for value in rank)
        if self.rank is None or rank > self.rank:
            self.rank, self.scores, self.details = rank, scores, details
            self.weights = weights() if self.with_weights else None

    def state_dict(self) -> dict[str, Any]:
        """Everything that later offers depend on; shares memory with the weights."""
        return {
            'rank': None if self.rank is None else list(self.rank),
            'scores': None if self.scores is None else vars(self.scores),
            'details': self.details,
            'weights': self.weights,
            'with_weights': self.with_weights,
        }

    def load_state_dict(self, state: dict[str, Any], weights: dict[str, Tensor] | None) -> None:
        """Continue from the state of another run.

        Args:
            state: What `state_dict` gave.
            weights: Its weights, on the devices and in the shards of this run.
        """
        self.rank = None if state['rank'] is None else tuple(state['rank'])
        self.scores = None if state['scores'] is None else EpochScores(**state['scores'])
        self.details = state['details']
        self.weights, self.with_weights = weights, state['with_weights']


class KeptEpochs:
    """The last epoch of a run and the best ones.

    Args:
        config: The recipe.
        state: The model in training.
        val_clean: Labels of the validation examples before noise [N], where noise changed some.

    Attributes:
        best: The best epoch so far, by `stop.on`.
        oracle: The best epoch by the labels before noise, where the validation labels have noise.
        last: The model after the last epoch: the moving average of the weights where there is one.
        last_details: What `Scores.details` gave of its validation.
    """

    def __init__(self, config: TrainConfig, state: TrainState, val_clean: Tensor | None) -> None:
        self.config = config
        self.state = state
        self.val_clean = val_clean
        self.best = Best(config.keep == 'best')
        self.oracle = Best()
        self.last: EpochScores | None = None
        self.last_details: dict[str, Any] = {}

    @property
    def kept(self) -> EpochScores:
        """The epoch that is kept, by the recipe's `keep`."""
        kept = self.last if self.best.weights is None else self.best.scores
        assert kept is not None
        return kept

    def is_stalled(self, epochs: int) -> bool:
        """Whether training stops after this many epochs, as there was no better one for `stop.patience` of them."""
        patience, best = self.config.stop.patience, self.best.scores
        return patience is not None and best is not None and epochs - 1 - best.epoch >= patience

    def end_epoch(self, epoch: int, online: Scores, average: Scores | None) -> EpochScores:
        """Compare the model after an epoch, and the moving average of its weights, with the best so far.

        Args:
            epoch: The epoch, from 0.
            online: Validation scores of the model.
            average: Validation scores of the moving average of its weights, if there is one.

        Returns:
            The average, or the model where there is none.
        """
        candidates = [(online, False)] + ([] if average is None else [(average, True)])
        for scores, averaged in candidates:
            head = scores.best_head
            clean = scores.row_on(self.val_clean, head)
            self.last, self.last_details = (
                EpochScores(epoch, averaged, head, scores.row(head), clean), scores.details(head))
            if self.state.changes is None:
                self._offer(self.best, (scores.score_H[head], -scores.loss_H[head]))
            if clean is not None:
                self._offer(self.oracle, (scores.metric.kept(clean),))
        if self.state.changes is not None and (changed := self.state.changes.smoothed) is not None:
            self._offer(self.best, (-changed,))  # says nothing of the average, which is taken where there is one
        assert self.last is not None
        return self.last

    def test_all(self, test: Callable[[], Scores | None]) -> TestedEpochs:
        """Test the last epoch, the oracle where there is one, and at last the epoch that is kept.

        The model that is released has the weights of that one afterwards.

        Args:
            test: Scores the model that is evaluated and released, if there is a test split.
        """
        assert self.last is not None
        kept, details = self.kept, self.last_details if self.best.weights is None else self.best.details
        tested: dict[tuple[int, bool], Scores | None] = {}  # the same weights may be several of them

        def scores_of(epoch: EpochScores, weights: dict[str, Tensor] | None) -> Scores | None:
            if weights is not None:
                self.state.eval_model.load_state_dict(weights)
            key = epoch.epoch, epoch.averaged
            if key not in tested:
                tested[key] = test()
            return tested[key]

        last = _with_test(self.last, scores_of(self.last, None))  # the model has these weights
        oracle, weights = self.oracle.scores, self.best.weights
        if oracle is not None:
            if weights is None:  # the last ones are kept: they must come back
                weights = copy_state(self.state.eval_model.state_dict())
            oracle = _with_test(oracle, scores_of(oracle, self.oracle.weights))
        scores = scores_of(kept, weights)
        test_details = {} if scores is None else scores.details(kept.kept_head)
        return TestedEpochs(_with_test(kept, scores), last, oracle, details, test_details, self._compared())

    def _compared(self) -> str:
        """After which epochs heads were compared, in words."""
        if self.best.weights is None:
            return 'the last epoch'
        if self.state.changes is None:
            return 'any epoch'
        if self.kept.epoch == (self.last or self.kept).epoch:
            return 'the last epoch, up to which fewer and fewer predictions changed'
        return 'the epoch with the first minimum of changed predictions'

    def _offer(self, best: Best, rank: Rank) -> None:
        """Offer the model that was scored last."""
        assert self.last is not None
        model = self.state.eval_model if self.last.averaged else self.state.model
        best.offer(rank, self.last, self.last_details, lambda: copy_state(model.state_dict()))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next epochs depend on; every process has to call it."""
        state = {
            'last': None if self.last is None else vars(self.last),
            'last_details': self.last_details,
            'best': self.best.state_dict(),
            'oracle': self.oracle.state_dict(),
        }
        return gather_state(state, self.state.accelerator.is_main_process)

    def load_state_dict(self, state: dict[str, Any] | None, rows: list[dict[str, Any]]) -> None:
        """Continue from the state of another run of the same recipe.

        Args:
            state: What `state_dict` gave; None of a version that kept the last epoch, as the run then does.
            rows: The row of each epoch so far.
        """
        if state is None:
            if rows:
                self.best.with_weights = False  # nobody has those of its best epoch
                epoch, head, val = (rows[-1][name] for name in ('epoch', 'kept_head', 'val'))
                self.last = EpochScores(epoch, self.config.ema.is_on, head, val)
            return
        self.last = None if state['last'] is None else EpochScores(**state['last'])
        self.last_details = state['last_details']
        for name, best in (('best', self.best), ('oracle', self.oracle)):
            weights = state[name]['weights']
            if weights is not None:
                weights = copy_state(shard_model_state(weights, self.state.model))
            best.load_state_dict(state[name], weights)


def _with_test(scores: EpochScores, test: Scores | None) -> EpochScores:
    return scores if test is None else replace(scores, test=test.row(scores.kept_head))
