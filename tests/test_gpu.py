"""Tests of the trees and the objective that need a GPU: its kernels, memory and graphs."""
from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from tests.objective.test_loss import B, C, make_logits, make_target
from timm_collab import CollaborativeLoss, CollaborativeTask

H = 4

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')


@pytest.fixture(autouse=True)
def deterministic_kernels():
    """Equality bit for bit needs deterministic kernels, and no reduced precision."""
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = False, True


@pytest.mark.parametrize('arch', ['resnet18', 'vit_tiny_patch16_224', 'convnext_atto', 'efficientnet_b0'])
def test_every_head_prunes_bit_for_bit(arch: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(f'collab_{arch}', heads=4, num_classes=C).cuda().eval()
    x = torch.randn(B, 3, 224, 224, device='cuda')
    with torch.inference_mode(), torch.autocast('cuda', dtype=torch.bfloat16):
        logits_HBC = model.forward_heads(x)
        for head in range(4):
            assert torch.equal(model.prune(head=head)(x), logits_HBC[head])


@pytest.mark.parametrize('kind', ['index', 'soft'])
@pytest.mark.parametrize('temperature', [2., 3.])
@pytest.mark.parametrize('compiled', [False, True])
def test_objective_matches_the_cpu(kind: str, temperature: float, compiled: bool) -> None:
    torch.compiler.reset()
    loss_fn = CollaborativeLoss(nn.CrossEntropyLoss(label_smoothing=.1), temperature=temperature)
    expected_HBC = make_logits(H)
    expected = loss_fn(expected_HBC, make_target(kind))
    expected.backward()
    if compiled:
        loss_fn.compile()
    logits_HBC = make_logits(H, torch.float32).detach().cuda().requires_grad_()
    loss = loss_fn(logits_HBC, make_target(kind, torch.float32).cuda())
    loss.backward()
    torch.testing.assert_close(loss.cpu().double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits_HBC.grad.cpu().double(), expected_HBC.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_checkpointed_branches_need_the_memory_of_one_network(dtype: torch.dtype) -> None:
    """As `benchmarks/memory.py` on a CPU, but measured by the allocator of the GPU."""
    x, target_B = torch.randn(32, 3, 224, 224, device='cuda'), torch.randint(1000, (32,), device='cuda')

    def step(model: nn.Module) -> int:
        task = CollaborativeTask(model.cuda(), device=torch.device('cuda'), verbose=False).train()
        for _ in range(2):  # the first step allocates the gradients
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.zero_()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with torch.autocast('cuda', dtype=dtype):
                logits_HBC = task._forward_heads(x)
            task.criterion(logits_HBC, target_B).backward()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    torch.manual_seed(0)
    single = step(timm.create_model('resnet50'))
    tree = timm.create_model('collab_resnet50', heads=4)
    checkpointed = copy.deepcopy(tree)
    checkpointed.set_grad_checkpointing(trunk=False)
    full, by_branch = step(tree), step(checkpointed)
    assert by_branch <= 1.35 * single < full
    for (name, a), b in zip(tree.named_parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


def test_cuda_graphs_take_the_same_steps() -> None:
    """`reduce-overhead` records model and objective once, and replays them into the same memory each time."""
    torch.compiler.reset()
    x = torch.randn(4, B, 3, 32, 32, device='cuda')
    target = torch.randint(C, (4, B), device='cuda')
    losses: dict[bool, list[float]] = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        model = timm.create_model('collab_test_resnet', heads=H, num_classes=C).cuda()
        task = CollaborativeTask(model, device=torch.device('cuda'), verbose=False).train()
        if compiled:
            task.compile(mode='reduce-overhead')
        optimizer = torch.optim.SGD(model.parameters(), lr=.01, momentum=.9)
        losses[compiled] = []
        for step in range(12):
            result = task(x[step % 4], target[step % 4])
            result['loss'].backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[compiled].append(float(result['loss'].detach()))
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)
