"""What holds of a head tree of any architecture, as checks that raise where it doesn't."""
from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..model.collab_model import CollabModel
from ..split.meta import named_tensors


class CheckError(AssertionError):
    """Something that holds of every head tree doesn't hold of this one."""


def check_partition(model: CollabModel, plain: nn.Module) -> None:
    """On the way to each head every tensor of the plain network is owned once, and no two nodes own the same.

    Args:
        model: The head tree.
        plain: A plain network of its architecture, with the same arguments.

    Raises:
        CheckError: Where that isn't so.
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
        _same(saved & persistent, saved, f'what head {head} saves')
        shapes = {name: tensor.shape for name, tensor in model.plain_state_dict(head).items()}
        _same(shapes, {name: tensor.shape for name, tensor in plain.state_dict().items()}, f'head {head}')


def check_pruned(model: CollabModel, plain: nn.Module, heads: Iterable[int] | None = None) -> None:
    """Each head prunes to a network of the plain one's class that loads strictly into another.

    Args:
        model: The head tree.
        plain: A plain network of its architecture, with the same arguments; its weights are replaced.
        heads: The heads to prune, default all.

    Raises:
        CheckError: Where that isn't so.
    """
    for head in range(model.num_heads) if heads is None else heads:
        pruned = model.prune(head)
        _same(type(pruned), type(plain), 'the class of the pruned network')
        _same(pruned.pretrained_cfg, plain.pretrained_cfg, 'its pretrained_cfg')
        _same([*dict(pruned.named_buffers())], [*dict(plain.named_buffers())], 'its buffers')
        _same(list(pruned.state_dict()), list(plain.state_dict()), 'its state dict')
        plain.load_state_dict(pruned.state_dict(), strict=True)


def check_logits(model: CollabModel, plain: nn.Module, x: Tensor) -> None:
    """In eval mode the logits of each head are those of its pruned network.

    Those of the kept head are also those of its path alone, and of a plain network that takes its state dict.

    Args:
        model: The head tree; left in eval mode.
        plain: A plain network of its architecture, with the same arguments; its weights are replaced.
        x: Images [B, C, H, W].

    Raises:
        CheckError: Where that isn't so.
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
    """In train mode the way to a head computes what the plain network does: logits, every gradient, every buffer.

    Args:
        model: The head tree; left in train mode, with gradients.
        x: Images [B, C, H, W].
        head: The head.
        seed: Both runs start with it: dropout and the like draw the same.

    Raises:
        CheckError: Where that isn't so.
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
        _same(ours.grad is None, theirs.grad is None, f'having no gradient for {name}')
        if ours.grad is not None and theirs.grad is not None:
            _equal(ours.grad, theirs.grad, f'the gradient of {name}')


def settle(model: nn.Module, x: Tensor) -> nn.Module:
    """The model in eval mode, its BatchNorm statistics no longer those it was made with."""
    with torch.no_grad():
        model.train()(x)
    return model.eval()


@torch.no_grad()
def vary(model: nn.Module) -> nn.Module:
    """The model with a random number added to whatever starts out constant: behind a zero nothing could be seen."""
    for param in model.parameters():
        if param.numel() > 1 and param.min() == param.max():
            param.add_(torch.randn_like(param), alpha=.02)
    return model


def _names_by_tensor(module: nn.Module) -> list[frozenset[str]]:
    """The names of each parameter and buffer: more than one where it is tied."""
    names: dict[int, set[str]] = {}
    for name, tensor in named_tensors(module):
        names.setdefault(id(tensor), set()).add(name)
    return [frozenset(group) for group in names.values()]


def _expect(truth: bool, complaint: str) -> None:
    if not truth:
        raise CheckError(complaint)


def _same(found: object, expected: object, what: str) -> None:
    _expect(found == expected, f'{what} is {found}, not {expected}')


def _equal(found: Tensor, expected: Tensor, what: str) -> None:
    _same(found.shape, expected.shape, f'the shape of {what}')
    if not found.is_meta and not torch.equal(found, expected):
        raise CheckError(f'{what} differs by up to {(found - expected).abs().max():.1e}')
