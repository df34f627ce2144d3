"""Arguments of the objective: settings, criteria, and invalid inputs."""
from __future__ import annotations

import pytest
import timm.loss
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timm_collab.objective.loss import CollaborativeLoss, leave_one_out_consensus


def test_repr_shows_the_settings() -> None:
    text = repr(CollaborativeLoss(temperature=3., beta=0.25))
    assert 'temperature=3.0, beta=0.25, scale_by_t2=True, multi_label=False, full_labels=True' in text
    assert '(criterion): CrossEntropyLoss()' in text


@pytest.mark.parametrize(
    ('criterion', 'expected'),
    [
        (None, False),
        (nn.CrossEntropyLoss(), False),
        (timm.loss.LabelSmoothingCrossEntropy(), False),
        (timm.loss.AsymmetricLossSingleLabel(), False),
        (nn.BCEWithLogitsLoss(), True),
        (timm.loss.BinaryCrossEntropy(), True),
        (timm.loss.AsymmetricLossMultiLabel(), True),
        (F.binary_cross_entropy_with_logits, False),
    ],
)
def test_multi_label_is_detected_from_the_criterion(criterion: nn.Module | None, expected: bool) -> None:
    assert CollaborativeLoss(criterion).multi_label is expected
    assert CollaborativeLoss(criterion, multi_label=not expected).multi_label is not expected


def test_labels_are_not_read_on_an_accelerator() -> None:
    """The meta device has no values, so reading one raises; on an accelerator it would synchronize."""
    loss = CollaborativeLoss()(torch.randn(3, 8, 10, device='meta'), torch.zeros(8, dtype=torch.long, device='meta'))
    assert loss.shape == () and loss.device.type == 'meta'


@pytest.mark.parametrize('temperature', [0., -1., float('nan'), float('inf')])
def test_invalid_temperature(temperature: float) -> None:
    with pytest.raises(ValueError, match=rf'temperature is {temperature}; it must be a positive number'):
        CollaborativeLoss(temperature=temperature)


@pytest.mark.parametrize('beta', [-0.1, 1.5, float('nan')])
def test_invalid_beta(beta: float) -> None:
    with pytest.raises(ValueError, match=rf'beta is {beta}; it must lie in \[0, 1\]'):
        CollaborativeLoss(beta=beta)


@pytest.mark.parametrize(
    ('logits', 'target', 'message'),
    [
        (torch.randn(8, 10), torch.zeros(8).long(), r'got shape \[8, 10\]; .* single head use logits.unsqueeze\(0\)'),
        (torch.randn(0, 8, 10), torch.zeros(8).long(), r'at least one head and one example, got shape \[0, 8, 10\]'),
        (torch.ones(2, 8, 10).long(), torch.zeros(8).long(), r'logits must be floating point, got torch.int64'),
        (torch.randn(2, 8, 10), torch.zeros(4).long(), r'logits have batch 8, target has 4; '),
        (torch.randn(2, 8, 10), torch.zeros(4, 10), r'logits have batch 8, target has 4; '),
        (torch.randn(1, 8, 10), torch.zeros(4).long(), r'logits have batch 8, target has 4; '),
        (torch.randn(2, 8, 10), torch.zeros(8, 12), r'logits have 10 classes, target has 12'),
        (torch.randn(2, 8, 10), torch.zeros(8), r'must be integers, got torch.float32; use target.long\(\)'),
        (torch.randn(2, 8, 10), torch.zeros(8).bool(), r'must be integers, got torch.bool; use target.long\(\)'),
        (torch.randn(2, 8, 10), torch.zeros(8, 10).long(), r'floating point, got torch.int64; use target.float\(\)'),
        (torch.randn(2, 8, 10), torch.zeros(8, 10, 1), r'got shape \[8, 10, 1\]'),
        (torch.randn(2, 8, 10), torch.tensor(1), r'got shape \[\]'),
        (torch.randn(2, 3, 10), torch.tensor([0, 10, 9]), r'has class 10, .* must lie in \[0, 10\)'),
        (torch.randn(1, 3, 10), torch.tensor([0, 9, -1]), r'has class -1, .* must lie in \[0, 10\)'),
    ],
)
def test_logits_and_target_that_do_not_match(logits: Tensor, target: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CollaborativeLoss()(logits, target)


def test_criterion_without_reduction() -> None:
    with pytest.raises(ValueError, match=r"must return one number .* got shape \[6\]; use reduction='mean'"):
        CollaborativeLoss(nn.CrossEntropyLoss(reduction='none'))(torch.randn(2, 6, 10), torch.zeros(6).long())


def test_consensus_of_one_head() -> None:
    with pytest.raises(ValueError, match=r'at least 2 heads, got 1'):
        leave_one_out_consensus(torch.randn(1, 8, 10))


@pytest.mark.parametrize('criterion', [nn.CrossEntropyLoss(), timm.loss.LabelSmoothingCrossEntropy(.1)])
@pytest.mark.parametrize(('dtype', 'classes', 'labels'), [
    (torch.uint8, 200, [156, 3]),  # in 8 bits, 156 equals -100, the default ignore_index
    (torch.uint8, 300, [255, 3]),
    (torch.int8, 200, [127, 5]),
    (torch.int16, 70000, [32767, 5]),
])
def test_class_indices_of_small_integer_types(
        criterion: nn.Module, dtype: torch.dtype, classes: int, labels: list[int]) -> None:
    loss_fn, logits_HBC = CollaborativeLoss(criterion), torch.randn(3, 2, classes)
    target_B = torch.tensor(labels)
    assert torch.equal(loss_fn(logits_HBC, target_B.to(dtype)), loss_fn(logits_HBC, target_B))
    if not isinstance(criterion, nn.CrossEntropyLoss):
        return
    with pytest.raises(ValueError, match=f'has class {labels[0]}, but the logits have 100 classes'):
        loss_fn(logits_HBC[..., :100], target_B.to(dtype))


def test_empty_batch() -> None:
    with pytest.raises(ValueError, match=r'at least one head and one example, got shape \[3, 0, 5\]'):
        CollaborativeLoss()(torch.randn(3, 0, 5), torch.zeros(0, dtype=torch.long))
