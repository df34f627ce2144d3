"""Reduction of the soft term over examples and classes, which follows the hard loss."""
from __future__ import annotations

import pytest
import timm.loss
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.objective.test_loss import B, C, make_logits, make_loss, make_target
from timm_collab.objective.loss import CollaborativeLoss


class BatchMeanBCE(nn.BCEWithLogitsLoss):
    """Sums over classes, as timm's multi-label losses do with this reduction."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(input, target, reduction='sum') / len(input)


@pytest.mark.parametrize(
    ('criterion', 'factor'),
    [
        (timm.loss.BinaryCrossEntropy(), 1),
        (timm.loss.BinaryCrossEntropy(sum_classes=True), C),
        (BatchMeanBCE(reduction='batchmean'), C),
        (timm.loss.AsymmetricLossMultiLabel(), C if hasattr(timm.loss, 'PolyBinaryCrossEntropy') else B * C),
        (nn.BCEWithLogitsLoss(reduction='sum'), B * C),
        (nn.MultiLabelSoftMarginLoss(), 1),
        (nn.MultiLabelSoftMarginLoss(reduction='sum'), B),  # it still averages over classes
    ],
)
def test_soft_term_is_reduced_like_the_hard_one(criterion: nn.Module, factor: int) -> None:
    logits_HBC, target_BC = make_logits(3), make_target('multi_label')
    _, mean_H = make_loss('multi_label').terms(logits_HBC, target_BC)
    _, soft_H = CollaborativeLoss(criterion).terms(logits_HBC, target_BC)
    torch.testing.assert_close(soft_H, factor * mean_H, rtol=1e-12, atol=0.)


@pytest.mark.skipif(not hasattr(timm.loss, 'PolyBinaryCrossEntropy'), reason='this timm has no such losses')
def test_reduction_of_timm_losses() -> None:
    logits_HBC, target_BC = make_logits(3), make_target('multi_label')
    _, mean_H = make_loss('multi_label').terms(logits_HBC, target_BC)
    for loss_cls in (timm.loss.AsymmetricLossMultiLabel, timm.loss.PolyBinaryCrossEntropy):
        for reduction, factor in (('mean', 1), ('batchmean', C), ('sum', B * C)):
            _, soft_H = CollaborativeLoss(loss_cls(reduction=reduction)).terms(logits_HBC, target_BC)
            torch.testing.assert_close(soft_H, factor * mean_H, rtol=1e-12, atol=0.)


def test_sum_over_the_batch() -> None:
    logits_HBC, target_B = make_logits(3), make_target('index')
    mean = CollaborativeLoss()(logits_HBC, target_B)
    total = CollaborativeLoss(nn.CrossEntropyLoss(reduction='sum'))(logits_HBC, target_B)
    torch.testing.assert_close(total, B * mean, rtol=1e-12, atol=0.)


def test_ignored_labels_have_a_soft_term() -> None:
    logits_HBC, target_B = make_logits(3), make_target('index')
    target_B[0] = -1
    hard_H, soft_H = CollaborativeLoss(nn.CrossEntropyLoss(ignore_index=-1)).terms(logits_HBC, target_B)
    rest_H, _ = CollaborativeLoss().terms(logits_HBC[:, 1:], target_B[1:])
    torch.testing.assert_close(hard_H, rest_H)
    assert soft_H.grad_fn is not None
    assert torch.autograd.grad(soft_H.sum(), logits_HBC)[0][:, 0].any()
