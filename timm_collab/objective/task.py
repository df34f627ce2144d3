"""Collaborative learning as a timm training task: a model with heads, and the objective that trains them together.

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
    """Train all heads of a model at once, each on the label and on the consensus of the others.

    A stand-in for timm's `ClassificationTask`, which makes this task itself where it is given a `CollabModel`:
    `result['output']` and `get_eval_model()` give the `[B, C]` logits of the kept head, so timm's metrics, evaluators
    and checkpoints work unchanged. A checkpoint's `state_dict` is the plain network's, that of the kept head; its
    `task_state` holds the tree. EMA comes from the base class (`setup_ema`, `update_ema`).

    A plain timm model, with `[B, C]` logits in train mode, is the tree of one head and learns from the label alone.

    Args:
        model: `CollabModel`, or any module whose train-mode output is `[H, B, C]` or `[B, C]` logits. Its `kept_head`
            (default 0) says which head the metrics see.
        criterion: Hard loss of one head, or a ready `CollaborativeLoss`. Created from criterion_kwargs when None.
        criterion_kwargs: Arguments for timm's `create_classification_loss` when criterion is None, needs a timm that
            has it. Defaults to cross-entropy.
        device: Device for the criterion; the model stays where it is, as in timm's tasks.
        dtype: Dtype for task tensors.
        verbose: Log the objective.
        temperature: See `CollaborativeLoss`.
        beta: See `CollaborativeLoss`.
        scale_by_t2: See `CollaborativeLoss`.
        full_labels: See `CollaborativeLoss`.

    Raises:
        ValueError: If temperature or beta is out of range; if criterion_kwargs, temperature, beta, scale_by_t2 or
            full_labels are given along with the criterion that they would have made; if timm can't make one from
            criterion_kwargs.

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
            beta: float = 0.5,
            scale_by_t2: bool = True,
            full_labels: bool = False,
    ) -> None:
        if criterion_kwargs:
            if criterion is not None:
                raise ValueError(
                    f'criterion_kwargs make a criterion and one was given too: pass either the criterion or '
                    f'{sorted(criterion_kwargs)}, not both.'
                )
            if not hasattr(timm.loss, 'create_classification_loss'):
                raise ValueError(
                    f'timm {timm.__version__} makes no criterion from criterion_kwargs={criterion_kwargs}: '
                    f'pass a criterion, or update timm.'
                )
            criterion = timm.loss.create_classification_loss(**criterion_kwargs)
        if not isinstance(criterion, CollaborativeLoss):
            objective = CollaborativeLoss(criterion, temperature, beta, scale_by_t2, full_labels=full_labels)
        elif (temperature, beta, scale_by_t2, full_labels) == (2.0, 0.5, True, False):
            objective = criterion
        else:
            raise ValueError(
                f'temperature={temperature}, beta={beta}, scale_by_t2={scale_by_t2} and full_labels={full_labels} '
                f'would be ignored: set them on the CollaborativeLoss that is passed as criterion.'
            )
        super().__init__(model, objective, device=device, dtype=dtype, verbose=False)
        self._compiled_objective: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] | None = None
        self.criterion.to(device=self.device)
        self.verbose = verbose
        if verbose:
            _logger.info(f'{type(self).__name__}: criterion={self.criterion}')

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Run every head and compute the objective.

        In eval mode the objective is still that of all heads, though `get_eval_model()` computes one only.

        Args:
            input: Images, [B, in_chans, height, width].
            target: Class indices [B], or class probabilities or binary labels [B, C].

        Returns:
            Dictionary containing:
                - 'loss': Training loss, one number
                - 'output': Logits of the kept head, [B, C]
                - 'logits': Logits of all heads, [H, B, C]
                - 'hard': Each head's loss against the target [H], detached
                - 'soft': Each head's loss against the consensus [H], detached, unweighted; T^2 included if it is on

        Raises:
            ValueError: If logits and target do not fit together, see the message.
        """
        logits_HBC = self._forward_heads(input)
        evaluate = self._compiled_objective or self.criterion.evaluate
        loss, hard_H, soft_H = evaluate(logits_HBC, target)
        return {
            'loss': loss,
            'output': logits_HBC[getattr(self._unwrapped(), 'kept_head', 0)],
            'logits': logits_HBC,
            'hard': hard_H,
            'soft': soft_H,
        }

    def compile(self, backend: str = 'inductor', mode: str | None = None, **compile_kwargs: Any) -> nn.Module:
        """Compile the model, for training and evaluation, and the objective.

        They are compiled one by one, so that wrappers such as DDP may come between them. Beta and the temperature may
        change afterwards: they are compiled as numbers from the second value on.

        Args:
            backend: As of `torch.compile`.
            mode: As of `torch.compile`.
            compile_kwargs: More of its arguments.

        Returns:
            The compiled model.
        """
        options = {'backend': backend, 'mode': mode, **compile_kwargs}
        if self.criterion.one_pass_weights() is None:
            self._compiled_objective = torch.compile(self.criterion.evaluate, **options)
        else:
            self.criterion.compile(**options)
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
        """Return the parameters whose gradients are to be clipped.

        Args:
            exclude_head: Leave out the classifiers, those of every head.
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
        """Return what a checkpoint holds: the kept head's plain network as `state_dict`, the tree as `task_state`.

        Tensors of both share memory, and `torch.save` writes them once. A model that can't prune is saved whole.

        Args:
            ema: Return the state of the EMA model, under `state_dict_ema` and `task_state_ema`.
            unwrap_fn: Takes DDP and other wrappers off.
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
        """Restore what `get_checkpoint_state` returned.

        Args:
            state_dict: State dict of the tree, or of a plain network, which fills the trunk and every branch.
            task_state: The task's state, None where the checkpoint has none.
            ema: Restore the state of the EMA model.
            strict: Refuse missing and unexpected keys.
        """
        tree = (task_state or {}).get('tree', state_dict)
        super().load_checkpoint_state(tree, task_state, ema, strict)

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Return what a checkpoint needs besides the plain network: the kept head, and all heads' weights.

        Parameters of the objective are among it, where it has any.

        Args:
            module: Take the state of this model instead.
            ema: Take the state of the EMA model, which has a kept head of its own.
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
        """Restore the kept head, and the parameters of the objective.

        Args:
            state: The state, None or empty where the checkpoint has none.
            strict: Unused.
            module: Restore the state of this model instead.
            ema: Restore the state of the EMA model.
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
    """Walk what `get_classifier` returns: a module, or (several heads, distilled heads) nested sequences of them."""
    if isinstance(modules, nn.Module):
        yield modules
    elif modules is not None:
        for module in modules:
            yield from _flatten_modules(module)
