"""timm's own training: its task, and the training script of its repository, which pip does not install."""
from __future__ import annotations

import argparse
import copy
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.task import ClassificationTask, LogitDistillationTask, resume_task_checkpoint
from timm.utils import CheckpointSaver
from torch import nn

from tests.tester import images
from timm_collab import CollabModel, CollaborativeTask

SCRIPT = 'TIMM_TRAIN_SCRIPT'
MultiLabelClassificationTask = getattr(timm.task, 'MultiLabelClassificationTask', None)  # newer timm
needs_script = pytest.mark.skipif(
    SCRIPT not in os.environ, reason=f"{SCRIPT} is not set to the path of timm's train.py, which pip doesn't install",
)


def make(seed: int = 0, **kwargs: Any) -> CollabModel:
    torch.manual_seed(seed)
    return timm.create_model('collab_test_resnet', num_classes=5, **kwargs)


def same(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in a.state_dict().items())


def test_timm_task_of_a_head_tree_is_collaborative() -> None:
    criterion = timm.loss.LabelSmoothingCrossEntropy(.1)
    task = ClassificationTask(model=make(), criterion=criterion, device=torch.device('cpu'), verbose=False)
    assert type(task) is CollaborativeTask and isinstance(task, ClassificationTask)
    result = task.train()(images(64), torch.tensor([1, 2]))
    expected = CollaborativeTask(make(), criterion, verbose=False).train()(images(64), torch.tensor([1, 2]))
    assert torch.equal(result['loss'], expected['loss']) and result['logits'].shape == (4, 2, 5)
    assert type(copy.deepcopy(task)) is CollaborativeTask


def test_other_timm_tasks_reject_a_head_tree() -> None:
    """Their losses would silently broadcast over the heads."""
    message = r"timm's {} can't train a head tree.*CollaborativeTask\(model, criterion\)"
    with pytest.raises(TypeError, match=message.format('LogitDistillationTask')):
        LogitDistillationTask(student_model=make(), teacher_model='test_resnet')
    if MultiLabelClassificationTask is not None:
        with pytest.raises(TypeError, match=message.format('MultiLabelClassificationTask')):
            MultiLabelClassificationTask(make(), verbose=False)

    class CustomTask(ClassificationTask):
        """A user-defined task, which may support heads."""

    assert type(CustomTask(make(), nn.CrossEntropyLoss(), verbose=False)) is CustomTask


def test_arguments_are_in_the_order_of_timm() -> None:
    theirs, ours = (
        list(inspect.signature(task.__init__).parameters) for task in (ClassificationTask, CollaborativeTask))
    assert [name for name in ours if name in theirs] == theirs


def test_timm_task_of_a_plain_network_is_unchanged() -> None:
    plain = timm.create_model('test_resnet', num_classes=5)
    task = ClassificationTask(plain, nn.CrossEntropyLoss(), verbose=False)
    assert type(task) is ClassificationTask
    assert task(images(64), torch.tensor([1, 2]))['output'].shape == (2, 5)


def test_checkpoint_has_the_plain_network_and_resumes_the_tree(tmp_path: Path) -> None:
    model = make(kept_head=2)
    task = ClassificationTask(model, nn.CrossEntropyLoss(), verbose=False)
    task.setup_ema(decay=.5)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(1)
    task.update_ema()
    optimizer = torch.optim.SGD(model.parameters(), lr=.1)
    saver = CheckpointSaver(
        model, optimizer, args=argparse.Namespace(model='collab_test_resnet'), checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path), task=task,
    )
    saver.save_checkpoint(0, metric=1.)
    path = str(tmp_path / 'last.pth.tar')

    checkpoint = torch.load(path, weights_only=False)
    plain = timm.create_model('test_resnet', num_classes=5)
    assert list(checkpoint['state_dict']) == list(checkpoint['state_dict_ema']) == list(plain.state_dict())
    plain.load_state_dict(checkpoint['state_dict'])
    assert same(plain, model.prune(2))
    loaded = timm.create_model('test_resnet', num_classes=5, checkpoint_path=path)
    averaged = task.get_trainable_module(ema=True).module
    assert same(loaded, averaged.prune())  # timm prefers the EMA weights
    twice = sum(tensor.nbytes for tensor in (*model.state_dict().values(), *averaged.state_dict().values()))
    assert Path(path).stat().st_size < 1.2 * twice  # shared tensors are stored once

    other = ClassificationTask(make(1), nn.CrossEntropyLoss(), verbose=False)
    assert resume_task_checkpoint(other, path, log_info=False) == 1
    assert same(other.get_trainable_module(), model) and other.get_trainable_module().kept_head == 2
    other.setup_ema()
    other.load_checkpoint_state(checkpoint['state_dict_ema'], checkpoint['task_state_ema'], ema=True)
    assert same(other.get_trainable_module(ema=True).module, averaged)


def test_plain_checkpoint_initializes_a_tree(tmp_path: Path) -> None:
    plain = timm.create_model('test_resnet', num_classes=5)
    torch.save({'state_dict': plain.state_dict()}, tmp_path / 'plain.pth')
    task = ClassificationTask(make(branch_init='copy'), nn.CrossEntropyLoss(), verbose=False)
    resume_task_checkpoint(task, str(tmp_path / 'plain.pth'), log_info=False)
    assert all(same(task.get_trainable_module().prune(head), plain) for head in range(4))


def run_script(folder: Path, *arguments: str) -> str:
    command = [
        sys.executable, os.environ[SCRIPT], '--data-dir', str(folder / 'data'), '--device-modules', 'timm_collab',
        '--device', 'cpu', '--model', 'collab_test_resnet', '--model-kwargs', 'heads=3', 'pattern=simple',
        '--num-classes', '2', '--img-size', '32', '-b', '8', '--lr', '.05', '--opt', 'sgd', '--warmup-epochs', '0',
        '--cooldown-epochs', '0', '--no-prefetcher', '-j', '1', '--output', str(folder), *arguments,
    ]
    environment = {**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stderr + run.stdout


@needs_script
def test_timm_script_trains_a_head_tree_and_resumes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for split in ('train', 'validation'):
        for label, brightness in (('dark', 0), ('light', 128)):
            folder = tmp_path / 'data' / split / label
            folder.mkdir(parents=True)
            for index in range(16):
                pixels = generator.integers(brightness, brightness + 128, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f'{index}.png')

    output = run_script(
        tmp_path, '--experiment', 'first', '--epochs', '2', '--model-ema', '--model-ema-decay', '.9',
        '--head-init-scale', '.5', '--head-init-bias', '-1')
    assert 'CollaborativeTask: criterion=' in output
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = torch.load(tmp_path / 'first' / 'last.pth.tar')
    plain = timm.create_model('test_resnet', num_classes=2)
    plain.load_state_dict(checkpoint['state_dict'], strict=True)
    tree = timm.create_model('collab_test_resnet', heads=3, pattern='simple', num_classes=2)
    tree.load_state_dict(checkpoint['task_state']['tree'], strict=True)
    assert same(tree.prune(), plain)
    classifiers = [tree.plain_state_dict(head)['fc.weight'] for head in range(3)]
    assert not torch.equal(classifiers[0], classifiers[1])

    path = str(tmp_path / 'first' / 'last.pth.tar')
    output = run_script(tmp_path, '--experiment', 'second', '--epochs', '3', '--resume', path, '--model-ema')
    assert 'Train: 2 [' in output and 'Train: 1 [' not in output
