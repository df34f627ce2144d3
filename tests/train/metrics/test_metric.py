from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from tests.train.loop.test_evaluate import FixedHeads
from timm_collab.train.loop.evaluate import evaluate
from timm_collab.train.metrics.metric import MAP, TOP1, average_precision, metric_of, shortfall
from timm_collab.train.metrics.scoring import MultiLabelScorer


def reference(score_N: list[float], label_N: list[int]) -> float:
    """scikit-learn's definition: sum over thresholds of (R_n - R_{n-1}) P_n."""
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(score_N), reverse=True):
        said = [label for score, label in zip(score_N, label_N, strict=True) if score >= threshold]
        recall = sum(said) / sum(label_N)
        total += (recall - recall_before) * sum(said) / len(said)
        recall_before = recall
    return total


def column(values) -> torch.Tensor:
    return torch.tensor(values)[:, None]


@pytest.mark.parametrize(('scores', 'labels', 'expected'), [
    # From scikit-learn's documentation of average_precision_score.
    ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.8333333333333333),
    # And from running its 1.9.
    ([0.5, 0.5, 0.5, 0.5], [0, 1, 0, 0], 0.25),
    ([3.0, 2.0, 2.0, 1.0, 1.0], [0, 1, 0, 1, 1], 0.5111111111111111),
    ([1.0, 2.0], [1, 1], 1.0),
])
def test_average_precision_matches_scikit_learn(scores, labels, expected):
    assert average_precision(column(scores), column(labels)).tolist() == [pytest.approx(expected, abs=1e-15)]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1)), min_size=1, max_size=30))
def test_average_precision_matches_its_definition_with_ties(pairs):
    scores, labels = (list(each) for each in zip(*pairs, strict=True))
    [found] = average_precision(column([float(score) for score in scores]), column(labels)).tolist()
    assert np.isnan(found) if not any(labels) else found == pytest.approx(reference(scores, labels), abs=1e-12)


def test_many_classes_are_ranked_independently():
    generator = torch.Generator().manual_seed(0)
    score_NC, label_NC = torch.randn(40, 150, generator=generator), torch.rand(40, 150, generator=generator) < 0.3
    label_NC[:, 70] = False
    found_C = average_precision(score_NC, label_NC.float())
    assert found_C.isnan().nonzero().flatten().tolist() == [70]
    for label in (0, 63, 64, 149):
        expected = reference(score_NC[:, label].tolist(), label_NC[:, label].int().tolist())
        assert found_C[label].item() == pytest.approx(expected, abs=1e-12)


@pytest.fixture
def several() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [3, 50, 6] of three heads and labels [50, 6], the last of which no example has."""
    generator = torch.Generator().manual_seed(1)
    logits_HNC = torch.randn(3, 50, 6, generator=generator)
    target_NC = (torch.rand(50, 6, generator=generator) < 0.4).float()
    target_NC[:, 5] = 0
    return logits_HNC, target_NC


@pytest.mark.parametrize('batch_size', [7, 50])
def test_evaluation_of_several_labels_matches_direct_computation(several, batch_size):
    logits_HNC, target_NC = several
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(DataLoader(TensorDataset(torch.arange(50), target_NC), batch_size=batch_size))
    scores = evaluate(FixedHeads(logits_HNC), loader, accelerator, MAP)

    def expected(logits_NC: torch.Tensor) -> float:
        each = [reference(logits_NC[:, c].tolist(), target_NC[:, c].int().tolist()) for c in range(5)]
        return 100 * sum(each) / 5

    assert scores.score_H == pytest.approx([expected(logits_NC) for logits_NC in logits_HNC])
    assert scores.consensus == pytest.approx(expected(logits_HNC.mean(dim=0)))
    assert scores.loss_H == pytest.approx([F.binary_cross_entropy_with_logits(z, target_NC).item() for z in logits_HNC])
    said = logits_HNC.sigmoid() > 0.5
    differ = [(said[a] != said[b]).double().mean().item() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert scores.disagreement == pytest.approx(100 * sum(differ) / 3)
    best = max(range(3), key=lambda head: scores.score_H[head])
    row = scores.row(scores.best_head)
    assert scores.best_head == best and row['map_kept'] == scores.score_H[best] and row['count'] == 50
    assert metric_of(row) is MAP and shortfall(row) == pytest.approx(100 - row['map_kept'])
    assert [MAP.in_final(score) for score in MAP.heads(row)] == pytest.approx(scores.score_H)


def test_f1_in_training_and_validation(several):
    logits_HNC, target_NC = several
    said, is_label = logits_HNC > 0, target_NC.bool()
    f1 = [200 * (each & is_label).sum().item() / (each.sum() + is_label.sum()).item() for each in said]
    assert MAP.in_training(logits_HNC, target_NC).item() == pytest.approx(sum(f1) / 3)
    assert MAP.in_training(torch.full((2, 3, 4), -1.0), torch.zeros(3, 4)).item() == 0

    scorer = MultiLabelScorer()
    for logits_BC, target_BC in zip(logits_HNC[0].split(20), target_NC.split(20), strict=True):
        scorer.add(logits_BC, target_BC)
    result = scorer.result()
    by_class = [
        2 * (said[0][:, c] & is_label[:, c]).sum().item() / (said[0][:, c].sum() + is_label[:, c].sum()).item()
        for c in range(5)
    ]
    assert result['f1_micro'] == pytest.approx(f1[0]) and result['f1_macro'] == pytest.approx(20 * sum(by_class))
    assert result['bce'] == pytest.approx(F.binary_cross_entropy_with_logits(logits_HNC[0], target_NC).item())
    assert result['map'] == pytest.approx(100 * average_precision(logits_HNC[0], target_NC)[:5].mean().item())
    assert scorer.count == 50 and scorer.by_class_C[5] is None
    assert scorer.examples_C == target_NC.sum(dim=0).int().tolist()


def test_accuracy_is_summarized_as_error():
    row = TOP1.row([90.1, 80.0], 91.0, 0)
    assert row == {'top1_heads': [90.1, 80.0], 'top1_consensus': 91.0, 'top1_kept': 90.1}
    assert [TOP1.in_final(score) for score in TOP1.heads(row)] == [9.9, 20.0]
    assert metric_of(row) is TOP1 is metric_of({'error_kept': 9.9}) and shortfall(row, 'consensus') == 9.0
    rule = TOP1.rule('any epoch')
    assert rule.startswith('highest validation accuracy after any epoch; of equals the lowest cross-entropy')


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=40))
def test_scores_by_class_follow_their_definitions(rows):
    *predicted, target = (list(column) for column in zip(*rows, strict=True))
    logits_KBC = torch.nn.functional.one_hot(torch.tensor(predicted), 5).float()
    evidence = [TOP1.evidence(logits_KBC[:, part], torch.tensor(target)[part])
                for part in (slice(0, 7), slice(7, None))]
    assert TOP1.scores(evidence) == [
        (100.0 * (torch.tensor(each) == torch.tensor(target)).double().mean()).item() for each in predicted]
    by_class = TOP1.by_class(evidence, 5)
    for kept, each in enumerate(predicted):
        pairs = list(zip(target, each, strict=True))
        recall = {c: 100 * sum(t == p == c for t, p in pairs) / target.count(c) for c in set(target)}
        assert by_class.recall(kept) == [recall.get(c) for c in range(5)]
        details = by_class.details(kept)
        assert details['confusion_kept'] == [[pairs.count((t, p)) for p in range(5)] for t in range(5)]
        if kept == 0:  # the last prediction is the consensus
            row = by_class.row(kept)
            assert row['balanced_kept'] == pytest.approx(sum(recall.values()) / len(recall))
            assert row['worst_recall_kept'] == recall[row['worst_class_kept']] == min(recall.values())


def test_soft_labels_count_as_their_largest():
    logits_KBC = torch.tensor([[[2.0, 1.0, 0.0], [0.0, 1.0, 0.0]]])
    soft_BC = torch.tensor([[0.6, 0.4, 0.0], [0.5, 0.2, 0.3]])
    assert TOP1.in_training(logits_KBC, soft_BC).item() == 50
    assert TOP1.evidence(logits_KBC, soft_BC).tolist() == [[0, 0], [1, 0]]
