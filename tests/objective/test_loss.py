"""The objective compared with a float64 reference that follows the formulas literally."""
from __future__ import annotations

from collections import Counter

import pytest
import timm.loss
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from timm_collab.objective.loss import CollaborativeLoss, leave_one_out_consensus

B, C = 6, 5
TARGETS = ('index', 'soft', 'multi_label')


def make_logits(num_heads: int, dtype: torch.dtype = torch.float64, scale: float = 3., seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits_HBC = scale * torch.randn(num_heads, B, C, generator=generator, dtype=torch.float64)
    return logits_HBC.to(dtype).requires_grad_()


def make_target(kind: str, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if kind == 'index':
        return torch.randint(C, (B,), generator=generator)
    if kind == 'soft':
        return torch.rand(B, C, generator=generator, dtype=torch.float64).softmax(dim=1).to(dtype)
    return torch.randint(2, (B, C), generator=generator).to(dtype)


def make_loss(kind: str, **kwargs: float | bool) -> CollaborativeLoss:
    criterion = nn.BCEWithLogitsLoss() if kind == 'multi_label' else None
    return CollaborativeLoss(criterion, **{'full_labels': False, **kwargs})


def reference(
        logits_HBC: Tensor,
        target: Tensor,
        kind: str,
        temperature: float,
        beta: float,
        scale_by_t2: bool,
) -> Tensor:
    """The formulas, one head, one peer and one example at a time."""
    num_heads = len(logits_HBC)

    def probability(z_C: Tensor) -> Tensor:
        return 1 / (1 + torch.exp(-z_C)) if kind == 'multi_label' else torch.exp(z_C) / torch.exp(z_C).sum()

    def cross_entropy(p_C: Tensor, q_C: Tensor) -> Tensor:
        if kind == 'multi_label':
            return -(p_C * torch.log(q_C) + (1 - p_C) * torch.log(1 - q_C)).sum() / C
        return -(p_C * torch.log(q_C)).sum()

    loss = torch.zeros((), dtype=torch.float64)
    for h in range(num_heads):
        hard = soft = torch.zeros((), dtype=torch.float64)
        for b in range(B):
            z_C = logits_HBC[h, b]
            y_C = torch.eye(C, dtype=torch.float64)[target[b]] if kind == 'index' else target[b]
            hard = hard + cross_entropy(y_C, probability(z_C)) / B
            if num_heads > 1:
                peers_C = torch.zeros(C, dtype=torch.float64)
                for j in range(num_heads):
                    if j != h:
                        peers_C = peers_C + logits_HBC[j, b].detach() / (num_heads - 1)
                soft = soft + cross_entropy(probability(peers_C / temperature), probability(z_C / temperature)) / B
        if scale_by_t2:
            soft = soft * temperature ** 2
        loss = loss + (hard if num_heads == 1 else beta * hard + (1 - beta) * soft)
    return loss


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize('kind', TARGETS)
@pytest.mark.parametrize('num_heads', [1, 2, 3, 5, 8])
@pytest.mark.parametrize(
    ('temperature', 'beta', 'scale_by_t2'),
    [(2., 0.5, True), (2., 0.5, False), (1., 0.25, True), (3.5, 0., True), (4., 0., False), (2., 1., True)],
)
def test_loss_and_gradient_match_the_reference(
        kind: str,
        num_heads: int,
        temperature: float,
        beta: float,
        scale_by_t2: bool,
) -> None:
    logits_HBC, target = make_logits(num_heads), make_target(kind)
    settings_ = {'temperature': temperature, 'beta': beta, 'scale_by_t2': scale_by_t2}
    loss = make_loss(kind, **settings_)(logits_HBC, target)
    expected = reference(logits_HBC, target, kind, **settings_)
    gradient_HBC, = torch.autograd.grad(loss, logits_HBC)
    expected_gradient_HBC, = torch.autograd.grad(expected, logits_HBC)

    assert loss.dtype == torch.float64 and loss.shape == ()
    assert relative_error(loss, expected) < 1e-10
    assert relative_error(gradient_HBC, expected_gradient_HBC) < 1e-10


@pytest.mark.parametrize('kind', TARGETS)
@pytest.mark.parametrize('num_heads', [1, 2, 4])
@pytest.mark.parametrize('beta', [0.2, 0.5, 1.])
def test_full_labels_divide_by_beta(kind: str, num_heads: int, beta: float) -> None:
    logits_HBC, target = make_logits(num_heads), make_target(kind)
    loss_fn = make_loss(kind, beta=beta, full_labels=True)
    expected = reference(logits_HBC, target, kind, 2., beta, True) / (1. if num_heads == 1 else beta)
    expected_gradient_HBC, = torch.autograd.grad(expected, logits_HBC)
    for loss in (loss_fn(logits_HBC, target), loss_fn.combine(*loss_fn.terms(logits_HBC, target))):
        gradient_HBC, = torch.autograd.grad(loss, logits_HBC)
        assert relative_error(loss, expected) < 1e-10
        assert relative_error(gradient_HBC, expected_gradient_HBC) < 1e-10
    assert loss_fn.hard_weight == 1.
    with pytest.raises(ValueError, match='beta is 0'):
        CollaborativeLoss(beta=0., full_labels=True)


@pytest.mark.parametrize('scale_by_t2', [True, False])
def test_gradient_in_closed_form(scale_by_t2: bool) -> None:
    """d L / d z_h = beta (p_h - y) / B + (1 - beta) T^2 (p_h^T - q_h) / (T B), without terms from other q_j."""
    num_heads, temperature, beta = 4, 3., 0.3
    logits_HBC, target_B = make_logits(num_heads), make_target('index')
    loss_fn = CollaborativeLoss(temperature=temperature, beta=beta, scale_by_t2=scale_by_t2, full_labels=False)
    loss_fn(logits_HBC, target_B).backward()

    z_HBC = logits_HBC.detach()
    factor = temperature ** 2 if scale_by_t2 else 1.
    for h in range(num_heads):
        peers_BC = z_HBC[[j for j in range(num_heads) if j != h]].mean(dim=0)
        hard_BC = z_HBC[h].softmax(dim=1) - F.one_hot(target_B, C)
        soft_BC = (z_HBC[h] / temperature).softmax(dim=1) - (peers_BC / temperature).softmax(dim=1)
        expected_BC = (beta * hard_BC + (1 - beta) * factor / temperature * soft_BC) / B
        assert relative_error(logits_HBC.grad[h], expected_BC) < 1e-10


@pytest.mark.parametrize('kind', TARGETS)
def test_consensus_carries_no_gradient(kind: str) -> None:
    logits_HBC, target = make_logits(3), make_target(kind)
    assert not leave_one_out_consensus(logits_HBC).requires_grad

    _, soft_H = make_loss(kind).terms(logits_HBC, target)
    for h in range(3):
        gradient_HBC, = torch.autograd.grad(soft_H[h], logits_HBC, retain_graph=True)
        for j in range(3):
            assert bool(gradient_HBC[j].any()) == (j == h), f'soft term {h} moves head {j}'

    # Perturbing a peer does change the term, so the zeros above come from the stop-gradient.
    moved_HBC = logits_HBC.detach().clone()
    moved_HBC[1, 0, 0] += 1.
    assert make_loss(kind).terms(moved_HBC, target)[1][0] != soft_H[0]


def test_identical_heads_have_no_soft_gradient() -> None:
    logits_HBC = make_logits(1).detach().expand(4, B, C).clone().requires_grad_()
    CollaborativeLoss(beta=0., full_labels=False)(logits_HBC, make_target('index')).backward()
    assert logits_HBC.grad.abs().max() < 1e-15


@pytest.mark.parametrize(
    ('criterion', 'kind'),
    [
        (None, 'index'),
        (None, 'soft'),
        (F.cross_entropy, 'index'),
        (timm.loss.LabelSmoothingCrossEntropy(0.1), 'index'),
        (timm.loss.SoftTargetCrossEntropy(), 'soft'),
        (timm.loss.BinaryCrossEntropy(), 'index'),
        (timm.loss.BinaryCrossEntropy(target_threshold=0.2), 'multi_label'),
        (timm.loss.BinaryCrossEntropy(sum_classes=True), 'multi_label'),
        (timm.loss.JsdCrossEntropy(num_splits=3), 'index'),
        (timm.loss.AsymmetricLossMultiLabel(), 'multi_label'),
        (nn.BCEWithLogitsLoss(), 'multi_label'),
        (nn.CrossEntropyLoss(reduction='sum', label_smoothing=0.1), 'index'),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, '__name__', type(value).__name__),
)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_any_criterion_is_applied_per_head(criterion: nn.Module | None, kind: str, dtype: torch.dtype) -> None:
    """The loss of one head, and the hard term of each of several in float32, equal the criterion bit for bit."""
    target = make_target(kind, dtype)
    loss_fn = CollaborativeLoss(criterion, beta=0.25)
    alone = criterion or nn.CrossEntropyLoss()

    one_HBC = make_logits(1, dtype)
    plain_BC = one_HBC.detach()[0].clone().requires_grad_()
    loss, expected = loss_fn(one_HBC, target), alone(plain_BC, target)
    loss.backward()
    expected.backward()
    assert loss.dtype == expected.dtype
    assert torch.equal(loss, expected)
    assert torch.equal(one_HBC.grad[0], plain_BC.grad)

    many_HBC = make_logits(3, dtype)
    hard_H, soft_H = loss_fn.terms(many_HBC, target)
    wide_HBC, wide_target = (
        tensor.float() if tensor.dtype == torch.bfloat16 else tensor for tensor in (many_HBC, target))
    assert torch.equal(hard_H, torch.stack([alone(logits_BC, wide_target) for logits_BC in wide_HBC]))
    assert soft_H.shape == (3,) and soft_H.isfinite().all()


def test_scale_by_t2() -> None:
    logits_HBC, target_B = make_logits(3), make_target('index')
    _, scaled_H = CollaborativeLoss(temperature=3.).terms(logits_HBC, target_B)
    _, plain_H = CollaborativeLoss(temperature=3., scale_by_t2=False).terms(logits_HBC, target_B)
    torch.testing.assert_close(scaled_H, 9 * plain_H, rtol=1e-14, atol=0.)


def test_beta_one_skips_the_soft_term() -> None:
    logits_HBC, target_B = make_logits(3), make_target('index')
    loss_fn = CollaborativeLoss(beta=1.)
    with CountOps() as ops:
        hard_H, soft_H = loss_fn.terms(logits_HBC, target_B)
    assert ops.calls['aten._softmax.default'] == 0 and ops.calls['aten._log_softmax.default'] == 3
    assert torch.equal(soft_H, torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(loss_fn(logits_HBC, target_B), hard_H.sum())


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(5)), st.sampled_from(TARGETS), st.integers(0, 2 ** 31))
def test_permutation_of_heads(order: list[int], kind: str, seed: int) -> None:
    logits_HBC, target = make_logits(5, seed=seed), make_target(kind)
    loss_fn = make_loss(kind)
    for terms_H, permuted_H in zip(
            loss_fn.terms(logits_HBC, target), loss_fn.terms(logits_HBC[order], target), strict=True):
        torch.testing.assert_close(permuted_H, terms_H[order], rtol=1e-12, atol=1e-12)


class CountOps(TorchDispatchMode):
    """Counts the operators that run, and the elements of their results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.numbers = 0
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls[str(func)] += 1
        if isinstance(out, Tensor):
            self.numbers += out.numel()
            self.largest = max(self.largest, out.numel())
        return out


@pytest.mark.parametrize('kind', TARGETS)
def test_cost_is_linear_in_the_number_of_heads(kind: str) -> None:
    def measure(num_heads: int) -> CountOps:
        logits_HBC, target = make_logits(num_heads), make_target(kind)
        with CountOps() as ops:
            make_loss(kind)(logits_HBC, target).backward()
        return ops

    ops = {num_heads: measure(num_heads) for num_heads in (4, 8, 16)}
    calls = {num_heads: op.calls.total() for num_heads, op in ops.items()}
    assert calls[16] - calls[8] == 2 * (calls[8] - calls[4])
    assert ops[16].numbers - ops[8].numbers == 2 * (ops[8].numbers - ops[4].numbers)
    assert ops[16].largest == 16 * B * C, 'something grows faster than the logits'

    # The consensus takes the same number of operators for any number of heads.
    with CountOps() as few, torch.no_grad():
        leave_one_out_consensus(make_logits(2))
    with CountOps() as many, torch.no_grad():
        leave_one_out_consensus(make_logits(64))
    assert few.calls.total() == many.calls.total()


@pytest.mark.parametrize('kind', TARGETS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_terms_are_computed_in_float32(kind: str, dtype: torch.dtype) -> None:
    logits_HBC, target = make_logits(4, dtype), make_target(kind, dtype)
    assert leave_one_out_consensus(logits_HBC).dtype == torch.float32
    terms = make_loss(kind).terms(logits_HBC, target)
    expected = make_loss(kind).terms(logits_HBC.detach().double(), target.double() if target.ndim == 2 else target)
    for term_H, expected_H in zip(terms, expected, strict=True):
        assert term_H.dtype == torch.float32
        assert relative_error(term_H.double(), expected_H) < 1e-5

    make_loss(kind)(logits_HBC, target).backward()
    assert logits_HBC.grad.dtype == dtype and logits_HBC.grad.isfinite().all()


@pytest.mark.parametrize('kind', TARGETS)
def test_autocast(kind: str) -> None:
    logits_HBC, target = make_logits(4, torch.float32), make_target(kind, torch.float32)
    expected = make_loss(kind)(logits_HBC, target)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = make_loss(kind)(logits_HBC, target)
        low = make_loss(kind)(logits_HBC.bfloat16(), target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(low.float(), expected, rtol=0.02, atol=0.)


@pytest.mark.parametrize('kind', TARGETS)
@pytest.mark.parametrize('temperature', [1e-3, 2., 1e3])
@pytest.mark.parametrize(('dtype', 'scale'), [
    (torch.float16, 1e4), (torch.bfloat16, 1e4), (torch.float32, 1e3), (torch.float32, 1e30),
])
def test_large_logits_stay_finite(kind: str, temperature: float, dtype: torch.dtype, scale: float) -> None:
    logits_HBC = make_logits(3, dtype, scale=scale)
    loss = make_loss(kind, temperature=temperature)(logits_HBC, make_target(kind, dtype))
    loss.backward()
    assert loss.isfinite() and loss.dtype == torch.float32
    assert logits_HBC.grad.isfinite().all() and logits_HBC.grad.dtype == dtype


@pytest.mark.parametrize('kind', TARGETS)
def test_compiles_without_graph_breaks(kind: str) -> None:
    logits_HBC, target = make_logits(3), make_target(kind)
    loss_fn = make_loss(kind)
    torch.compiler.reset()
    compiled = torch.compile(loss_fn, backend='aot_eager', fullgraph=True)
    gradient_HBC, = torch.autograd.grad(compiled(logits_HBC, target), logits_HBC)
    expected_HBC, = torch.autograd.grad(loss_fn(logits_HBC, target), logits_HBC)
    torch.testing.assert_close(gradient_HBC, expected_HBC, rtol=1e-12, atol=1e-12)


def test_compile_in_place() -> None:
    logits_HBC, target_B = make_logits(3), make_target('index')
    loss_fn = CollaborativeLoss(nn.CrossEntropyLoss(label_smoothing=.1))
    expected = loss_fn(logits_HBC, target_B)
    torch.compiler.reset()
    counters.clear()
    loss_fn.compile(backend='aot_eager', fullgraph=True)
    torch.testing.assert_close(loss_fn(logits_HBC, target_B), expected, rtol=1e-12, atol=0.)
    assert counters['stats']['unique_graphs'] == 1
