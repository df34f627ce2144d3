"""A teacher: the loss that it adds, that it never changes, what is refused, what the run records of it."""
from __future__ import annotations

import copy
import dataclasses
import json
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from timm_collab import load_run
from timm_collab.train import TrainError
from timm_collab.train.config import TeacherConfig
from timm_collab.train.loop.step import TrainState
from timm_collab.train.loop.teacher import Teacher, load_teacher
from timm_collab.train.record.cost import forward_multiply_adds
from timm_collab.train.record.summary_parts import TeacherSummary
from timm_collab.train.run import train

from .. import toys

STUDENT = ['--model.heads=1', '--max_loss=1e6']


@pytest.fixture(scope='module')
def teacher_run(tmp_path_factory):
    """The finished run of a tree of two heads, normalised otherwise than its students."""
    from timm_collab.train.config.parse import parse_config
    folder = tmp_path_factory.mktemp('teacher') / 'run'
    train(parse_config([
        '--model.name=collab_test_resnet', '--model.heads=2', '--data.path=builtin:digits', '--data.img_size=16',
        '--data.in_chans=1', '--data.max_train_samples=128', '--augment.no_aug=true', '--optim.lr=0.02', '--epochs=2',
        '--batch_size=32', '--data.mean=[0.2]', '--data.std=[0.4]', '--plots=false', f'--output={folder}']))
    return folder


def make_teacher(mean: tuple[float, ...] = (0.5,), std: tuple[float, ...] = (0.25,)) -> Teacher:
    network = toys.make_model(1).prune().eval().requires_grad_(False)
    return Teacher(network, mean, std, (0.5,), (0.5,), TeacherSummary())


def update(config, teacher: Teacher, **accelerate) -> tuple[TrainState, torch.Tensor, torch.nn.Module, torch.Tensor]:
    """One update; also the model before it, and its images."""
    model = toys.make_model(1, drop_rate=0.0)
    before = copy.deepcopy(model)
    state = TrainState(config, model, 4, Accelerator(cpu=True, **accelerate), teacher)
    state.begin_epoch(0)
    images, labels_B = (tensor[:32] for tensor in toys.make_data())
    return state, state.train_step(images, labels_B, labels_B, 0, 0), before, images


@pytest.mark.parametrize(('keys', 'weights'), [
    ([], (1.0, 1.0)),
    (['--teacher.task_loss_weight=0.3'], (0.3, 0.7)),
    (['--teacher.distill_loss_weight=2', '--teacher.temperature=1.5'], (1.0, 2.0)),
    (['--teacher.distill_loss_weight=2', '--teacher.task_loss_weight=0', '--grad_accum_steps=2'], (0.0, 2.0)),
])
def test_the_loss_is_that_of_the_labels_and_that_of_the_teacher(recipe, keys, weights) -> None:
    config = recipe(*STUDENT, '--teacher.name=resnet18', *keys)
    teacher = make_teacher()
    _, row, before, images = update(config, teacher)
    labels_B = toys.make_data()[1][:32]
    expected, steps, temperature = torch.zeros(3), config.grad_accum_steps, config.teacher.temperature
    for part, label_b in zip(images.chunk(steps), labels_B.chunk(steps), strict=True):
        z = before.train()(part)[0].detach()
        # The teacher saw images of another mean and deviation.
        taught = teacher.network((part * 0.5 + 0.5 - 0.5) / 0.25)
        hard = F.cross_entropy(z, label_b)
        soft = temperature**2 * F.kl_div(
            (z / temperature).log_softmax(-1), (taught / temperature).softmax(-1), reduction='batchmean')
        expected += torch.stack([weights[0] * hard + weights[1] * soft, hard, soft]) / steps
    torch.testing.assert_close(row[[0, 3, 4]], expected, rtol=1e-4, atol=1e-6)
    assert soft > 0.01, 'or there is nothing to see'


def test_the_teacher_never_changes_and_is_in_no_checkpoint(recipe) -> None:
    teacher = make_teacher()
    before = {name: tensor.clone() for name, tensor in teacher.network.state_dict().items()}
    state, _, student, _ = update(recipe(*STUDENT, '--teacher.name=resnet18', '--optim.clip_grad=1'), teacher)
    assert not any(module.training for module in teacher.network.modules()) and state.model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.network.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.network.parameters())
    saved = state.state_dict(buffers_differ=False)
    assert saved['model'].keys() == student.state_dict().keys() and not saved['criterion']
    learning = {id(parameter) for group in state.optimizer.param_groups for parameter in group['params']}
    assert learning == {id(parameter) for parameter in state.model.parameters()}
    assert state.release() is state.model


def test_the_teacher_computes_in_the_precision_of_the_model(recipe) -> None:
    teacher = make_teacher()
    seen = []
    teacher.network.get_classifier().register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    update(recipe(*STUDENT, '--teacher.name=resnet18'), teacher, mixed_precision='bf16')
    assert seen == [torch.bfloat16]


def test_model_and_teacher_compile(recipe) -> None:
    config = recipe(*STUDENT, '--teacher.name=resnet18')
    _, eager, _, _ = update(config, make_teacher())
    compiled = dataclasses.replace(config, compile=True, compile_backend='eager')
    state, row, _, _ = update(compiled, make_teacher())
    torch.testing.assert_close(row, eager, rtol=1e-4, atol=1e-5)
    assert state.release() is state.model


def test_a_run_records_its_teacher(recipe, teacher_run, tmp_path, capsys) -> None:
    summary = train(recipe(*STUDENT, f'--teacher.path={teacher_run}'))
    run, facts = load_run(teacher_run), summary.teacher
    assert facts is not None
    assert json.loads((tmp_path / 'run' / 'summary.json').read_text())['teacher'] == dataclasses.asdict(facts)
    tree = run.load_tree()
    kept = tree.prune()
    assert facts.path == str(teacher_run) and facts.name is None and facts.architecture == 'test_resnet'
    assert (facts.error, facts.error_on) == (run.summary.scores.kept, run.summary.error_on)
    assert facts.parameters == run.summary.parameters.kept
    assert facts.train_seconds == run.summary.train_seconds
    assert facts.multiply_adds == forward_multiply_adds(kept, (1, 16, 16))
    # Two epochs of 128 images, a step three forward passes through both heads.
    assert facts.train_multiply_adds == 3 * forward_multiply_adds(tree, (1, 16, 16)) * 128 * 2
    [row] = map(json.loads, (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines())
    assert row['train_loss'] == pytest.approx(row['train_hard_heads'][0] + row['train_soft_heads'][0], rel=1e-5)
    assert summary.parameters.trained == summary.parameters.kept
    assert f'teacher: {teacher_run}, test_resnet, ' in capsys.readouterr().out


def test_the_teacher_of_a_run_is_its_kept_head(teacher_run) -> None:
    run = load_run(teacher_run)
    data_config = {**run.data_config, 'mean': (0.5,), 'std': (0.5,)}
    teacher = load_teacher(TeacherConfig(path=str(teacher_run)), 10, run.class_names, data_config)
    assert (teacher.mean, teacher.std, teacher.given_mean) == ((0.2,), (0.4,), (0.5,))
    plain = timm.create_model(f'local-dir:{teacher_run / "pruned"}', pretrained=True).eval()
    images = torch.randn(3, 1, 16, 16)
    assert torch.equal(teacher.network(images), plain(images))
    by_name = load_teacher(
        TeacherConfig(name=f'local-dir:{teacher_run / "pruned"}'), 10, run.class_names, data_config)
    assert torch.equal(by_name.network(images), plain(images))
    assert by_name.facts.sha256 == teacher.facts.sha256 and by_name.facts.train_seconds is None
    assert (by_name.mean, by_name.std) == ((0.2,), (0.4,))
    names = [*run.class_names[:3], 'four', *run.class_names[4:]]
    with pytest.raises(TrainError, match="knows class 3 as '3', the data as 'four'"):
        load_teacher(TeacherConfig(path=str(teacher_run)), 10, names, data_config)
    with pytest.raises(TrainError, match='has 10 classes, the data have 7'):
        load_teacher(TeacherConfig(path=str(teacher_run)), 7, None, data_config)
    with pytest.raises(TrainError, match=r"can't take images of \(3, 16, 16\)"):
        load_teacher(TeacherConfig(path=str(teacher_run)), 10, None, {**data_config, 'input_size': (3, 16, 16)})


def test_a_checkpoint_is_loaded_into_its_architecture(teacher_run) -> None:
    run = load_run(teacher_run)
    weights = str(teacher_run / 'pruned' / 'model.safetensors')
    config = TeacherConfig(name='test_resnet', checkpoint=weights)
    loaded = load_teacher(config, 10, None, run.data_config)
    of_run = load_teacher(TeacherConfig(path=str(teacher_run)), 10, None, run.data_config)
    assert loaded.facts.sha256 == of_run.facts.sha256 and math.isfinite(loaded.mean[0])


@pytest.mark.parametrize(('keys', 'message'), [
    (['--teacher.path=nowhere'], "teacher.path: run 'nowhere' is no folder"),
    (['--teacher.path={unfinished}'], "teacher.path: run '.*' is not finished"),
    (['--teacher.name=resnet19'], "teacher.name: timm has no architecture 'resnet19'"),
    (['--teacher.name=collab_resnet18'], "teacher.name 'collab_resnet18' is a head tree"),
    (['--teacher.name=cifar_resnet20'], 'cifar_resnet20'),
])
def test_a_teacher_that_isnt_there_is_told_before_anything_is_written(recipe, tmp_path, keys, message) -> None:
    unfinished = tmp_path / 'unfinished'
    unfinished.mkdir()
    (unfinished / 'config.yaml').touch()
    with pytest.raises(TrainError, match=message):
        train(recipe(*STUDENT, *(key.format(unfinished=unfinished) for key in keys)))
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(('keys', 'message'), [
    (['--teacher.path=a', '--teacher.name=b'], "'a' and teacher.name 'b' are two teachers"),
    (['--teacher.checkpoint=a'], 'needs teacher.name'),
    (['--teacher.temperature=0'], 'must be greater than 0, got 0'),
    (['--teacher.task_loss_weight=2'], 'leaves the teacher a negative weight of 1 - 2.0'),
    (['--teacher.distill_loss_weight=-1'], 'must be at least 0, got -1'),
    (['--teacher.path=a', '--model.heads=4'], 'teaches a single network, got 4 heads'),
    (['--teacher.path=a', '--objective.hard=bce'], 'it needs objective.hard ce, got bce'),
])
def test_keys_that_contradict_themselves_are_refused(recipe, keys, message) -> None:
    with pytest.raises(TrainError, match=message):
        recipe(*STUDENT, *keys)
