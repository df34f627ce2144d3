"""The task with a small handwritten tree: [H, B, C] in train mode, [B, C] of the kept head in eval mode."""
from __future__ import annotations

import logging
from pathlib import Path

import pytest
import timm
import timm.loss
import torch
import torch.distributed as dist
from timm.task import ClassificationTask, TrainingTask
from torch import nn

from tests.fork_server import Launch
from tests.objective.tiny_tree import B, C, H, TinyTree, gradients, make_batch, make_tree
from timm_collab.objective.loss import CollaborativeLoss
from timm_collab.objective.task import CollaborativeTask


def test_result_has_the_objective_of_all_heads() -> None:
    model, (x, target) = make_tree(), make_batch()
    task = CollaborativeTask(model, temperature=3., beta=0.25, verbose=False).train()
    assert isinstance(task, TrainingTask)
    result = task(x, target)

    logits_HBC = model(x)
    loss_fn = CollaborativeLoss(temperature=3., beta=0.25)
    hard_H, soft_H = loss_fn.terms(logits_HBC, target)
    assert set(result) == {'loss', 'output', 'logits', 'hard', 'soft'}
    assert torch.equal(result['loss'], loss_fn(logits_HBC, target))
    assert torch.equal(result['logits'], logits_HBC)
    assert torch.equal(result['output'], logits_HBC[1])
    torch.testing.assert_close((result['hard'], result['soft']), (hard_H.detach(), soft_H.detach()), rtol=1e-5, atol=0.)
    # Detached, so that a training loop can average them without keeping the graph of every step.
    assert not result['hard'].requires_grad and not result['soft'].requires_grad

    result['loss'].backward()
    assert all(gradient.any() for gradient in gradients(model).values())


def test_training_lowers_the_loss_of_every_head() -> None:
    task, (x, target) = CollaborativeTask(make_tree(), verbose=False).train(), make_batch()
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    first = task(x, target)
    for _ in range(20):
        optimizer.zero_grad()
        task(x, target)['loss'].backward()
        optimizer.step()
    last = task(x, target)
    assert (last['hard'] < 0.5 * first['hard']).all()
    assert last['output'].argmax(dim=1).eq(target).all()


def test_eval_mode_evaluates_one_head_and_has_the_loss_of_all() -> None:
    model, (x, target) = make_tree(), make_batch()
    task = CollaborativeTask(model, verbose=False).eval()
    with torch.no_grad():
        result = task(x, target)
        assert result['logits'].shape == (H, B, C)
        assert torch.equal(task.get_eval_model()(x), result['output'])


def test_plain_model_trains_as_in_timm_task() -> None:
    """A model with [B, C] logits has the same loss, gradients and weights as in timm's task, bit for bit."""
    x, target = torch.randn(B, 3, 32, 32), make_batch()[1]
    weights = []
    for task_cls in (ClassificationTask, CollaborativeTask):
        torch.manual_seed(0)
        model = timm.create_model('test_resnet', num_classes=C)
        task = task_cls(model, timm.loss.LabelSmoothingCrossEntropy(0.1), verbose=False).train()
        optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            result = task(x, target)
            result['loss'].backward()
            optimizer.step()
        assert result['output'].shape == (B, C)
        weights.append([*model.state_dict().values(), result['loss'].detach()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*weights, strict=True))


def test_one_head_trains_as_the_plain_network() -> None:
    x, target = torch.randn(B, 3, 32, 32), make_batch()[1]
    weights = []
    for task_cls, name, kwargs in (
            (ClassificationTask, 'test_resnet', {}), (CollaborativeTask, 'collab_test_resnet', {'heads': 1})):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=C, **kwargs)
        task = task_cls(model, nn.CrossEntropyLoss(), verbose=False).train()
        optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            task(x, target)['loss'].backward()
            optimizer.step()
        weights.append((model.prune() if kwargs else model).state_dict())
    plain, pruned = weights
    assert list(pruned) == list(plain)
    assert all(torch.equal(pruned[key], plain[key]) for key in plain)


def test_head_tree_of_a_timm_architecture() -> None:
    x, target = torch.randn(B, 3, 32, 32), make_batch()[1]
    torch.manual_seed(0)
    model = timm.create_model('collab_test_resnet', heads=4, kept_head=2, num_classes=C)
    task = CollaborativeTask(model, verbose=False).train()
    task.setup_ema(decay=0.)
    result = task(x, target)
    assert result['logits'].shape == (4, B, C)
    assert torch.equal(result['output'], result['logits'][2])
    result['loss'].backward()
    # Some gradients are still zero: timm initializes the last BatchNorm of a residual branch to zero.
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(classifier.weight.grad.any() for classifier in model.get_classifier())

    clipped = {id(parameter) for parameter in task.get_clip_parameters(exclude_head=True)}
    excluded = {name: p for name, p in model.named_parameters() if id(p) not in clipped}
    assert len(excluded) == 8 and all(C in p.shape for p in excluded.values())

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(0.1 * parameter.grad)
    task.update_ema()
    task.eval()
    assert torch.equal(task.get_eval_model()(x), model.prune(2).eval()(x))
    assert torch.equal(task.get_eval_model(ema=True)(x), task.get_eval_model()(x))

    torch.manual_seed(1)
    other = CollaborativeTask(timm.create_model('collab_test_resnet', heads=4, num_classes=C), verbose=False).eval()
    checkpoint = task.get_checkpoint_state()
    other.load_checkpoint_state(checkpoint['state_dict'], checkpoint['task_state'])
    assert other.trainable_module.kept_head == 2
    assert torch.equal(other.get_eval_model()(x), task.get_eval_model()(x))


def test_criterion_may_be_a_collaborative_loss() -> None:
    loss_fn = CollaborativeLoss(timm.loss.BinaryCrossEntropy(), temperature=4., beta=0.1)
    assert CollaborativeTask(make_tree(), loss_fn, verbose=False).criterion is loss_fn
    with pytest.raises(ValueError, match=r'temperature=3.0, beta=0.333\d*, scale_by_t2=True and full_labels=True'):
        CollaborativeTask(make_tree(), loss_fn, temperature=3.0)
    with pytest.raises(ValueError, match=r'full_labels=False would be ignored'):
        CollaborativeTask(make_tree(), loss_fn, full_labels=False)
    task = CollaborativeTask(make_tree(), beta=0.25, verbose=False)
    assert (task.criterion.hard_weight, task.criterion.soft_weight) == (1., 3.)
    task = CollaborativeTask(make_tree(), beta=0.25, full_labels=False, verbose=False)
    assert (task.criterion.hard_weight, task.criterion.soft_weight) == (0.25, 0.75)


@pytest.mark.skipif(not hasattr(timm.loss, 'create_classification_loss'), reason='this timm makes no criteria')
def test_criterion_kwargs() -> None:
    task = CollaborativeTask(make_tree(), criterion_kwargs={'smoothing': 0.1}, verbose=False)
    assert isinstance(task.criterion.criterion, timm.loss.LabelSmoothingCrossEntropy)
    assert not task.criterion.multi_label

    task = CollaborativeTask(make_tree(), criterion_kwargs={'multi_label': True}, beta=0.1, verbose=False).train()
    assert task.criterion.multi_label and task.criterion.beta == 0.1
    x, target = make_batch()
    assert task(x, nn.functional.one_hot(target, C).float())['loss'].isfinite()


def test_criterion_and_criterion_kwargs_raise() -> None:
    with pytest.raises(ValueError, match=r"pass either the criterion or \['smoothing'\], not both"):
        CollaborativeTask(make_tree(), nn.CrossEntropyLoss(), criterion_kwargs={'smoothing': 0.1})


def test_target_of_another_batch_size_raises() -> None:
    x, target = make_batch()
    with pytest.raises(ValueError, match='logits have batch 8, target has 4'):
        CollaborativeTask(make_tree(), verbose=False).train()(x, target[:4])


def test_clip_parameters_without_any_classifier() -> None:
    task = CollaborativeTask(make_tree(), verbose=False)
    names = {id(parameter): name for name, parameter in task.trainable_module.named_parameters()}
    all_names = [names[id(parameter)] for parameter in task.get_clip_parameters()]
    kept = [names[id(parameter)] for parameter in task.get_clip_parameters(exclude_head=True)]
    assert all_names == list(names.values())
    assert kept == [name for name in all_names if '.fc.' not in name and '.norm.' not in name]
    assert len(all_names) - len(kept) == 4 * H


@pytest.mark.parametrize('arch', ['test_resnet', 'deit_tiny_distilled_patch16_224'])
def test_clip_parameters_of_timm_models(arch: str) -> None:
    with torch.device('meta'):
        model = timm.create_model(arch, num_classes=C)
    task = CollaborativeTask(model, verbose=False)
    heads = {id(p) for name, p in model.named_parameters() if name.split('.')[0] in ('fc', 'head', 'head_dist')}
    assert len(heads) in (2, 4)
    assert {id(p) for p in task.get_clip_parameters(exclude_head=True)} == {id(p) for p in model.parameters()} - heads


def test_compiled_task_trains_and_evaluates_alike() -> None:
    x, target = make_batch()
    plain = CollaborativeTask(make_tree(), verbose=False).train()
    plain(x, target)['loss'].backward()

    torch.compiler.reset()
    model = make_tree()
    task = CollaborativeTask(model, verbose=False)
    compiled = task.compile(backend='eager', fullgraph=True)
    assert task.eval_model is task.get_eval_model() is compiled
    task.train()
    task(x, target)['loss'].backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, plain.trainable_module.get_parameter(name).grad)

    assert task.eval()(x, target)['logits'].shape == (H, B, C)
    assert torch.equal(task.get_eval_model()(x), model(x))
    assert set(task.get_checkpoint_state()['state_dict']) == set(model.state_dict())


def test_ema_of_the_kept_head() -> None:
    model, (x, _) = make_tree(), make_batch()
    task = CollaborativeTask(model, verbose=False).train()
    task.setup_ema(decay=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.)
    task.update_ema()
    averaged = task.get_checkpoint_state(ema=True)['state_dict_ema']
    for name, _ in model.named_parameters():
        torch.testing.assert_close(averaged[name], before[name] + 0.5)
    assert task.get_eval_model(ema=True)(x).shape == (B, C)


@pytest.mark.parametrize('ema', [False, True])
def test_checkpoint_round_trip(ema: bool) -> None:
    x, _ = make_batch()
    tasks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        tasks.append(CollaborativeTask(TinyTree(), verbose=False))
        tasks[-1].setup_ema()
    old, new = (task.get_trainable_module(ema).module if ema else task.trainable_module for task in tasks)
    old.kept_head = 2
    suffix = '_ema' if ema else ''
    checkpoint = tasks[0].get_checkpoint_state(ema=ema)
    assert set(checkpoint) == {f'state_dict{suffix}', f'task_state{suffix}'}
    assert set(checkpoint[f'state_dict{suffix}']) == set(old.state_dict())

    tasks[1].load_checkpoint_state(checkpoint[f'state_dict{suffix}'], checkpoint[f'task_state{suffix}'], ema=ema)
    assert new.kept_head == 2
    assert torch.equal(new.eval()(x), old.eval()(x))
    tasks[1].load_checkpoint_state(checkpoint[f'state_dict{suffix}'], ema=ema)  # a checkpoint without a task state
    assert new.kept_head == 2


def test_plain_model_has_no_task_state() -> None:
    task = CollaborativeTask(timm.create_model('test_resnet', num_classes=C), verbose=False)
    assert set(task.get_checkpoint_state()) == {'state_dict'}


@pytest.mark.skipif(not hasattr(TrainingTask, 'create_evaluator'), reason='this timm has no evaluators')
def test_timm_evaluator() -> None:
    task, (x, target) = CollaborativeTask(make_tree(), verbose=False).eval(), make_batch()
    evaluator = task.create_evaluator()
    with torch.no_grad():
        output = task.get_eval_model()(x)
    evaluator.update(output, target)
    metrics = evaluator.compute()
    assert metrics['top1'] == pytest.approx(100 * output.argmax(dim=1).eq(target).float().mean().item())


def train_on_two_ranks(rank: int, folder: str) -> None:
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    try:
        x, target = make_batch()
        half = slice(rank * B // 2, (rank + 1) * B // 2)
        model = make_tree(norm=False)
        task = CollaborativeTask(model, verbose=False).prepare_distributed().train()
        with task.no_sync():
            task(x[half], target[half])['loss'].backward()
        local = model.trunk[1].weight.grad.clone()
        model.zero_grad()
        result = task(x[half], target[half])
        result['loss'].backward()
        torch.save({
            'local': local,
            'gradients': gradients(model),
            'logits': result['logits'].detach(),
            'keys': list(task.get_checkpoint_state()['state_dict']),
            'clipped': len(list(task.get_clip_parameters(exclude_head=True))),
            'eval': task.eval()(x, target)['logits'].shape,
        }, f'{folder}/{rank}.pt')
    finally:
        dist.destroy_process_group()


@pytest.mark.multiprocess
def test_two_ranks_match_one_step_on_the_full_batch(tmp_path: Path) -> None:
    code = """
import os
from tests.objective import test_task
test_task.train_on_two_ranks(int(os.environ['RANK']), '.')
"""
    Launch(['-c', code], tmp_path, 2).finish()
    ranks = [torch.load(tmp_path / f'{rank}.pt') for rank in range(2)]

    x, target = make_batch()
    model = make_tree(norm=False)
    result = CollaborativeTask(model, verbose=False).train()(x, target)
    result['loss'].backward()
    for name, expected in gradients(model).items():
        torch.testing.assert_close(ranks[0]['gradients'][name], expected)
        assert torch.equal(ranks[0]['gradients'][name], ranks[1]['gradients'][name])
    torch.testing.assert_close(torch.cat([rank['logits'] for rank in ranks], dim=1), result['logits'].detach())
    assert not torch.equal(ranks[0]['local'], ranks[1]['local'])
    assert ranks[0]['keys'] == list(model.state_dict())
    assert ranks[0]['clipped'] == len(list(model.parameters())) - 4 * H
    assert ranks[0]['eval'] == (H, B, C)


def test_objective_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger='timm_collab.objective.task'):
        CollaborativeTask(make_tree(), verbose=False)
        assert not caplog.records
        CollaborativeTask(make_tree(), temperature=4.)
    assert 'temperature=4.0' in caplog.text
