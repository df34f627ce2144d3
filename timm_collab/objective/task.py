"""Collaborative learning as a timm training task: a model with several heads and the objective of all of them.

Paper: `Collaborative Learning for Deep Neural Networks` - https://arxiv.org/abs/1805.11761

Shapes: H heads, B batch, C classes.
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import timm
import timm.loss
import torch
from timm.task import ClassificationTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from .loss import CollaborativeLoss

_logger = logging.getLogger(__name__)


class CollaborativeTask(ClassificationTask):
    """Train all heads of a model together, each on the labels and on the consensus of the others.

    timm's `ClassificationTask` creates this task if it is given a `CollabModel`. `result['output']` and
    `get_eval_model()` give the `[B, C]` logits of the kept head, so timm's metrics, evaluators and checkpoints work
    unchanged. The `state_dict` of a checkpoint is that of the kept head's plain network; its `task_state` has the
    complete tree. EMA comes from the base class (`setup_ema`, `update_ema`).

    A plain timm model, with `[B, C]` logits in train mode, is a tree with one head and learns from the labels alone.

    Args:
        model: `CollabModel`, or any module whose train-mode output is `[H, B, C]` or `[B, C]` logits. Metrics use its
            `kept_head` (default 0).
        criterion: Hard loss of one head, or a `CollaborativeLoss`. None creates one from criterion_kwargs.
        criterion_kwargs: Arguments for `create_classification_loss`, if criterion is None and timm has that function.
            Defaults to cross-entropy.
        device: Device of the criterion; the model is not moved, as in timm's tasks.
        dtype: Dtype for task tensors.
        verbose: Log the objective.
        temperature: See `CollaborativeLoss`.
        beta: See `CollaborativeLoss`.
        scale_by_t2: See `CollaborativeLoss`.
        full_labels: See `CollaborativeLoss`.

    Raises:
        ValueError: The temperature or beta is out of range; an argument would have no effect because a criterion is
            given; or timm does not support criterion_kwargs.

    Examples:

        ```python
        model = timm.create_model('collab_resnet18', heads=4, num_classes=10)
        task = CollaborativeTask(model, timm.loss.LabelSmoothingCrossEntropy(0.1))
        task.train()
        result = task(torch.randn(8, 3, 224, 224), torch.randint(10, (8,)))
        result['loss'].backward()
        ```
    """

    def __init__(
            self,
            model: nn.Module,
            criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
            criterion_kwargs: dict[str, Any] | None = None,
            device: torch.device | None = None,
            dtype: torch.dtype | None = None,
            verbose: bool = True,
            *,
            temperature: float = 2.0,
            beta: float = 1 / 3,
            scale_by_t2: bool = True,
            full_labels: bool = True,
    ) -> None:
        if criterion_kwargs:
            if criterion is not None:
                raise ValueError(
                    f'criterion_kwargs create a criterion, but one was given too: pass either the criterion or '
                    f'{sorted(criterion_kwargs)}, not both.'
                )
            if not hasattr(timm.loss, 'create_classification_loss'):
                raise ValueError(
                    f'timm {timm.__version__} can not create a criterion from criterion_kwargs={criterion_kwargs}: '
                    f'pass a criterion, or update timm.'
                )
            criterion = timm.loss.create_classification_loss(**criterion_kwargs)
        if not isinstance(criterion, CollaborativeLoss):
            objective = CollaborativeLoss(criterion, temperature, beta, scale_by_t2, full_labels=full_labels)
        elif (temperature, beta, scale_by_t2, full_labels) == (2.0, 1 / 3, True, True):
            objective = criterion
        else:
            raise ValueError(
                f'temperature={temperature}, beta={beta}, scale_by_t2={scale_by_t2} and full_labels={full_labels} '
                f'would be ignored: set them in the CollaborativeLoss that is passed as criterion.'
            )
        super().__init__(model, objective, device=device, dtype=dtype, verbose=False)
        self._compiled_objective: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None
        self.criterion.to(device=self.device)
        self.verbose = verbose
        if verbose:
            _logger.info(f'{type(self).__name__}: criterion={self.criterion}')

    def forward(
            self,
            input: Tensor,
            target: Tensor,
            index: Tensor | None = None,
            share: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Run every head and compute the objective.

        In eval mode the objective is still that of all heads, although `get_eval_model()` computes only one.

        Args:
            input: Images, [B, in_chans, height, width].
            target: Class indices [B], or class probabilities or binary labels [B, C].
            index: Index of each image in the training data [B], for objectives that need it.
            share: Share of M images in each one [B, M], if images are mixed; index then has these M images.

        Returns:
            Dictionary containing:
                - 'loss': Training loss, one number
                - 'output': Logits of the kept head, [B, C]
                - 'logits': Logits of all heads, [H, B, C]
                - 'hard': Hard term of each head [H], detached
                - 'soft': Soft term of each head [H], detached; unweighted, with the factor T^2 if `scale_by_t2`

        Raises:
            ValueError: The shapes or dtypes of logits and target don't match.
        """
        logits_HBC = self._forward_heads(input)
        evaluate = self._compiled_objective or self.criterion.evaluate
        loss, hard_H, soft_H = evaluate(logits_HBC, target, index, share)
        return {
            'loss': loss,
            'output': logits_HBC[getattr(self._unwrapped(), 'kept_head', 0)],
            'logits': logits_HBC,
            'hard': hard_H,
            'soft': soft_H,
        }

    def compile(self, backend: str = 'inductor', mode: str | None = None, **compile_kwargs: Any) -> nn.Module:
        """Compile the model, for training and evaluation, and the objective.

        They are compiled separately, so that wrappers such as DDP may come between them. Beta and the temperature may
        change afterwards: at the second value they are compiled as variables.

        Args:
            backend: Argument of `torch.compile`.
            mode: Argument of `torch.compile`.
            compile_kwargs: Further arguments of `torch.compile`.

        Returns:
            The compiled model.
        """
        options = {'backend': backend, 'mode': mode, **compile_kwargs}
        self._compiled_objective = torch.compile(self.criterion.evaluate, **options)
        model: nn.Module = super().compile(**options)
        return model

    def _forward_heads(self, input: Tensor) -> Tensor:
        model = self._unwrapped()
        if model.training or not hasattr(model, 'forward_heads'):
            logits = self.trainable_module(input)
        else:
            logits = model.forward_heads(input)
        return logits.unsqueeze(0) if logits.ndim == 2 else logits

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """Return the parameters whose gradients are clipped.

        Args:
            exclude_head: Exclude the classifiers of all heads.
        """
        model = self._unwrapped()
        excluded: set[nn.Parameter] = set()
        if exclude_head:
            for module in _flatten_modules(model.get_classifier()):
                excluded.update(module.parameters())
        return [p for p in model.parameters() if p not in excluded]

    def get_checkpoint_state(
            self,
            ema: bool = False,
            unwrap_fn: Callable[[nn.Module], nn.Module] = unwrap_model,
    ) -> dict[str, Any]:
        """Return the contents of a checkpoint: the kept head's plain network as `state_dict`, the tree as `task_state`.

        Both share memory, so `torch.save` writes shared tensors once. `state_dict` is that of the complete model if it
        can't be pruned.

        Args:
            ema: Return the state of the EMA model, under `state_dict_ema` and `task_state_ema`.
            unwrap_fn: Removes DDP and other wrappers.
        """
        state: dict[str, Any] = super().get_checkpoint_state(ema, unwrap_fn)
        key = 'state_dict_ema' if ema else 'state_dict'
        if key in state and hasattr(model := self._unwrapped(ema=ema), 'plain_state_dict'):
            state[key] = model.plain_state_dict()
        return state

    def load_checkpoint_state(
            self,
            state_dict: dict[str, Any],
            task_state: dict[str, Any] | None = None,
            ema: bool = False,
            strict: bool = True,
    ) -> None:
        """Load the result of `get_checkpoint_state`.

        Args:
            state_dict: State dict of the tree, or of a plain network, which is loaded into the trunk and every branch.
            task_state: The state of the task, None if the checkpoint has none.
            ema: Load the state of the EMA model.
            strict: Raise an error on missing and unexpected keys.
        """
        tree = (task_state or {}).get('tree', state_dict)
        super().load_checkpoint_state(tree, task_state, ema, strict)

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Return the state beyond the plain network: the kept head, the tree and any parameters of the objective.

        Args:
            module: Return the state of this model instead.
            ema: Return the state of the EMA model, which has its own kept head.
        """
        model = self._unwrapped(module, ema)
        state = {'kept_head': model.kept_head} if hasattr(model, 'kept_head') else {}
        if any(True for _ in self.criterion.parameters()):
            state['objective'] = self.criterion.state_dict()
        return {**state, 'tree': model.state_dict()} if hasattr(model, 'plain_state_dict') else state

    def load_task_state(
            self,
            state: dict[str, Any] | None,
            strict: bool = True,
            module: nn.Module | None = None,
            ema: bool = False,
    ) -> None:
        """Load the kept head, and any parameters of the objective.

        Args:
            state: The state, None or empty if the checkpoint has none.
            strict: Unused.
            module: Load the state into this model instead.
            ema: Load the state of the EMA model.
        """
        if state:
            if 'kept_head' in state:
                self._unwrapped(module, ema).kept_head = state['kept_head']
            if 'objective' in state:
                self.criterion.load_state_dict(state['objective'])

    def _unwrapped(self, module: nn.Module | None = None, ema: bool = False) -> Any:
        if module is None:
            module = self.get_trainable_module(ema=True) if ema else self.trainable_module
        return unwrap_model(module)


def _flatten_modules(modules: nn.Module | Iterable[Any] | None) -> Iterator[nn.Module]:
    """Flatten the result of `get_classifier`: a module, or nested sequences of modules."""
    if isinstance(modules, nn.Module):
        yield modules
    elif modules is not None:
        for module in modules:
            yield from _flatten_modules(module)
