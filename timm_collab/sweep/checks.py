"""Checks that the head tree of any architecture must pass; each raises `CheckError` if it fails."""
from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..model.collab_model import CollabModel
from ..split.meta import named_tensors


class CheckError(AssertionError):
    """A head tree failed a check."""


def check_partition(model: CollabModel, plain: nn.Module) -> None:
    """Check that the path to each head owns every tensor of the plain network once, and nodes share no tensors.

    Args:
        model: The head tree.
        plain: A plain network of its architecture, with the same arguments.

    Raises:
        CheckError: The check failed.
    """
    groups = _names_by_tensor(plain)
    group_of = {name: index for index, group in enumerate(groups) for name in group}
    owners: dict[int, str] = {}
    for key, node in model.nodes.items():
        for name, tensor in named_tensors(node):
            _expect(owners.setdefault(id(tensor), key) == key, f'{name} is owned by {owners[id(tensor)]} and by {key}')
    persistent = set(plain.state_dict())
    for head in range(model.num_heads):
        owned = [group for node in model.path(head) for group in _names_by_tensor(node)]
        for group in owned:
            _expect(len({group_of.get(name, name) for name in group}) == 1 and group <= group_of.keys(),
                    f'{sorted(group)} is no tensor of the plain network')
        _expect(len(owned) == len(groups), f'head {head} has {len(owned)} tensors, the plain network {len(groups)}')
        saved = set().union(*(node.state_dict() for node in model.path(head)))
        _same(saved & persistent, saved, f'the state dict of head {head}')
        shapes = {name: tensor.shape for name, tensor in model.plain_state_dict(head).items()}
        _same(shapes, {name: tensor.shape for name, tensor in plain.state_dict().items()}, f'head {head}')


def check_pruned(model: CollabModel, plain: nn.Module, heads: Iterable[int] | None = None) -> None:
    """Check that each head prunes to a network of the plain class, whose state dict loads strictly.

    Args:
        model: The head tree.
        plain: A plain network of its architecture, with the same arguments; its weights are overwritten.
        heads: The heads to prune, default all.

    Raises:
        CheckError: The check failed.
    """
    for head in range(model.num_heads) if heads is None else heads:
        pruned = model.prune(head)
        _same(type(pruned), type(plain), 'the class of the pruned network')
        _same(pruned.pretrained_cfg, plain.pretrained_cfg, 'its pretrained_cfg')
        _same([*dict(pruned.named_buffers())], [*dict(plain.named_buffers())], 'its buffers')
        _same(list(pruned.state_dict()), list(plain.state_dict()), 'its state dict')
        plain.load_state_dict(pruned.state_dict(), strict=True)


def check_logits(model: CollabModel, plain: nn.Module, x: Tensor) -> None:
    """Check that in eval mode the logits of each head equal those of its pruned network.

    Those of the kept head must also equal those of its path alone, and of a plain network with its state dict.

    Args:
        model: The head tree; left in eval mode.
        plain: A plain network of its architecture, with the same arguments; its weights are overwritten.
        x: Images [B, C, H, W].

    Raises:
        CheckError: The check failed.
    """
    model.eval(), plain.eval()
    with torch.no_grad():
        logits_HBC = model.forward_heads(x)
        _same(logits_HBC.shape, (model.num_heads, len(x), model.num_classes), 'the shape of the logits')
        for head, logits_BC in enumerate(logits_HBC):
            _equal(model.prune(head)(x), logits_BC, f'head {head} pruned')
        kept_BC = logits_HBC[model.kept_head]
        _equal(model(x), kept_BC, 'the kept head alone')
        plain.load_state_dict(model.prune().state_dict(), strict=True)
        _equal(plain(x), kept_BC, 'the kept head loaded into a plain network')


def check_training(model: CollabModel, x: Tensor, head: int = 0, seed: int = 0) -> None:
    """Check that in train mode a head's path equals the plain network in logits, all gradients and all buffers.

    Args:
        model: The head tree; left in train mode, with gradients.
        x: Images [B, C, H, W].
        head: The head.
        seed: Random seed of both runs, so that dropout and similar layers match.

    Raises:
        CheckError: The check failed.
    """
    model.train()
    plain = model.prune(head)
    torch.manual_seed(seed)
    logits = model.forward_path(x, head)
    torch.manual_seed(seed)
    expected = plain(x)
    _equal(logits, expected, 'the logits in train mode')
    weights = torch.randn_like(expected)
    model.zero_grad()
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    found = dict(item for node in model.path(head) for item in named_tensors(node))
    wanted = dict(named_tensors(plain))
    for names in _names_by_tensor(plain):
        [name, *_] = names & found.keys()
        ours, theirs = found[name], wanted[name]
        _equal(ours, theirs, name)
        _same(ours.grad is None, theirs.grad is None, f'the absence of a gradient for {name}')
        if ours.grad is not None and theirs.grad is not None:
            _equal(ours.grad, theirs.grad, f'the gradient of {name}')


def settle(model: nn.Module, x: Tensor) -> nn.Module:
    """Update the BatchNorm statistics with one batch, and return the model in eval mode."""
    with torch.no_grad():
        model.train()(x)
    return model.eval()


@torch.no_grad()
def vary(model: nn.Module) -> nn.Module:
    """Add noise to parameters that are initially constant, since a zero would hide what comes before it."""
    for param in model.parameters():
        if param.numel() > 1 and param.min() == param.max():
            param.add_(torch.randn_like(param), alpha=.02)
    return model


def _names_by_tensor(module: nn.Module) -> list[frozenset[str]]:
    """Return the names of each parameter and buffer, several for tied tensors."""
    names: dict[int, set[str]] = {}
    for name, tensor in named_tensors(module):
        names.setdefault(id(tensor), set()).add(name)
    return [frozenset(group) for group in names.values()]


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise CheckError(message)


def _same(found: object, expected: object, what: str) -> None:
    _expect(found == expected, f'{what} is {found}, not {expected}')


def _equal(found: Tensor, expected: Tensor, what: str) -> None:
    _same(found.shape, expected.shape, f'the shape of {what}')
    if not found.is_meta and not torch.equal(found, expected):
        raise CheckError(f'{what} differs by up to {(found - expected).abs().max():.1e}')
