"""The weights of a head tree: the path of each head, and the names of its tensors in the plain network."""
from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from timm.models import group_parameters
from torch import Tensor, nn

from ..split.meta import named_tensors, structural_copy
from ..split.segments import Segment
from ..tree import HeadTree, node_name
from .classifiers import Classifiers

BRANCH_INITS = ('classifier', 'perturb', 'fresh', 'copy')

# Attributes that timm reads from a model, taken from the plain architecture.
_TEMPLATE_ATTRIBUTES = frozenset({
    'num_classes', 'num_features', 'head_hidden_size', 'in_chans', 'pretrained_cfg', 'default_cfg', 'feature_info',
    '_traits', 'pretrained_model_args',
})


class TreeWeights(nn.Module):
    """A tree of segments of one architecture, with the interface of a timm model.

    It prunes to a plain network, loads plain checkpoints, and groups its parameters as the architecture does.

    Attributes:
        tree: The `HeadTree`.
        nodes: A `Segment` per node of the tree, named `trunk`, `branch_0`, `branch_0_0` and so on.
        fresh_classifiers: Whether the classifiers have no weights of a checkpoint, only those that were drawn.
    """

    tree: HeadTree
    nodes: nn.ModuleDict
    fresh_classifiers: bool
    _template: Any  # the plain network on the meta device; not a submodule, as it has no weights
    _branch_init: str
    _kept_head: int

    @property
    def num_heads(self) -> int:
        """Number of heads, H."""
        return self.tree.num_heads

    @property
    def kept_head(self) -> int:
        """The head that eval mode and `prune` use."""
        return self._kept_head

    @kept_head.setter
    def kept_head(self, head: int) -> None:
        self._kept_head = self._checked(head)

    def path(self, head: int) -> list[Segment]:
        """Return the segments from the input to a head, trunk first."""
        return [cast(Segment, self.nodes[name]) for name in self._path_names(head)]

    def _path_names(self, head: int) -> list[str]:
        leaf = self.tree.leaves[self._checked(head)]
        return [node_name(leaf[:depth]) for depth in range(len(leaf) + 1)]

    def prune(self, head: int | None = None) -> nn.Module:
        """Create the plain timm network of one head, with a copy of its weights.

        Args:
            head: Index of the head, default the kept one.

        Returns:
            A model of the architecture's own class, in the tree's mode, with exactly the logits of that head.

        Raises:
            ValueError: The tree lacks a tensor of the architecture, for example because a module was replaced.
        """
        values = self._values(head)
        replaced: dict[int, Tensor] = {}
        for _, original in named_tensors(self._template):
            if id(original) in replaced:
                continue  # another name of the same tensor
            own = values[id(original)]
            value = own.detach().clone()
            if isinstance(original, nn.Parameter):
                value = nn.Parameter(value, requires_grad=own.requires_grad)
            replaced[id(original)] = value
        return structural_copy(self._template, replaced).train(self.training)

    @torch.no_grad()
    def load_backbone(self, source: nn.Module, branch_init: str = 'classifier') -> None:
        """Copy the weights of a plain network of the architecture into the trunk and every branch.

        Args:
            source: The network to copy from.
            branch_init: How the branches differ afterwards, see `CollabModel`.
        """
        for _, tensor, value in self._from_plain(dict(named_tensors(source)), branch_init):
            tensor.copy_(value)

    def plain_state_dict(self, head: int | None = None) -> dict[str, Tensor]:
        """Return the state dict of the plain network of one head, sharing memory with this model.

        Args:
            head: Index of the head, default the kept one.

        Raises:
            ValueError: The tree lacks a tensor of the architecture, for example because a module was replaced.
        """
        values = self._values(head)
        return {name: values[id(tensor)].detach() for name, tensor in self._template.state_dict(keep_vars=True).items()}

    def _values(self, head: int | None) -> dict[int, Tensor]:
        """Map the id of each tensor of the template to the corresponding tensor on the path to a head."""
        path = self.path(self.kept_head if head is None else head)
        own = dict(item for segment in path for item in named_tensors(segment))
        names = named_tensors(self._template)
        values = {id(tensor): own[name] for name, tensor in reversed(names) if name in own}
        for name, tensor in names:
            if id(tensor) in values:
                continue
            if not name.endswith('.num_batches_tracked'):
                raise ValueError(
                    f"the tree no longer has '{name}' of its architecture: was a module replaced? Prune a head first,"
                    ' then modify the plain network'
                )
            # timm's freeze replaces BatchNorm by layers that have no num_batches_tracked.
            values[id(tensor)] = torch.zeros_like(tensor, device=next(iter(own.values())).device)
        return values

    def _from_plain(
            self,
            plain: Mapping[str, Tensor],
            branch_init: str,
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield each tensor of the tree that a plain network initializes: its name in the tree, itself, its value."""
        classifier = self._classifier_names()
        fresh = True
        for key, segment in self.nodes.items():
            branch = key != node_name(())
            if branch and branch_init == 'fresh':
                continue
            for name, tensor in named_tensors(segment):
                if name not in plain or (branch_init == 'classifier' and name in classifier):
                    continue
                value = plain[name]
                fresh = fresh and name not in classifier
                if branch and branch_init == 'perturb' and isinstance(tensor, nn.Parameter) and tensor.numel() > 1:
                    value = value + torch.randn_like(value) * value.std() * .01
                yield f'nodes.{key}.{name}', tensor, value
        self.fresh_classifiers = fresh

    @torch.no_grad()
    def _load_from_state_dict(
            self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any) -> None:
        """Also accept the state dict of a plain network, and load it as `load_backbone` does.

        A checkpoint of the architecture thus loads wherever timm loads one, such as with `checkpoint_path`.
        """
        names = set(self._template.state_dict())
        plain = {name: state_dict.pop(prefix + name) for name in names if prefix + name in state_dict}
        if plain:
            given = plain.keys() | self._classifier_names()
            for key, node in self.nodes.items():
                for name, tensor in node.state_dict().items():
                    if name in given:  # tensors without a new value keep their own
                        state_dict[f'{prefix}nodes.{key}.{name}'] = tensor
            assigns = local_metadata.get('assign_to_params_buffers', False)
            for name, _, value in self._from_plain(plain, self._branch_init):
                # An assigned tensor is cloned: otherwise all branches would share its memory.
                state_dict[prefix + name] = value.clone() if assigns else value
        else:
            self.fresh_classifiers = False
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def get_classifier(self) -> Classifiers:
        """Return the classifier of every head in order; all of them, if the architecture has several per head."""
        paths = self._classifier_paths()
        return Classifiers(self.path(head)[-1].get_submodule(path) for head in range(self.num_heads) for path in paths)

    def no_weight_decay(self) -> set[str]:
        """Return the names of all parameters that the architecture exempts from weight decay."""
        exempt: set[str] = getattr(self._template, 'no_weight_decay', set)()
        return {key for key, name in self._original_names() if name in exempt}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Return a matcher for `timm.models.group_parameters`, with the groups of the plain network.

        If the architecture has no `group_matcher`, there is one group per stage, in order of registration.
        """
        template = self._template
        if hasattr(template, 'group_matcher'):
            layers: dict[str, int] = group_parameters(template, template.group_matcher(coarse=coarse), reverse=True)
        else:
            stages = {name: re.split(r'(?<=\.\d)\.|\.(?=\D*$)', name)[0] for name, _ in template.named_parameters()}
            order = {stage: index for index, stage in enumerate(dict.fromkeys(stages.values()))}
            layers = {name: order[stage] for name, stage in stages.items()}
        groups = {key: layers[name] for key, name in self._original_names()}
        return groups.__getitem__

    def __getattr__(self, name: str) -> Any:
        template = self.__dict__.get('_template')
        if name in _TEMPLATE_ATTRIBUTES and template is not None:
            return getattr(template, name)
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if not hasattr(type(template), name) or name.startswith('_'):
                raise
            raise AttributeError(f'{error}: a {type(template).__name__} has one, write model.prune().{name}') from None

    def _original_names(self) -> Iterator[tuple[str, str]]:
        """Yield each parameter's name in the tree and in the plain network, the first one for tied tensors."""
        first = {id(tensor): name for name, tensor in self._template.named_parameters()}
        names = {name: first[id(tensor)] for name, tensor in self._template.named_parameters(remove_duplicate=False)}
        for key, node in self.nodes.items():
            for name, _ in node.named_parameters():
                yield f'nodes.{key}.{name}', names[name]

    def _classifier_paths(self) -> tuple[str, ...]:
        classifier = self._template.get_classifier()
        modules = classifier if isinstance(classifier, (tuple, list, nn.ModuleList)) else (classifier,)
        paths = {id(module): path for path, module in self._template.named_modules()}
        return tuple(paths[id(module)] for module in modules)

    def _classifier_names(self) -> set[str]:
        """Return the names of the classifier parameters in the plain network."""
        return {
            f'{path}.{name}'
            for path in self._classifier_paths()
            for name, _ in self._template.get_submodule(path).named_parameters()
        }

    def _checked(self, head: int) -> int:
        if not 0 <= head < self.num_heads:
            raise ValueError(f'there is no head {head}: this tree has heads 0 to {self.num_heads - 1}')
        return head
