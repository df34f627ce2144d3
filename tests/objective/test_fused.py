"""The objective in one pass against the same objective as a sum of torch's functions."""
from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from timm_collab import CollaborativeLoss
from timm_collab.objective import fused

H, B, C = 4, 6, 11


def make_logits(dtype: torch.dtype = torch.float64, scale: float = 3., heads: int = H) -> Tensor:
    logits_HBC = scale * torch.randn(heads, B, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return logits_HBC.to(dtype).requires_grad_()


def make_target(kind: str, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if kind == 'index':
        return torch.randint(C, (B,), generator=generator)
    return torch.rand(B, C, generator=generator, dtype=torch.float64).mul(4).softmax(dim=1).to(dtype)


def both(loss_fn: CollaborativeLoss, logits_HBC: Tensor, target: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Loss, hard terms, soft terms and gradient, in one pass and as the sum of torch's functions."""
    results = []
    for one_pass in (True, False):
        own_HBC = logits_HBC.detach().clone().requires_grad_()
        if one_pass:
            loss, hard_H, soft_H = loss_fn.evaluate(own_HBC, target)
            assert '_Objective' in type(loss.grad_fn).__name__
            assert not hard_H.requires_grad and not soft_H.requires_grad
        else:
            hard_H, soft_H = loss_fn.terms(own_HBC, target)
            loss = loss_fn.combine(hard_H, soft_H)
        loss.backward()
        results.append([loss.detach(), hard_H.detach(), soft_H.detach(), own_HBC.grad])
    return results[0], results[1]


@pytest.mark.parametrize('kind', ['index', 'probabilities'])
@pytest.mark.parametrize('reduction', ['mean', 'sum'])
@pytest.mark.parametrize('smoothing', [0., .2])
@pytest.mark.parametrize(('temperature', 'scale_by_t2'), [(2., True), (1., True), (.3, False), (5., True)])
def test_it_is_the_same_objective(
        kind: str,
        reduction: str,
        smoothing: float,
        temperature: float,
        scale_by_t2: bool,
) -> None:
    criterion = nn.CrossEntropyLoss(reduction=reduction, label_smoothing=smoothing)
    loss_fn = CollaborativeLoss(criterion, temperature=temperature, beta=.3, scale_by_t2=scale_by_t2)
    for ours, expected in zip(*both(loss_fn, make_logits(), make_target(kind)), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)
    low = make_logits(torch.float32), make_target(kind, torch.float32)
    for ours, expected in zip(*both(loss_fn, *low), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('kind', ['index', 'probabilities'])
@pytest.mark.parametrize('heads', [2, 5])
def test_blocks_add_up(monkeypatch: pytest.MonkeyPatch, kind: str, heads: int) -> None:
    loss_fn = CollaborativeLoss(nn.CrossEntropyLoss(label_smoothing=.1))
    logits_HBC, target = make_logits(heads=heads), make_target(kind)
    whole = loss_fn.evaluate(logits_HBC, target)
    gradient_HBC, = torch.autograd.grad(whole[0], logits_HBC)
    for numbers in (1, 4 * heads * C):  # one example at a time; four, then the other two
        monkeypatch.setattr(fused, 'BLOCK_ON_CPU', numbers)
        parts = loss_fn.evaluate(logits_HBC, target)
        for a, b in zip(parts, whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=0.)
        torch.testing.assert_close(torch.autograd.grad(parts[0], logits_HBC)[0], gradient_HBC, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize('ignore_index', [-100, 3, 255])
@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_ignored_examples_learn_from_the_others_only(ignore_index: int, reduction: str) -> None:
    target_B = make_target('index')
    target_B[[0, 4]] = ignore_index
    criterion = nn.CrossEntropyLoss(ignore_index=ignore_index, label_smoothing=.1, reduction=reduction)
    for ours, expected in zip(*both(CollaborativeLoss(criterion), make_logits(), target_B), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)


def test_a_class_that_is_not_there_is_no_other_class() -> None:
    weights = CollaborativeLoss().one_pass_weights()
    assert weights is not None
    for wrong in (-1, C):
        with pytest.raises(RuntimeError, match='out of bounds'):
            fused.collaborative_cross_entropy(
                make_logits(), torch.full((B,), wrong), weights, fused.terms_and_gradient)


@pytest.mark.parametrize('temperature', [1e-3, .1, 2., 1e3])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize('kind', ['index', 'probabilities'])
def test_extreme_logits_give_finite_numbers(dtype: torch.dtype, temperature: float, kind: str) -> None:
    logits_HBC = make_logits(dtype).detach().sign().mul(1e4)  # heads that are sure, and contradict each other
    logits_HBC[:, 0] = 1e4 * torch.eye(C, dtype=dtype)[:H]
    loss_fn = CollaborativeLoss(temperature=temperature)
    (loss, hard_H, soft_H, gradient_HBC), expected = both(loss_fn, logits_HBC, make_target(kind, dtype))
    assert gradient_HBC.dtype == dtype and loss.dtype == torch.float32
    for value, other in zip((loss, hard_H, soft_H, gradient_HBC), expected, strict=True):
        assert value.isfinite().all()
        if dtype == torch.float32:
            torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits_HBC, target_B = make_logits(dtype), make_target('index')
    loss, _, _ = CollaborativeLoss().evaluate(logits_HBC, target_B)
    wide_HBC = logits_HBC.detach().float().requires_grad_()
    expected, _, _ = CollaborativeLoss().evaluate(wide_HBC, target_B)
    assert torch.equal(loss, expected)
    # scaled, as float16 trains: the gradient is rounded once, after the scale
    loss.mul(2. ** 10).backward()
    expected.mul(2. ** 10).backward()
    assert torch.equal(logits_HBC.grad, wide_HBC.grad.to(dtype))


def test_autocast_changes_nothing() -> None:
    logits_HBC, target_B = make_logits(torch.float32), make_target('index')
    expected = CollaborativeLoss().evaluate(logits_HBC, target_B)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        low = CollaborativeLoss().evaluate(logits_HBC, target_B)
    assert all(torch.equal(a, b) for a, b in zip(low, expected, strict=True))


def test_backward_may_be_called_again() -> None:
    logits_HBC, target_B = make_logits(), make_target('index')
    loss = CollaborativeLoss()(logits_HBC, target_B)
    first_HBC, = torch.autograd.grad(loss, logits_HBC, retain_graph=True)
    kept_HBC = first_HBC.clone()
    second_HBC, = torch.autograd.grad(3 * loss, logits_HBC)
    assert torch.equal(first_HBC, kept_HBC)
    torch.testing.assert_close(second_HBC, 3 * first_HBC, rtol=1e-14, atol=0.)


def test_a_second_derivative_is_refused() -> None:
    logits_HBC, target_B = make_logits(), make_target('index')
    loss = CollaborativeLoss()(logits_HBC, target_B)
    with pytest.raises(RuntimeError, match=r'no second derivative: differentiate loss_fn.combine\('):
        torch.autograd.grad(loss, logits_HBC, create_graph=True)


def test_each_head_moves_as_finite_differences_say() -> None:
    """One head at a time: its consensus stands still, as the formula wants, and the others' losses don't count."""
    logits_HBC, target_B = make_logits().detach(), make_target('index')

    def loss_of(head: int):
        def own(own_BC: Tensor) -> Tensor:
            moved_HBC = torch.cat([logits_HBC[:head], own_BC[None], logits_HBC[head + 1:]])
            hard_H, soft_H = CollaborativeLoss(beta=.3).evaluate(moved_HBC, target_B)[1:]
            return .3 * hard_H[head] + .7 * soft_H[head]
        return own

    whole_HBC = logits_HBC.clone().requires_grad_()
    CollaborativeLoss(beta=.3)(whole_HBC, target_B).backward()
    step = 1e-6
    for head in range(H):
        own_BC = logits_HBC[head]
        for b, c in ((0, 0), (3, 7), (5, 10)):
            moved_BC = torch.zeros_like(own_BC)
            moved_BC[b, c] = step
            slope = (loss_of(head)(own_BC + moved_BC) - loss_of(head)(own_BC - moved_BC)) / (2 * step)
            assert slope.item() == pytest.approx(whole_HBC.grad[head, b, c].item(), rel=1e-5, abs=1e-9)


def test_without_a_gradient_none_is_made() -> None:
    logits_HBC, target_B = make_logits(), make_target('index')
    expected = CollaborativeLoss().evaluate(logits_HBC, target_B)
    with torch.no_grad():
        values = CollaborativeLoss().evaluate(logits_HBC, target_B)
    assert all(torch.equal(a, b.detach()) for a, b in zip(values, expected, strict=True))


@pytest.mark.parametrize('criterion', [
    nn.CrossEntropyLoss(weight=torch.ones(C, dtype=torch.float64)),
    nn.NLLLoss(),
    type('Own', (nn.CrossEntropyLoss,), {})(),
])
def test_any_other_criterion_is_called(criterion: nn.Module) -> None:
    loss = CollaborativeLoss(criterion)(make_logits(), make_target('index'))
    assert '_Objective' not in type(loss.grad_fn).__name__


@pytest.mark.parametrize('kind', ['index', 'probabilities'])
@pytest.mark.parametrize('temperature', [2., 3.])
def test_compiled_it_is_the_same(monkeypatch: pytest.MonkeyPatch, kind: str, temperature: float) -> None:
    criterion = nn.CrossEntropyLoss(label_smoothing=.1)
    loss_fn = CollaborativeLoss(criterion, temperature=temperature, beta=.3)
    expected = both(loss_fn, make_logits(), make_target(kind))[0]
    torch.compiler.reset()
    loss_fn.compile(backend='aot_eager', fullgraph=True)
    for numbers in (fused.BLOCK, H * C, 4 * H * C):  # at once, one example at a time, three and three
        monkeypatch.setattr(fused, 'BLOCK', numbers)
        for ours, other in zip(both(loss_fn, make_logits(), make_target(kind))[0], expected, strict=True):
            torch.testing.assert_close(ours, other, rtol=1e-12, atol=1e-14)
    other_fn = CollaborativeLoss(criterion, temperature=temperature, beta=.3)
    assert loss_fn._terms is not other_fn._terms  # another objective is not compiled with it
    for again in (copy.deepcopy(loss_fn), pickle.loads(pickle.dumps(loss_fn))):  # as of any compiled module
        assert again._terms is other_fn._terms
        assert torch.equal(again(make_logits(), make_target(kind)), other_fn(make_logits(), make_target(kind)))


def test_any_other_objective_compiles_as_a_module_does() -> None:
    loss_fn = CollaborativeLoss(nn.CrossEntropyLoss(weight=torch.ones(C, dtype=torch.float64)))
    logits_HBC, target_B = make_logits(), make_target('index')
    expected = loss_fn(logits_HBC, target_B)
    torch.compiler.reset()
    counters.clear()
    loss_fn.compile(backend='aot_eager', fullgraph=True)
    torch.testing.assert_close(loss_fn(logits_HBC, target_B), expected)
    assert counters['stats']['unique_graphs'] == 1
