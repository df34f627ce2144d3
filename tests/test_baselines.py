from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from timm_collab import CollaborativeTask
from timm_collab.baselines import MutualLearningLoss


def logits(heads: int = 4, batch: int = 5, classes: int = 7) -> Tensor:
    return torch.randn(heads, batch, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def reference(logits_HBC: Tensor, target_B: Tensor, temperature: float, beta: float, scale: float) -> Tensor:
    """Eq. 5 and 6 pair by pair: peers are constants."""
    total = logits_HBC.new_zeros(())
    for h, own_BC in enumerate(logits_HBC):
        pairs = [
            F.kl_div(
                F.log_softmax(own_BC / temperature, dim=-1),
                F.softmax(other_BC.detach() / temperature, dim=-1),
                reduction='batchmean',
            )
            for j, other_BC in enumerate(logits_HBC) if j != h
        ]
        total = total + beta * F.cross_entropy(own_BC, target_B) + (1 - beta) * scale * torch.stack(pairs).mean()
    return total


@pytest.mark.parametrize(('heads', 'temperature', 'beta', 'scale_by_t2'), [
    (2, 1., .5, True), (4, 1., .5, True), (4, 3., .2, True), (5, 3., .8, False),
])
def test_mutual_learning_is_that_of_the_paper(heads: int, temperature: float, beta: float, scale_by_t2: bool) -> None:
    ours, theirs = (logits(heads).requires_grad_() for _ in range(2))
    target_B = torch.tensor([0, 6, 3, 3, 1])
    loss = MutualLearningLoss(temperature=temperature, beta=beta, scale_by_t2=scale_by_t2)(ours, target_B)
    expected = reference(theirs, target_B, temperature, beta, temperature ** 2 if scale_by_t2 else 1.)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)


def test_heads_that_agree_have_nothing_to_teach() -> None:
    alike_HBC = logits(1).expand(3, -1, -1)
    hard_H, soft_H = MutualLearningLoss().terms(alike_HBC, torch.tensor([0, 1, 2, 3, 4]))
    torch.testing.assert_close(soft_H, torch.zeros_like(soft_H), rtol=0, atol=1e-12)
    assert (hard_H > 0).all()


def test_a_batch_may_be_summed() -> None:
    target_B = torch.tensor([0, 6, 3, 3, 1])
    mean_H = MutualLearningLoss().terms(logits(), target_B)[1]
    sum_H = MutualLearningLoss(nn.CrossEntropyLoss(reduction='sum')).terms(logits(), target_B)[1]
    torch.testing.assert_close(sum_H, 5 * mean_H)


def test_independent_labels_are_refused() -> None:
    with pytest.raises(ValueError, match='takes no independent labels'):
        MutualLearningLoss(nn.BCEWithLogitsLoss())


def test_it_is_a_criterion_of_the_task() -> None:
    model = timm.create_model('collab_test_resnet', heads=3, num_classes=5)
    task = CollaborativeTask(model, MutualLearningLoss(temperature=1.), verbose=False).train()
    result = task(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))
    result['loss'].backward()
    assert result['soft'].shape == (3,) and all(param.grad is not None for param in model.parameters())
