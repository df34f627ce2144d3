"""Peak activation memory of a training step of a head tree, relative to the single network.

Activations are all storages that torch allocates during a step (forward, objective and backward), without the gradients
of parameters. The meter tracks every operator and every storage, so the result is the same in each run, to the byte.
Memory that libraries below torch allocate is not included.

For each kind of checkpointing, it also verifies that gradients and batch norm statistics are bit for bit those of the
tree without checkpointing.

    python benchmarks/memory.py
    python benchmarks/memory.py --arch vit_small_patch16_224 --batch-size 4 --heads 2 4
"""
from __future__ import annotations

import argparse
import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import timm_collab
from timm_collab import CollaborativeTask

BOUND = 1.35
"""Largest ratio of the tree's peak, with checkpointed branches, to the single network's."""


class ActivationMeter(TorchDispatchMode):
    """Counts the bytes of all storages allocated under it, except gradients of parameters.

    Args:
        model: The model whose gradients are not counted.

    Attributes:
        peak: Largest number of bytes in use.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.peak = 0
        self._alive: dict[int, int] = {}
        self._now = 0
        weights = (tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers()))
        self._outside = {id(storage): storage for storage in weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count the storages that it allocates."""
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        self.peak = max(self.peak, self._now)
        return out

    @contextmanager
    def step(self) -> Iterator[None]:
        """Measure a step, without the gradients of parameters."""
        hooks = [
            p.register_post_accumulate_grad_hook(lambda param: self._forget(id(param.grad.untyped_storage())))
            for p in self.model.parameters()
        ]
        try:
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _count(self, storage: Any) -> None:
        if (key := id(storage)) not in self._alive and key not in self._outside:
            self._alive[key] = storage.nbytes()
            self._now += storage.nbytes()
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._now -= self._alive.pop(key, 0)


def peak(model: nn.Module, x: Tensor, target: Tensor, seed: int = 1) -> int:
    """Run a step, which leaves its gradients on the model, and return its peak activation memory in bytes."""
    task = CollaborativeTask(model, verbose=False).train()
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    meter = ActivationMeter(model)
    with meter.step():
        task(x, target)['loss'].backward()
    return meter.peak


def check(model: nn.Module, other: nn.Module) -> None:
    """Verify that two models have run the same step.

    Raises:
        AssertionError: A gradient or a buffer differs.
    """
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad), f'gradients of {name} differ'
    for (name, a), b in zip(model.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b), f'{name} differs'


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='resnet50')
    parser.add_argument('--batch-size', type=int, default=4)
    parser.add_argument('--heads', type=int, nargs='+', default=[4])
    parser.add_argument('--pattern', nargs='+', default=['hierarchical', 'simple'])
    args = parser.parse_args()

    torch.manual_seed(0)
    # With dropout and drop path, which must be the same when they are recomputed.
    kwargs: dict[str, Any] = {'drop_rate': .1, 'drop_path_rate': .1}
    plain = timm.create_model(args.arch, **kwargs)
    x = torch.randn(args.batch_size, *plain.pretrained_cfg['input_size'])
    target = torch.randint(plain.num_classes, (args.batch_size,))
    single = peak(plain, x, target)
    print(f'{args.arch}, batch {args.batch_size}, cpu, torch {torch.__version__}, timm {timm.__version__}, timm-collab'
          f' {timm_collab.__version__}; single network {single / 2**20:.2f} MiB')
    print('| heads | tree | checkpointed | peak, MiB | tree / single | bound |')
    print('|---|---|---|---|---|---|')
    for heads in args.heads:
        for pattern in args.pattern:
            tree = timm.create_model(f'collab_{args.arch}', heads=heads, pattern=pattern, **kwargs)
            first = None
            for label, options in (
                    ('nothing', {'enable': False}), ('branches', {'trunk': False}), ('every node', {}),
            ):
                model = copy.deepcopy(tree)
                model.set_grad_checkpointing(**options)
                bytes_ = peak(model, x, target)
                first = model if first is None else first
                check(model, first)
                bound = f'{BOUND:.2f}' if label == 'branches' else ''
                print(f'| {heads} | {tree.tree} | {label} | {bytes_ / 2**20:.2f} | {bytes_ / single:.3f} | {bound} |',
                      flush=True)


if __name__ == '__main__':
    main()
