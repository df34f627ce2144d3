"""Which network, under which head tree."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from ...tree import PREFIX, HeadTree, HeadTreeError
from ..errors import TrainError, require
from .key import key


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is trained."""

    name: str | None = key(None, "architecture: 'collab_' and a timm name, e.g. collab_resnet18 (a plain timm name is"
                                 " taken for the network itself and needs heads: 1); required")
    heads: int | None = key(None, 'number of heads; 4, or as many as the tree has, when left out')
    pattern: Literal['hierarchical', 'simple', 'instances'] = key(
        'hierarchical', 'how heads share layers when no tree is given')
    tree: str | dict[str, Any] | None = key(
        None, "head tree, e.g. 'layer2:2,layer3:2', or a nested mapping; in place of heads and pattern")
    num_classes: int | None = key(None, 'number of classes; read from the data when left out')
    pretrained: bool = key(False, "start from the backbone's pretrained weights")
    checkpoint_path: str | None = key(
        None, 'start from this checkpoint of the plain network, a file, as from pretrained weights')
    branch_init: Literal['classifier', 'perturb', 'fresh', 'copy'] = key(
        'classifier', 'how heads that start from pretrained weights differ, see timm_collab.CollabModel')
    rescale: bool = key(True, 'backpropagation rescaling at each split (off for ablation)')
    kwargs: dict[str, Any] = key(dict, 'further arguments of timm.create_model, e.g. drop_path_rate')

    def __post_init__(self) -> None:
        require(self.heads is None or self.heads >= 1, f'model.heads must be at least 1, got {self.heads}')
        require(self.num_classes is None or self.num_classes >= 2,
                f'model.num_classes must be at least 2, got {self.num_classes}')

        require(not (self.pretrained and self.checkpoint_path),
                'model.pretrained and model.checkpoint_path are two weights to start from: leave one out')
        own = {field.name: f'write model.{field.name}' for field in dataclasses.fields(self)}
        own |= {'in_chans': 'write data.in_chans', 'kept_head': 'the validation data choose it'}
        for name in sorted(own.keys() & self.kwargs.keys()):
            raise TrainError(f"model.kwargs can't hold '{name}': {own[name]}")
        if self.tree is not None:
            try:
                found = HeadTree.of(self.tree).num_heads
            except HeadTreeError as error:
                raise TrainError(f'model.tree: {error}') from None
            require(self.heads in (None, found),
                    f"model.heads is {self.heads} but model.tree '{self.tree}' has {found}: leave one out")
        if self.name is not None and not self.name.startswith(PREFIX):
            require(self.num_heads == 1,
                    f"model.name '{self.name}' is a network without a head tree: write '{PREFIX}{self.name}' to"
                    f' train it with {self.num_heads} heads, or --model.heads 1 to train it alone')

    @property
    def num_heads(self) -> int:
        """Number of heads that the keys together ask for."""
        if self.tree is not None:
            return HeadTree.of(self.tree).num_heads
        return 4 if self.heads is None else self.heads

    @property
    def architecture(self) -> str:
        """Name of the target network, without the prefix."""
        return (self.name or '').removeprefix(PREFIX)

    def single(self) -> ModelConfig:
        """The same network without a tree."""
        return dataclasses.replace(self, heads=1, tree=None, pattern='hierarchical')
