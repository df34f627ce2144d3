"""Random trees of any shape, split anywhere, on very different architectures."""
from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import pytest
import timm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tester import check_tree
from timm_collab import SplitPoint, split_points


@dataclass(frozen=True)
class Case:
    """An architecture with an unusual structure, made small."""

    arch: str
    size: int
    kwargs: dict[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return self.arch


CASES = (
    Case('vit_tiny_r_s16_p8_224', 64, dict(img_size=64)),  # convolutions, then attention
    Case('hrnet_w18_small', 64),  # lists of tensors at several resolutions
    Case('crossvit_9_240', 240),  # two branches of tokens
    Case('coat_tiny', 64, dict(img_size=64)),  # one module used in several places
    Case('nasnetalarge', 96, dict(num_features=288, stem_size=8)),  # a cell reads the two before it
    Case('xcit_nano_12_p16_224', 64, dict(drop_path_rate=.1)),  # live numbers
    Case('naflexvit_base_patch16_gap', 64, dict(embed_dim=64, depth=6, num_heads=2)),  # a live dict
    Case('swin_tiny_patch4_window7_224', 112, dict(img_size=112, drop_path_rate=.1)),
    Case('eva02_tiny_patch14_224', 70, dict(img_size=70)),  # rotary embeddings are computed once and used in each block
    Case('efficientvim_m1', 64),  # the live state of a mixer
    Case('densenet121', 64, dict(drop_rate=.1)),  # the outputs of all previous layers are live
    Case('deit_tiny_distilled_patch16_224', 64, dict(img_size=64, drop_rate=.1)),  # two classifiers
    Case('convnext_atto', 64, dict(drop_path_rate=.1)),
)


@functools.cache
def points_of(case: Case) -> tuple[SplitPoint, ...]:
    return tuple(split_points(case.arch, **case.kwargs))


@st.composite
def specs(draw: st.DrawFn, case: Case) -> str:
    """A spec of two to six heads, whose nodes all have parameters."""
    points = points_of(case)
    heads = 0

    def node(params_before: float, depth: int) -> str:
        nonlocal heads
        open_points = [point for point in points if point.params_after < params_before]
        if heads + 2 > 6 or depth == 3 or not open_points or (depth and draw(st.booleans())):
            heads += 1
            return 'head'
        point = draw(st.sampled_from(open_points))
        children = [node(point.params_after, depth + 1) for _ in range(draw(st.integers(2, 3)))]
        return f'{point.name}:[{" | ".join(children)}]'

    return node(2., 0)


@pytest.mark.parametrize('examples', [2, pytest.param(6, marks=pytest.mark.slow)])
@pytest.mark.parametrize('case', CASES, ids=str)
def test_random_tree_equals_its_plain_networks(case: Case, examples: int) -> None:
    if not timm.is_model(case.arch):
        pytest.skip(f'this timm has no {case.arch}')
    calls = iter(range(examples))

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(specs(case))
    def check(spec: str) -> None:
        if next(calls, None) != 0:  # Hypothesis begins with the simplest tree, always the same
            check_tree(case.arch, case.size, spec, **case.kwargs)

    check()
