"""Which network, with which head tree."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from ...tree import PREFIX, HeadTree, HeadTreeError
from ..errors import TrainError, require
from .key import KeyGroup, key


@dataclass(frozen=True, kw_only=True)
class ModelConfig(KeyGroup):
    """The model to train."""

    _prefix = 'model.'

    name: str | None = key(None, "architecture: 'collab_' and a timm name, such as collab_resnet18 (a plain timm name"
                                 " is the single network and needs heads: 1); required")
    heads: int | None = key(None, 'number of heads; by default 4, or as many as tree has', ge=1)
    pattern: Literal['hierarchical', 'simple', 'instances'] = key(
        'hierarchical', 'how heads share layers if tree is not set')
    tree: str | dict[str, Any] | None = key(
        None, "head tree, such as 'layer2:2,layer3:2', or a nested mapping; instead of heads and pattern")
    num_classes: int | None = key(None, 'number of classes; read from the data by default', ge=2)
    pretrained: bool = key(False, 'start from the pretrained weights of the backbone')
    checkpoint_path: str | None = key(
        None, 'start from this checkpoint of the plain network, a file, instead of pretrained weights')
    branch_init: Literal['classifier', 'perturb', 'fresh', 'copy'] = key(
        'classifier', 'how heads that start from pretrained weights are made different, see timm_collab.CollabModel')
    head_init_scale: float | None = key(
        None, "factor of the weights and biases of new classifiers, as timm's --head-init-scale; classifiers from a"
              ' checkpoint keep theirs. By default, if the backbone is pretrained, new classifiers that are drawn more'
              ' than twice as wide as nn.Linear draws are narrowed to that width (EfficientNet, MobileNet, Inception),'
              ' because large first logits damage pretrained features; 1: as the architecture draws them', gt=0)
    head_init_bias: float | None = key(
        None, "value of all biases of new classifiers, as timm's --head-init-bias; for objective.hard bce, such as"
              ' -log(C - 1) with C classes, where each class starts with a probability of 1/C')
    rescale: bool = key(True, 'rescale gradients in the backward pass at each split (false for ablations)')
    kwargs: dict[str, Any] = key(dict, 'further arguments of timm.create_model, such as drop_path_rate')

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not (self.pretrained and self.checkpoint_path),
                'model.pretrained and model.checkpoint_path are two weights to start from: leave one out')
        own = {field.name: f'write model.{field.name}' for field in dataclasses.fields(self)}
        own |= {'in_chans': 'write data.in_chans', 'kept_head': 'it is chosen by the validation data'}
        for name in sorted(own.keys() & self.kwargs.keys()):
            raise TrainError(f"model.kwargs can't contain '{name}': {own[name]}")
        if self.tree is not None:
            try:
                found = HeadTree.of(self.tree).num_heads
            except HeadTreeError as error:
                raise TrainError(f'model.tree: {error}') from None
            require(self.heads in (None, found),
                    f"model.heads is {self.heads} but model.tree '{self.tree}' has {found}: leave one out")
        if self.name is not None and not self.name.startswith(PREFIX):
            require(self.num_heads == 1,
                    f"model.name '{self.name}' is a network without a head tree: write '{PREFIX}{self.name}' to train"
                    f' it with {self.num_heads} heads, or --model.heads 1 to train the single network')

    @property
    def num_heads(self) -> int:
        """Number of heads that `tree` or `heads` asks for."""
        if self.tree is not None:
            return HeadTree.of(self.tree).num_heads
        return 4 if self.heads is None else self.heads

    @property
    def architecture(self) -> str:
        """Name of the backbone, without the prefix."""
        return (self.name or '').removeprefix(PREFIX)

    def single(self) -> ModelConfig:
        """The same network without a tree."""
        return dataclasses.replace(self, heads=1, tree=None, pattern='hierarchical')
