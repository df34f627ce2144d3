"""The collaborative network: a trunk and branches made of one timm architecture, with several heads."""
from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from ..split.plan import cut_for, cuts_to, plan_tree, read_tree
from ..split.points import default_input_size
from ..split.segments import Chain, Segment, Stretch
from ..split.tracing import TraceError
from ..tree import PREFIX, HeadTree, Path, node_name
from .checkpointing import checkpointed
from .drawing import Drawing
from .rescale import rescale_gradient
from .weights import BRANCH_INITS, TreeWeights


class CollabModel(TreeWeights):
    """A timm architecture unfolded into a head tree for collaborative learning (Song & Chai 2018).

    In train mode it maps images `[B, 3, H, W]` to the logits of all heads `[H, B, C]`; in eval mode to those of the
    kept head `[B, C]`, computing only its path. Every node of the tree holds its own part of the network, drawn the
    way the architecture draws it: head 0's path holds the weights the plain network would have at the same seed.

    Args:
        backbone: Name of a timm architecture, with a pretrained tag or without, or a model of one: `hf-hub:user/name`,
            `local-dir:folder`.
        heads: Number of heads, default 4, or the number a given `tree` has; 1 is the plain network.
        pattern: Tree for that many heads: `hierarchical`, `simple` or `instances`, see `HeadTree.preset`.
        tree: The tree itself, as `HeadTree`, spec (`'layer2:2,layer3:2'`) or mapping, instead of heads and pattern.
        pretrained: Start the trunk and every branch from the architecture's pretrained weights.
        branch_init: How branches differ when they start from a plain network's weights; heads that start alike stay
            alike. `classifier` draws each head a fresh classifier; `perturb` keeps the pretrained one and adds to
            every parameter of a branch noise of 1 % of its standard deviation; `fresh` draws the branches anew and
            loads the trunk only; `copy` leaves all heads alike (for ablations: only dropout and the like tell them
            apart).
        rescale: Divide the gradient at every split by its number of children (eq. 5); False sums it, for ablations.
        kept_head: The head that eval mode and `prune` use.
        checkpoint_path: Start from this checkpoint of the plain network instead, as from pretrained weights.
        **kwargs: For `timm.create_model`, e.g. `num_classes`, `in_chans`, `img_size`, `drop_path_rate`.

    Attributes:
        tree: The `HeadTree`.
        nodes: A `Segment` per node of the tree, `trunk`, `branch_0`, `branch_0_0` and so on.

    Raises:
        HeadTreeError: A tree that can't be.
        SplitPointError: A split where this architecture has no split point.
        ValueError: An unknown architecture or option, one that is no classifier, or a head that isn't there.

    Examples:

        ```python
        >>> model = CollabModel('resnet18', heads=4, num_classes=10)
        >>> model(torch.randn(2, 3, 64, 64)).shape
        torch.Size([4, 2, 10])
        >>> model.eval()(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 10])
        >>> plain = model.prune(2)  # a timm ResNet
        ```
    """

    def __init__(
            self,
            backbone: str,
            heads: int | None = None,
            pattern: str = 'hierarchical',
            tree: HeadTree | str | Mapping[str, Any] | None = None,
            pretrained: bool = False,
            branch_init: str = 'classifier',
            rescale: bool = True,
            kept_head: int = 0,
            checkpoint_path: str = '',
            **kwargs: Any,
    ):
        super().__init__()
        if kwargs.get('features_only'):
            raise ValueError('a head tree has no features_only form: prune() a head and take its features')
        if (num_classes := kwargs.get('num_classes')) is not None and num_classes < 1:
            raise ValueError(f'heads need at least one class to learn from, got num_classes={num_classes}')
        if branch_init not in BRANCH_INITS:
            raise ValueError(f"unknown branch_init '{branch_init}': write one of {', '.join(BRANCH_INITS)}")
        self.backbone = backbone = backbone.removeprefix(PREFIX)  # as split_points takes it
        wanted = read_tree(tree, heads, backbone, kwargs)
        self.rescale = rescale
        self.grad_checkpointing = False
        self._checkpoint_trunk = True
        self._kept_head = 0
        self._minds_size = False

        def create(**extra: Any) -> nn.Module:
            return timm.create_model(backbone, **{**kwargs, **extra})

        drawing = Drawing(create)
        first = drawing.whole()
        size = default_input_size(first, kwargs)
        self.tree, chain = plan_tree(first, backbone, size, wanted, 4 if heads is None else heads, pattern)
        self.kept_head = kept_head
        self._grow(chain, lambda head, contents: drawing.part(contents) if head else first)
        self._branch_init = branch_init if self.num_heads > 1 else 'copy'
        if pretrained or checkpoint_path:
            self.load_backbone(create(pretrained=pretrained, checkpoint_path=checkpoint_path), self._branch_init)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of all heads `[H, B, C]` in train mode, of the kept head `[B, C]` in eval mode."""
        if self.training:
            return self.forward_heads(x)
        return self.forward_path(x, self.kept_head)

    def forward_path(self, x: Tensor, head: int) -> Tensor:
        """Logits of one head `[B, C]`, in either mode, computing only its path; gradients aren't rescaled."""
        stretches = self._stretches_for(x)
        values: Any = (x,)
        for name in self._path_names(head):
            values = self.nodes[name](*values, stretch=stretches.get(name))
        return values

    def forward_heads(self, x: Tensor) -> Tensor:
        """Logits of all heads `[H, B, C]`, in either mode."""
        logits_BC: list[Tensor] = []
        self._descend(self.tree, (), (x,), self._stretches_for(x), logits_BC)
        return torch.stack(logits_BC)

    def _descend(
            self,
            tree: HeadTree,
            path: Path,
            values: Any,
            stretches: Mapping[str, Stretch],
            logits_BC: list[Tensor],
    ) -> None:
        name = node_name(path)
        node, stretch = self.nodes[name], stretches.get(name)
        if self.grad_checkpointing and self.training and (path or self._checkpoint_trunk):
            values = checkpointed(node, *values, stretch=stretch)
        else:
            values = node(*values, stretch=stretch)
        if tree.split is None:
            logits_BC.append(values)
            return
        if self.rescale:
            values = rescale_gradient(values, 1 / len(tree.children))
        for index, child in enumerate(tree.children):
            self._descend(child, (*path, index), values, stretches, logits_BC)

    def _stretches_for(self, x: Tensor) -> Mapping[str, Stretch]:
        """What the nodes compute on images of this size instead of on those the network was followed for.

        Python code that looks at a shape may go another way at another size, so each new size is followed once, when
        it first comes. A compiled or traced model doesn't do that: run it once before, in eval mode, at the other size.
        """
        if not isinstance(x, Tensor) or x.ndim != 4:
            what = f'shape {list(x.shape)}' if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f'a head tree takes images [B, C, H, W], got {what}')
        recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if recorded and not self._minds_size:
            return {}
        size = tuple(map(int, x.shape[2:]) if torch.jit.is_tracing() else x.shape[2:])  # jit's are tensors
        if size == self._input_size[1:]:
            return {}
        if size not in self._resized and not recorded:
            self._resized[size] = self._follow(size)
            self._minds_size = self._minds_size or bool(self._resized[size])
        return self._resized.get(size, {})

    def _follow(self, size: tuple[int, ...]) -> dict[str, Stretch]:
        """The nodes that compute something else at another size, and what."""
        try:
            chain = cut_for(self._template, (self._input_size[0], *size), self.tree)
        except TraceError as error:
            raise ValueError(f"'{self.backbone}' can't take images of {size[0]}x{size[1]}: {error}") from error
        found = {name: stretch for leaf in self.tree.leaves for name, stretch in self._along(chain, leaf)}
        usual = {name: cast(Segment, self.nodes[name]).stretch for name in found}
        for name, stretch in found.items():
            if stretch.contents != usual[name].contents:
                raise ValueError(
                    f"'{self.backbone}' uses other tensors in {name} on images of {size[0]}x{size[1]}: make the tree "
                    f'for that size, if the architecture takes img_size'
                )
        return {name: stretch for name, stretch in found.items() if stretch != usual[name]}

    def _along(self, chain: Chain, leaf: Path) -> Iterator[tuple[str, Stretch]]:
        """The nodes on the way to a head, and what each computes."""
        for depth, (start, stop) in enumerate(itertools.pairwise(cuts_to(chain, self.tree, leaf))):
            yield node_name(leaf[:depth]), chain.stretch(start, stop)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give every head a fresh classifier, as the architecture's own `reset_classifier` makes it.

        The tree is built again: make optimizers and wrappers afterwards.

        Args:
            num_classes: Number of classes, C.
            global_pool: Pooling before the classifier, default as it is.
        """
        if num_classes < 1:
            raise ValueError(f'heads need at least one class to learn from, got num_classes={num_classes}')
        pool = {} if global_pool is None else {'global_pool': global_pool}

        def edited(head: int) -> nn.Module:
            plain: Any = self.prune(head)
            plain.reset_classifier(num_classes, **pool)
            return plain

        first = edited(0)
        chain = cut_for(first, self._input_size, self.tree)
        self._grow(chain, lambda head, contents: edited(head) if head else first)

    def set_grad_checkpointing(self, enable: bool = True, trunk: bool = True) -> None:
        """Keep only what crosses the splits and compute each node of the tree again in the backward pass.

        The nodes are computed again one after the other, so no more than one of them has its activations in memory.

        Args:
            enable: Whether to.
            trunk: The trunk as well. False keeps its activations and saves computing it twice: the peak is then that of
                the trunk and the largest node after it, about that of a single network.
        """
        self.grad_checkpointing = enable
        self._checkpoint_trunk = trunk

    def __repr__(self) -> str:
        params = {key: sum(p.numel() for p in node.parameters()) for key, node in self.nodes.items()}
        picture = self.tree.draw(lambda path: f'{params[node_name(path)] / 1e6:.2f} M parameters')
        heads = '1 head' if self.num_heads == 1 else f'{self.num_heads} heads, {self.kept_head} kept'
        return (
            f"CollabModel('{self.backbone}', tree='{self.tree}', {heads},"
            f' {sum(params.values()) / 1e6:.2f} M parameters)\n{picture}'
        )

    def _grow(self, chain: Chain, plain: Callable[[int, list[str]], nn.Module]) -> None:
        """Fill the tree: each node takes its part of the plain network of the first head that it leads to.

        Args:
            chain: The architecture, cut.
            plain: Makes the network of a head, of which only the given paths are taken.
        """
        nodes = nn.ModuleDict()
        for head, leaf in enumerate(self.tree.leaves):
            new = {name: stretch for name, stretch in self._along(chain, leaf) if name not in nodes}
            source = plain(head, [path for stretch in new.values() for path in stretch.contents])
            for name, stretch in new.items():
                nodes[name] = Segment(stretch, source, shares_input=name != node_name(()))
        self.nodes = nodes
        self._input_size = chain.input_size
        self._resized: dict[tuple[int, ...], dict[str, Stretch]] = {}
        self.__dict__['_template'] = chain.template  # not a submodule: it has no weights
