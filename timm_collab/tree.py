"""The head tree: what the heads share, where they part, how many there are.

A tree is written in a small grammar, parsed once into an immutable object:

    tree   := 'head' | split
    split  := NAME ':' COUNT [',' split]             COUNT equal children, each going on as written after the comma
            | NAME ':' '[' tree '|' tree ... ']'     children listed one by one

`NAME` is the module after which the network forks (`input`: before its first layer), so `layer2:2,layer3:2` forks in
two after `layer2` and each of the two again after `layer3`: four heads. `layer2:[layer3:2 | head]` has three.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

INPUT = 'input'
"""The split point before the first layer: nothing is shared."""

HEAD = 'head'
"""How a leaf is written."""

PREFIX = 'collab_'
"""Prefix of the names of head trees in timm, such as `collab_resnet50`."""

PATTERNS = ('hierarchical', 'simple', 'instances')

Path = tuple[int, ...]
"""Where a node sits: the child taken at each split, starting from the trunk, which is `()`."""

_TOKEN = re.compile(r'\s*([:,|\[\]]|[^\s:,|\[\]]+)')


class HeadTreeError(ValueError):
    """A head tree that can't be: the message names the bad part and what to write instead."""


@dataclass(frozen=True, repr=False)
class HeadTree:
    """A node of the tree: a stretch of the network and, unless it ends in a head, the split that follows it.

    Args:
        split: Module after which this node forks, None for a head.
        children: The nodes that continue after the split, at least two, empty for a head.

    Raises:
        HeadTreeError: A split with fewer than two children, a head with any, or one name twice on a path.

    Examples:

        ```python
        >>> tree = HeadTree.parse('layer2:2,layer3:2')
        >>> tree.num_heads, str(tree)
        (4, 'layer2:2,layer3:2')
        >>> str(HeadTree.from_mapping({'layer2': [{'layer3': 2}, None]}))
        'layer2:[layer3:2 | head]'
        ```
    """

    split: str | None = None
    children: tuple[HeadTree, ...] = ()

    def __post_init__(self) -> None:
        if self.split is None:
            if self.children:
                raise HeadTreeError('a node with children needs the name of the module it splits after')
            return
        if not re.fullmatch(_TOKEN, self.split) or self.split in set(':,|[]'):
            raise HeadTreeError(
                f"'{self.split}' can't be the name of a split point, which is a module's dotted name; a written tree is"
                ' read by HeadTree.parse'
            )
        if len(self.children) < 2:
            raise HeadTreeError(
                f"'{self.split}:{len(self.children)}' leaves {len(self.children) or 'no'} child: a split has at least"
                f" two, write '{self.split}:2', or leave the split out"
            )
        for path, node in self.walk():
            if path and node.split == self.split:
                raise HeadTreeError(f"'{self.split}' stands twice on one path: a network passes each module once")

    @classmethod
    def parse(cls, spec: str) -> HeadTree:
        """Read a tree from its written form, e.g. `layer2:2,layer3:2`; `head` is the network without a split.

        Raises:
            HeadTreeError: The spec breaks the grammar; the message quotes the part that does.
        """
        return _Parser(spec).parse()

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> HeadTree:
        """Read a tree from a nested mapping, the form for trees in YAML.

        Args:
            mapping: One key, the split point. Its value is a number of heads, or a list with one entry per child:
                a mapping, a written spec, or None for a head.

        Raises:
            HeadTreeError: Anything else, naming the part.
        """
        if len(mapping) != 1:
            raise HeadTreeError(f'a split is a mapping with one key, its split point; got {sorted(map(str, mapping))}')
        [(name, children)] = mapping.items()
        if isinstance(children, int) and not isinstance(children, bool):
            return cls(str(name), (cls(),) * max(children, 0))
        if isinstance(children, Sequence) and not isinstance(children, str):
            return cls(str(name), tuple(cls.of(child) for child in children))
        raise HeadTreeError(
            f"the children of '{name}' are a number of heads or a list with one entry per child (a mapping, a spec or"
            f' null), not {children!r}'
        )

    @classmethod
    def of(cls, spec: HeadTree | str | Mapping[str, Any] | None) -> HeadTree:
        """The tree that `spec` stands for, whichever of its forms it comes in; None is a head."""
        if spec is None:
            return cls()
        if isinstance(spec, HeadTree):
            return spec
        if isinstance(spec, str):
            return cls.parse(spec)
        if isinstance(spec, Mapping):
            return cls.from_mapping(spec)
        raise HeadTreeError(f"a head tree is a spec like 'layer2:2,layer3:2' or a mapping, not {spec!r}")

    @classmethod
    def preset(cls, heads: int, pattern: str, boundaries: Sequence[str]) -> HeadTree:
        """The tree of a pattern of the paper (Song & Chai 2018, Fig. 1) on a network with these stage boundaries.

        Args:
            heads: Number of heads; 1 is the plain network whatever the pattern.
            pattern: `hierarchical` forks in two at each of the last stage boundaries, as many as the heads need, and
                into what remains at the very last; `simple` forks once, at the second to last boundary, where a
                hierarchical tree of four heads forks first; `instances` forks at the input, nothing is shared.
            boundaries: Split points between the network's stages, in forward order.

        Raises:
            HeadTreeError: Unknown pattern, fewer than one head, or no boundary to split at.
        """
        if pattern not in PATTERNS:
            raise HeadTreeError(f"unknown pattern '{pattern}': write one of {', '.join(PATTERNS)}")
        if not isinstance(heads, int) or heads < 1:
            raise HeadTreeError(f'heads must be a whole number from 1, got {heads!r}')
        if heads == 1:
            return cls()
        if pattern == 'instances':
            return cls(INPUT, (cls(),) * heads)
        if not boundaries:
            raise HeadTreeError(f"pattern '{pattern}' needs a stage boundary to split at and this network has none")
        if pattern == 'simple':
            return cls(boundaries[-2:][0], (cls(),) * heads)
        levels = min((heads - 1).bit_length(), len(boundaries))
        return cls._binary(heads, tuple(boundaries[len(boundaries) - levels:]))

    @classmethod
    def _binary(cls, heads: int, boundaries: tuple[str, ...]) -> HeadTree:
        if heads == 1:
            return cls()
        if len(boundaries) == 1:
            return cls(boundaries[0], (cls(),) * heads)
        larger = (heads + 1) // 2
        return cls(
            boundaries[0],
            tuple(cls._binary(share, boundaries[1:]) for share in (larger, heads - larger)),
        )

    def walk(self, path: Path = ()) -> Iterator[tuple[Path, HeadTree]]:
        """Every node with its path, parents before children and children in order."""
        yield path, self
        for index, child in enumerate(self.children):
            yield from child.walk((*path, index))

    def at(self, path: Path) -> HeadTree:
        """The node that sits at a path."""
        node = self
        for index in path:
            node = node.children[index]
        return node

    @cached_property
    def leaves(self) -> tuple[Path, ...]:
        """The path of each head, head 0 first."""
        return tuple(path for path, node in self.walk() if node.split is None)

    @property
    def num_heads(self) -> int:
        """Number of leaves."""
        return len(self.leaves)

    @property
    def split_names(self) -> tuple[str, ...]:
        """The distinct split points of the tree, in the order they are met."""
        return tuple(dict.fromkeys(node.split for _, node in self.walk() if node.split is not None))

    def __str__(self) -> str:
        if self.split is None:
            return HEAD
        first = self.children[0]
        if any(child != first for child in self.children):
            return f'{self.split}:[{" | ".join(map(str, self.children))}]'
        rest = f',{first}' if first.split is not None else ''
        return f'{self.split}:{len(self.children)}{rest}'

    def __repr__(self) -> str:
        return f"HeadTree('{self}')"

    def draw(self, describe: Callable[[Path], str] | None = None) -> str:
        """A picture of the tree, a line per node.

        Args:
            describe: What to write at the end of a node's line, parameter counts for one, from its path.
        """
        heads = {path: index for index, path in enumerate(self.leaves)}
        rows = []
        for path, node in self.walk():
            start = self.at(path[:-1]).split if path else INPUT
            end = node.split or f'head {heads[path]}'
            rows.append((f'{self._stem(path)}{node_name(path)}: {start} -> {end}', path))
        width = max(len(text) for text, _ in rows)
        tail = describe or (lambda path: '')
        return '\n'.join(f'{text:<{width}}  {tail(path)}'.rstrip() for text, path in rows)

    def _stem(self, path: Path) -> str:
        """The lines that lead to a node in the picture: one column per ancestor, open where siblings follow."""
        last = [index == len(self.at(path[:depth]).children) - 1 for depth, index in enumerate(path)]
        above = ''.join('   ' if closed else '│  ' for closed in last[:-1])
        return above + ''.join('└─ ' if closed else '├─ ' for closed in last[-1:])


def node_name(path: Path) -> str:
    """The name of a node: `trunk`, or `branch_0_1` for child 1 of child 0."""
    return '_'.join(('branch', *map(str, path))) if path else 'trunk'


class _Parser:
    """Recursive descent over the grammar at the top of this file."""

    def __init__(self, spec: str):
        self.spec = spec
        self.tokens = [match.group(1) for match in _TOKEN.finditer(spec)]
        self.at = 0

    def parse(self) -> HeadTree:
        if not self.tokens:
            raise self.error("it is empty: write a split like 'layer2:2', or 'head' for the plain network")
        tree = self.tree()
        if self.at < len(self.tokens):
            raise self.error(f"nothing may follow '{self.written()}' but ',' and a split, got '{self.peek()}'")
        return tree

    def tree(self) -> HeadTree:
        if self.peek() == HEAD and self.peek(1) != ':':
            self.take()
            return HeadTree()
        return self.split()

    def split(self) -> HeadTree:
        name = self.take()
        if name in (*':,|[]', ''):
            raise self.error(f"a split point's name is missing before '{name}'" if name else "it ends where a split"
                             " point's name should stand")
        if self.take() != ':':
            raise self.error(f"'{name}' lacks its number of children, write '{name}:2'")
        if self.peek() == '[':
            return self.build(name, self.listed(name))
        count = self.take()
        if not count.isdecimal():
            raise self.error(f"'{name}:{count}' needs a number of children or a list in brackets, write '{name}:2'")
        child = HeadTree()
        if self.peek() == ',':
            self.take()
            child = self.split()
        return self.build(name, (child,) * int(count))

    def listed(self, name: str) -> tuple[HeadTree, ...]:
        self.take()
        children = [self.tree()]
        while (token := self.take()) == '|':
            children.append(self.tree())
        if token != ']':
            raise self.error(f"the children of '{name}' are written '{name}:[... | ...]', got '{token or 'the end'}'")
        return tuple(children)

    def build(self, name: str, children: tuple[HeadTree, ...]) -> HeadTree:
        try:
            return HeadTree(name, children)
        except HeadTreeError as error:
            raise self.error(str(error)) from None

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else ''

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def written(self) -> str:
        return ''.join(self.tokens[:self.at])

    def error(self, reason: str) -> HeadTreeError:
        return HeadTreeError(f"head tree '{self.spec}': {reason}")
