"""The collaborative network: a trunk and branches of one timm architecture, with several heads."""
from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from ..split.plan import cut_for, cuts_to, plan_tree, read_tree
from ..split.points import default_input_size
from ..split.segments import Chain, Segment, Subgraph
from ..split.tracing import TraceError
from ..tree import PREFIX, HeadTree, Path, node_name
from .checkpointing import checkpointed
from .rescale import rescale_gradient
from .weights import BRANCH_INITS, TreeWeights


class CollabModel(TreeWeights):
    """A timm architecture turned into a head tree for collaborative learning (Song & Chai 2018).

    In train mode it maps images `[B, in_chans, height, width]` to the logits of all heads `[H, B, C]`. In eval mode it
    returns the logits `[B, C]` of the kept head, and computes only its path. Every node of the tree has its own part of
    the network, initialized by the architecture. The path to head 0 has the weights of the plain network at that seed.
    Each further head takes its own nodes from another newly created plain network.

    Args:
        backbone: Name of a timm architecture, with or without a pretrained tag, or the location of a model:
            `hf-hub:user/name`, `local-dir:folder`.
        heads: Number of heads, default 4, or the number of heads of `tree`; 1 is the plain network.
        pattern: Tree for that many heads: `hierarchical`, `simple` or `instances`, see `HeadTree.preset`.
        tree: The tree itself, as `HeadTree`, spec (`'layer2:2,layer3:2'`) or mapping, instead of heads and pattern.
        pretrained: Load the architecture's pretrained weights into the trunk and every branch.
        branch_init: How branches differ when they start from a plain network's weights; identical heads would stay
            identical. `classifier` gives each head a newly initialized classifier. `perturb` keeps the pretrained one
            and adds noise of 1 % of its standard deviation to every parameter of a branch. `fresh` loads the trunk
            only. `copy` leaves all heads identical (for ablations: only randomness such as dropout differs).
        rescale: Divide the gradient at every split by its number of children (eq. 5); False sums it, for ablations.
        kept_head: The head that eval mode and `prune` use.
        checkpoint_path: Load this checkpoint of the plain network instead of the pretrained weights.
        **kwargs: For `timm.create_model`, e.g. `num_classes`, `in_chans`, `img_size`, `drop_path_rate`.

    Attributes:
        tree: The `HeadTree`.
        nodes: A `Segment` per node of the tree, named `trunk`, `branch_0`, `branch_0_0` and so on.
        fresh_classifiers: Whether the classifiers have no weights of a checkpoint, only those that were drawn.

    Raises:
        HeadTreeError: The tree is invalid.
        SplitPointError: The architecture can't be split at a point of the tree.
        ValueError: The architecture or an option is unknown, the architecture is not a classifier, or there is no head
            `kept_head`.

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
            raise ValueError('a head tree does not support features_only: prune() a head and use its features')
        if (num_classes := kwargs.get('num_classes')) is not None and num_classes < 1:
            raise ValueError(f'a head tree needs at least one class, got num_classes={num_classes}')
        if branch_init not in BRANCH_INITS:
            raise ValueError(f"unknown branch_init '{branch_init}': write one of {', '.join(BRANCH_INITS)}")
        self.backbone = backbone = backbone.removeprefix(PREFIX)
        wanted = read_tree(tree, heads, backbone, kwargs)
        self.rescale = rescale
        self.grad_checkpointing = False
        self._checkpoint_trunk = True
        self._kept_head = 0
        self._is_size_dependent = False

        def create(**extra: Any) -> nn.Module:
            return timm.create_model(backbone, **{**kwargs, **extra})

        first = create()
        size = default_input_size(first, kwargs)
        self.tree, chain = plan_tree(first, backbone, size, wanted, 4 if heads is None else heads, pattern)
        self.kept_head = kept_head
        self._build(chain, lambda head: create() if head else first)
        self._branch_init = branch_init if self.num_heads > 1 else 'copy'
        if pretrained or checkpoint_path:
            source: Any = create(pretrained=pretrained, checkpoint_path=checkpoint_path)
            self.load_backbone(source, self._branch_init)
            pretrained_classes = (getattr(source, 'pretrained_cfg', None) or {}).get('num_classes')
            if not checkpoint_path and pretrained_classes not in (None, source.num_classes):
                self.fresh_classifiers = True  # timm loads no classifier that has another number of classes

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits of all heads `[H, B, C]` in train mode, of the kept head `[B, C]` in eval mode."""
        if self.training:
            return self.forward_heads(x)
        return self.forward_path(x, self.kept_head)

    def forward_path(self, x: Tensor, head: int) -> Tensor:
        """Compute the logits of one head `[B, C]` along its path, in either mode, without rescaling gradients."""
        subgraphs = self._subgraphs_for(x)
        values: Any = (x,)
        for name in self._path_names(head):
            values = self.nodes[name](*values, subgraph=subgraphs.get(name))
        return values

    def forward_heads(self, x: Tensor) -> Tensor:
        """Compute the logits of all heads `[H, B, C]`, in either mode."""
        logits_BC: list[Tensor] = []
        self._descend(self.tree, (), (x,), self._subgraphs_for(x), logits_BC)
        return torch.stack(logits_BC)

    def _descend(
            self,
            tree: HeadTree,
            path: Path,
            values: Any,
            subgraphs: Mapping[str, Subgraph],
            logits_BC: list[Tensor],
    ) -> None:
        name = node_name(path)
        node, subgraph = self.nodes[name], subgraphs.get(name)
        if self.grad_checkpointing and self.training and (path or self._checkpoint_trunk):
            values = checkpointed(node, *values, subgraph=subgraph)
        else:
            values = node(*values, subgraph=subgraph)
        if tree.split is None:
            logits_BC.append(values)
            return
        if self.rescale:
            values = rescale_gradient(values, 1 / len(tree.children))
        for index, child in enumerate(tree.children):
            self._descend(child, (*path, index), values, subgraphs, logits_BC)

    def _subgraphs_for(self, x: Tensor) -> Mapping[str, Subgraph]:
        """Return the subgraphs of the nodes that differ at this image size from the size the tree was created for.

        Python code that depends on a shape may do something else at another size, so each new size is traced once, at
        its first batch. A compiled or traced model can't do that: run it in eval mode at the other size beforehand.
        """
        if not isinstance(x, Tensor) or x.ndim != 4:
            what = f'shape {list(x.shape)}' if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f'a head tree takes images [B, in_chans, height, width], got {what}')
        is_recording = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if is_recording and not self._is_size_dependent:
            return {}
        size = tuple(map(int, x.shape[2:]) if torch.jit.is_tracing() else x.shape[2:])  # tensors in torch.jit.trace
        if size == self._input_size[1:]:
            return {}
        if size not in self._resized and not is_recording:
            self._resized[size] = self._trace_at(size)
            self._is_size_dependent = self._is_size_dependent or bool(self._resized[size])
        return self._resized.get(size, {})

    def _trace_at(self, size: tuple[int, ...]) -> dict[str, Subgraph]:
        """Trace at another image size, and return the subgraphs that differ, by node."""
        try:
            chain = cut_for(self._template, (self._input_size[0], *size), self.tree)
        except TraceError as error:
            raise ValueError(f"'{self.backbone}' does not accept images of {size[0]}x{size[1]}: {error}") from error
        found = {name: subgraph for leaf in self.tree.leaves for name, subgraph in self._along(chain, leaf)}
        own = {name: cast(Segment, self.nodes[name]).subgraph for name in found}
        for name, subgraph in found.items():
            if subgraph.contents != own[name].contents:
                raise ValueError(
                    f"'{self.backbone}' uses other tensors in {name} on images of {size[0]}x{size[1]}: create the tree "
                    f'for that size, if the architecture takes img_size'
                )
        return {name: subgraph for name, subgraph in found.items() if subgraph != own[name]}

    def _along(self, chain: Chain, leaf: Path) -> Iterator[tuple[str, Subgraph]]:
        """Yield the name and subgraph of each node on the path to a head."""
        for depth, (start, stop) in enumerate(itertools.pairwise(cuts_to(chain, self.tree, leaf))):
            yield node_name(leaf[:depth]), chain.subgraph(start, stop)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier of every head, with the architecture's own `reset_classifier`.

        The tree is rebuilt: create optimizers and wrappers afterwards.

        Args:
            num_classes: Number of classes, C.
            global_pool: Type of the pooling before the classifier, None keeps the current one.
        """
        if num_classes < 1:
            raise ValueError(f'a head tree needs at least one class, got num_classes={num_classes}')
        pool = {} if global_pool is None else {'global_pool': global_pool}

        def reset(head: int) -> nn.Module:
            plain: Any = self.prune(head)
            plain.reset_classifier(num_classes, **pool)
            return plain

        first = reset(0)
        chain = cut_for(first, self._input_size, self.tree)
        self._build(chain, lambda head: reset(head) if head else first)

    def set_grad_checkpointing(self, enable: bool = True, trunk: bool = True) -> None:
        """Keep only the inputs of each node of the tree, and recompute its activations in the backward pass.

        Nodes are recomputed one after the other, so the activations of only one of them are in memory at a time.

        Args:
            enable: Whether to checkpoint.
            trunk: Checkpoint the trunk as well. False keeps its activations and computes it once: the peak memory is
                then that of the trunk and the largest other node, about that of a single network.
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

    def _build(self, chain: Chain, create_head: Callable[[int], nn.Module]) -> None:
        """Create the nodes: each takes its part of the plain network of the first head below it.

        Args:
            chain: The architecture, split for the tree.
            create_head: Creates the plain network of a head.
        """
        nodes = nn.ModuleDict()
        for head, leaf in enumerate(self.tree.leaves):
            plain = create_head(head)
            for name, subgraph in self._along(chain, leaf):
                if name not in nodes:
                    nodes[name] = Segment(subgraph, plain, shares_input=name != node_name(()))
        self.nodes = nodes
        self.fresh_classifiers = True
        self._input_size = chain.input_size
        self._resized: dict[tuple[int, ...], dict[str, Subgraph]] = {}
        self.__dict__['_template'] = chain.template  # not a submodule: it has no weights
