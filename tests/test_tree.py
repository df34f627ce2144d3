from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timm_collab import HeadTree, HeadTreeError
from timm_collab.tree import node_name


@st.composite
def trees(draw: st.DrawFn, depth: int = 3) -> HeadTree:
    if depth == 0 or draw(st.booleans()):
        return HeadTree()
    name = f'stage{depth}.{draw(st.integers(0, 3))}'
    if draw(st.booleans()):
        return HeadTree(name, (draw(trees(depth - 1)),) * draw(st.integers(2, 3)))
    return HeadTree(name, tuple(draw(st.lists(trees(depth - 1), min_size=2, max_size=3))))


@given(trees())
def test_str_and_parse_round_trip(tree: HeadTree) -> None:
    assert HeadTree.parse(str(tree)) == tree
    assert len(tree.leaves) == tree.num_heads == len(set(tree.leaves))
    assert hash(HeadTree.parse(str(tree))) == hash(tree)


@pytest.mark.parametrize(('spec', 'heads', 'canonical'), [
    ('layer2:2,layer3:2', 4, 'layer2:2,layer3:2'),
    (' layer2 : 2 , layer3 : 2 ', 4, 'layer2:2,layer3:2'),
    ('head', 1, 'head'),
    ('input:3', 3, 'input:3'),
    ('layer2:[head | head]', 2, 'layer2:2'),
    ('layer2:[layer3:2 | head]', 3, 'layer2:[layer3:2 | head]'),
    ('layer1:[layer2:2,layer3:2|layer3:3]', 7, 'layer1:[layer2:2,layer3:2 | layer3:3]'),
    ('blocks.5:2,blocks.8:[head|blocks.9:2]', 6, 'blocks.5:2,blocks.8:[head | blocks.9:2]'),
])
def test_parse_specs(spec: str, heads: int, canonical: str) -> None:
    tree = HeadTree.parse(spec)
    assert tree.num_heads == heads
    assert str(tree) == canonical


@pytest.mark.parametrize(('spec', 'complaint'), [
    ('', 'it is empty'),
    ('layer2', "'layer2' has no number of children, write 'layer2:2'"),
    ('layer2:', 'needs a number of children or a list in brackets'),
    ('layer2:two', "'layer2:two' needs a number of children"),
    ('layer2:1', "'layer2:1' has 1 child: a split needs at least two, write 'layer2:2'"),
    ('layer2:0', "'layer2:0' has no child"),
    ('layer2:2,', 'it ends where the name of a split point is expected'),
    ('layer2:2 layer3:2', "after 'layer2:2' there may only be ',' and a split, got 'layer3'"),
    (':2', "the name of a split point is missing before ':'"),
    ('layer2:[layer3:2', "write the children of 'layer2' as 'layer2:[... | ...]', got 'the end'"),
    ('layer2:[head]', 'a split needs at least two'),
    ('layer2:[layer3:2 | ]', "the name of a split point is missing before ']'"),
    ('layer2:2,layer3:2,layer2:2', "'layer2' occurs twice on one path"),
])
def test_invalid_spec_raises_with_the_invalid_part(spec: str, complaint: str) -> None:
    with pytest.raises(HeadTreeError) as error:
        HeadTree.parse(spec)
    assert f"head tree '{spec}': " in str(error.value)
    assert complaint in str(error.value)


def test_mapping_specs() -> None:
    assert str(HeadTree.of({'layer2': 2})) == 'layer2:2'
    assert str(HeadTree.of({'layer2': [{'layer3': 2}, None]})) == 'layer2:[layer3:2 | head]'
    assert str(HeadTree.of({'layer2': [{'layer3': 2}, 'layer3:2']})) == 'layer2:2,layer3:2'
    for bad, complaint in (
        ({}, 'one key'),
        ({'layer2': 2, 'layer3': 2}, 'one key'),
        ({'layer2': 1}, 'at least two'),
        ({'layer2': 'layer3:2'}, "the children of 'layer2'"),
        ({'layer2': [None, 3]}, 'not 3'),
        ({'': 2}, "can't be the name"),
    ):
        with pytest.raises(HeadTreeError, match=complaint):
            HeadTree.of(bad)


@pytest.mark.parametrize(('heads', 'pattern', 'spec'), [
    (1, 'hierarchical', 'head'),
    (2, 'hierarchical', 's3:2'),
    (3, 'hierarchical', 's2:[s3:2 | head]'),
    (4, 'hierarchical', 's2:2,s3:2'),
    (6, 'hierarchical', 's1:2,s2:[s3:2 | head]'),
    (8, 'hierarchical', 's1:2,s2:2,s3:2'),
    (16, 'hierarchical', 's1:2,s2:2,s3:4'),
    (1, 'simple', 'head'),
    (2, 'simple', 's2:2'),
    (5, 'simple', 's2:5'),
    (4, 'instances', 'input:4'),
])
def test_presets(heads: int, pattern: str, spec: str) -> None:
    tree = HeadTree.preset(heads, pattern, ('s1', 's2', 's3'))
    assert str(tree) == spec
    assert tree.num_heads == heads


def test_presets_with_few_boundaries_and_invalid_arguments() -> None:
    assert str(HeadTree.preset(8, 'hierarchical', ('s1', 's2'))) == 's1:2,s2:4'
    assert str(HeadTree.preset(2, 'simple', ('s1',))) == 's1:2'
    for heads, pattern, boundaries, complaint in (
        (0, 'simple', ('s1',), 'heads must be a whole number from 1, got 0'),
        (2, 'star', ('s1',), "unknown pattern 'star': write one of hierarchical, simple, instances"),
        (2, 'simple', (), 'this network has none'),
    ):
        with pytest.raises(HeadTreeError, match=complaint):
            HeadTree.preset(heads, pattern, boundaries)


def test_draw_has_one_line_per_node() -> None:
    tree = HeadTree.parse('layer2:[layer3:2 | head]')
    assert tree.draw(node_name).split('\n') == [
        'trunk: input -> layer2              trunk',
        '├─ branch_0: layer2 -> layer3       branch_0',
        '│  ├─ branch_0_0: layer3 -> head 0  branch_0_0',
        '│  └─ branch_0_1: layer3 -> head 1  branch_0_1',
        '└─ branch_1: layer2 -> head 2       branch_1',
    ]


def test_tree_is_immutable() -> None:
    with pytest.raises(AttributeError):
        HeadTree.parse('layer2:2').split = 'layer3'  # type: ignore[misc]
