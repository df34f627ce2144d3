"""Scores compared with their definitions, written out per example in float64."""
from __future__ import annotations

import math

import pytest
import torch

from timm_collab.train.metrics.scoring import Scorer


def by_definition(logits_BC: list[list[float]], target_B: list[int], bins: int) -> dict[str, float]:
    """Accuracy, likelihood and calibration error as defined in the papers, in Python floats."""
    nll, hits, members = 0.0, 0, {}
    for logits, target in zip(logits_BC, target_B, strict=True):
        weights = [math.exp(z - max(logits)) for z in logits]
        probabilities = [weight / sum(weights) for weight in weights]
        confidence = max(probabilities)
        correct = probabilities.index(confidence) == target
        nll -= math.log(probabilities[target])
        hits += correct
        inside = next(m for m in range(bins) if m / bins < confidence <= (m + 1) / bins)
        members.setdefault(inside, []).append((confidence, correct))
    error = 0.0
    for inside in members.values():
        accuracy = sum(correct for _, correct in inside) / len(inside)
        mean_confidence = sum(confidence for confidence, _ in inside) / len(inside)
        error += len(inside) / len(target_B) * abs(accuracy - mean_confidence)
    return {'top1': 100 * hits / len(target_B), 'nll': nll / len(target_B), 'ece': 100 * error}


@pytest.mark.parametrize('bins', [1, 10, 15])
@pytest.mark.parametrize(('classes', 'sharpness'), [(2, 1.0), (10, 0.3), (10, 4.0)])
def test_scores_match_their_definition(bins, classes, sharpness):
    generator = torch.Generator().manual_seed(classes)
    logits_BC = sharpness * torch.randn(200, classes, generator=generator, dtype=torch.float64)
    target_B = torch.randint(classes, (200,), generator=generator)
    scorer = Scorer(classes, bins)
    for part in (slice(0, 64), slice(64, 65), slice(65, 200)):
        scorer.add(logits_BC[part], target_B[part])
    expected = by_definition(logits_BC.tolist(), target_B.tolist(), bins)
    result = scorer.result()
    assert {name: result[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert scorer.count == 200


def test_calibration_error_computed_by_hand():
    # Two examples at confidence 0.8, one of them right, and two at 0.6, both right: (2 * 0.3 + 2 * 0.4) / 4
    logits_BC = torch.tensor([[.8, .2], [.8, .2], [.6, .4], [.6, .4]], dtype=torch.float64).log()
    scorer = Scorer(2)
    scorer.add(logits_BC, torch.tensor([0, 1, 0, 0]))
    assert scorer.result()['ece'] == pytest.approx(35.0)


def test_full_confidence_is_in_the_last_bin():
    scorer = Scorer(2)
    scorer.add(torch.tensor([[100.0, -100.0]]), torch.tensor([0]))
    assert scorer.count_N.tolist() == [0] * 14 + [1]
    assert scorer.result()['ece'] == pytest.approx(0.0)


def test_accuracy_by_class_and_top5():
    logits_BC = torch.zeros(4, 7)
    logits_BC[range(4), [0, 0, 2, 6]] = 5.0
    logits_BC -= 0.1 * torch.arange(7)
    scorer = Scorer(7)
    scorer.add(logits_BC, torch.tensor([0, 4, 1, 6]))
    assert scorer.by_class_C == [100.0, 0.0, None, None, 0.0, None, 100.0]
    assert scorer.result()['balanced'] == 50.0
    assert [(t, p) for t, row in enumerate(scorer.confusion) for p, count in enumerate(row) if count] == [
        (0, 0), (1, 2), (4, 0), (6, 6)]
    assert Scorer(201).confusion is None
    assert scorer.result()['top5'] == 100.0
    few = Scorer(5)
    few.add(torch.zeros(1, 5), torch.tensor([0]))
    assert few.result()['top5'] is None
