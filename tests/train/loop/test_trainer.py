from __future__ import annotations

import math

import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.data import Mixup
from torch import nn

from tests.train.toys import CachedImages, make_data, make_model, make_trainer
from timm_collab.objective.baselines import MutualLearningLoss
from timm_collab.train import TrainError
from timm_collab.train.data.loading.images import training_loader
from timm_collab.train.data.random_streams import keyed_randomness
from timm_collab.train.loop.meter import ExplodedLossError
from timm_collab.train.loop.trainer import Callbacks, Trainer
from timm_collab.train.prepare import make_accelerator
from timm_collab.train.run import train


@pytest.fixture
def data():
    return make_data()


def test_one_head_trains_like_the_plain_network(recipe, data):
    config = recipe('--model.heads=1', '--epochs=3', '--batch_size=16', '--sched.name=none', '--optim.weight_decay=0')
    model = make_model(heads=1)
    plain = model.prune()
    make_trainer(config, model, data=data).fit()

    optimizer = torch.optim.SGD(plain.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    loader, sampler = training_loader(CachedImages(*data), 16, 0, config.seed)
    plain.train()
    for epoch in range(3):
        sampler.epoch = epoch
        for images, target_B in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(images), target_B).backward()
            optimizer.step()
    trained = model.prune().state_dict()
    assert all(torch.equal(trained[name], tensor) for name, tensor in plain.state_dict().items())


def test_rows_hold_what_happened(recipe, data):
    config = recipe('--epochs=4', '--batch_size=16', '--sched.warmup_epochs=1', '--sched.warmup_lr=0.001')
    rows = []
    model = make_model(heads=2)
    trainer = make_trainer(config, model, rows.append)
    result = trainer.fit()
    assert [row['epoch'] for row in rows] == [0, 1, 2, 3]
    assert trainer.num_updates == 4 * 3
    assert rows == result and model.kept_head == rows[-1]['kept_head']
    # Warm-up in the first epoch, then a cosine down.
    lrs = [row['lr'] for row in rows]
    assert lrs[0] == 0.001 and lrs[1] > lrs[2] > lrs[3] > 0
    for row in rows:
        hard, soft = row['train_hard_heads'], row['train_soft_heads']
        assert len(hard) == len(soft) == 2
        assert row['beta'] == 0.5
        assert row['train_loss'] == pytest.approx(0.5 * sum(hard) + 0.5 * sum(soft), rel=1e-5)
        assert row['val']['count'] == 20 and row['images_per_second'] > 0
        assert row['train_top1'].keys() == {'given'} and 0 <= row['train_top1']['given'] <= 100


@pytest.mark.parametrize('steps', [1, 2])
def test_accuracy_in_training_by_the_labels_given_and_by_those_before_noise(recipe, data, monkeypatch, steps):
    images, clean_N = data
    given_N = (clean_N + (torch.arange(48) % 3 == 0)) % 10  # a third of them wrong
    rows, seen = [], []
    config = recipe('--batch_size=16', '--epochs=2', f'--grad_accum_steps={steps}')
    trainer = make_trainer(config, make_model(heads=2), rows.append, data=(images, given_N), clean=clean_N)
    task = trainer.state.task
    forward = task.forward
    monkeypatch.setattr(task, 'forward', lambda x, y, *_: (seen.append((y, result := forward(x, y))), result)[1])
    trainer.fit()
    for epoch, row in enumerate(rows):
        trainer.sampler.epoch = epoch
        clean = clean_N[trainer.sampler.indices()].chunk(3 * steps)
        right = {'given': [], 'clean': []}
        for (given_b, result), clean_b in zip(seen[epoch * 3 * steps:], clean, strict=False):
            predicted = result['logits'].argmax(dim=-1)
            right['given'].append((predicted == given_b).float().mean().item())
            right['clean'].append((predicted == clean_b).float().mean().item())
        for name, shares in right.items():
            assert row['train_top1'][name] == pytest.approx(100 * sum(shares) / len(shares), rel=1e-5)


def test_same_seed_same_weights(recipe, data):
    states = []
    for _ in range(2):
        model = make_model(heads=2)
        make_trainer(recipe('--batch_size=16'), model, data=data).fit()
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_nan_names_epoch_and_step(recipe, data):
    images, target_N = data
    config = recipe('--batch_size=16', '--epochs=2')
    _, sampler = training_loader(CachedImages(*data), 16, 0, config.seed)
    # The batch that comes second in the first epoch.
    images = images.clone()
    images[[index for _, index in sampler][20]] = float('nan')
    with pytest.raises(ExplodedLossError, match=r'the loss is nan at epoch 0, step 1 \(both from 0\): lower optim.lr'):
        make_trainer(config, make_model(heads=2), data=(images, target_N)).fit()


@pytest.mark.parametrize('precision', ['bf16'])
def test_mixed_precision_trains_and_prunes_in_float32(recipe, data, precision):
    model = make_model(heads=2)
    config = recipe('--batch_size=16')
    trainer = make_trainer(config, model, accelerator=Accelerator(cpu=True, mixed_precision=precision))
    row = trainer.fit()[-1]
    assert torch.isfinite(torch.tensor(row['train_loss']))
    released = trainer.release().eval()
    assert released is model and released(data[0][:2]).dtype == torch.float32
    assert all(tensor.dtype == torch.float32 for tensor in model.prune().parameters())


def trained(recipe, data, *argv: str, arch: str = 'collab_test_resnet') -> dict[str, torch.Tensor]:
    set_seed(0)
    model = timm.create_model(arch, heads=2, num_classes=10, in_chans=1)
    config = recipe('--batch_size=16', '--epochs=2', *argv)
    make_trainer(config, model, data=data).fit()
    return model.state_dict()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_parts_of_a_batch_add_up_to_the_batch(recipe):
    # a network without batch statistics in float64: what is left is the order of additions
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(48, 1, 160, 160, generator=generator).double(), torch.randint(10, (48,), generator=generator)
    states = []
    for steps in (1, 4):
        set_seed(0)
        model = timm.create_model('collab_test_vit', heads=2, num_classes=10, in_chans=1).double()
        config = recipe('--batch_size=16', f'--grad_accum_steps={steps}', '--optim.clip_grad=1.0')
        trainer = make_trainer(config, model, data=data)
        assert trainer.updates_per_epoch == 3
        row = trainer.fit()[-1]
        states.append((model.state_dict(), row['train_loss']))
    (whole, loss), (parts, loss_of_parts) = states
    assert loss_of_parts == pytest.approx(loss, rel=1e-6)  # logged in float32
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(('mode', 'limit'), [('norm', 0.1), ('value', 0.001), ('agc', 0.01)])
def test_clipping_limits_what_it_says(recipe, data, mode, limit):
    model = make_model(heads=2)
    config = recipe('--batch_size=16', f'--optim.clip_mode={mode}', f'--optim.clip_grad={limit}')
    trainer = make_trainer(config, model, data=data)
    found, before = {}, {}

    def look(*_):
        found.update({name: param.grad.clone() for name, param in model.named_parameters()})
        before.update({name: param.detach().clone() for name, param in model.named_parameters()})

    trainer.state.optimizer.optimizer.register_step_pre_hook(look)
    trainer.train_one_epoch()
    if mode == 'norm':
        norm = torch.stack([grad.norm() for grad in found.values()]).norm().item()
        assert norm == pytest.approx(limit, rel=1e-4)
    elif mode == 'value':
        assert max(grad.abs().max().item() for grad in found.values()) == pytest.approx(limit)
    else:
        weights = {name: param for name, param in before.items() if param.ndim > 1 and '.fc.' not in name}
        assert weights
        for name, param in weights.items():
            units, grads = param.flatten(1).norm(dim=1).clamp_min(1e-3), found[name].flatten(1).norm(dim=1)
            assert (grads <= limit * units * 1.001).all(), name
    assert not equal(trained(recipe, data), trained(recipe, data, f'--optim.clip_mode={mode}',
                                                    f'--optim.clip_grad={limit}'))


def test_less_memory_and_another_layout_change_nothing_but_rounding(recipe, data):
    expected = trained(recipe, data)
    for what in ('true', 'branches'):
        assert equal(trained(recipe, data, f'--grad_checkpointing={what}'), expected)
    for name, tensor in trained(recipe, data, '--channels_last=true').items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-2, atol=1e-3)


def test_lower_layers_learn_slower_with_layer_decay(recipe, data):
    config = recipe('--optim.layer_decay=0.5', '--optim.name=adamw', '--optim.kwargs={betas: [0.9, 0.95]}')
    model = make_model(heads=2)
    trainer = make_trainer(config, model, data=data)
    scale = {id(p): group['lr_scale'] for group in trainer.state.optimizer.param_groups for p in group['params']}
    named = dict(model.named_parameters())
    first, last = named['nodes.trunk.conv1.0.weight'], named['nodes.branch_1.fc.weight']
    assert scale[id(first)] < scale[id(last)] == 1.0
    assert all(tuple(group['betas']) == (0.9, 0.95) for group in trainer.state.optimizer.param_groups)


def test_a_run_in_channels_last_is_saved_as_any(recipe, tmp_path):
    summary = train(recipe('--channels_last=true', '--grad_accum_steps=2', '--batch_size=16'))
    model = timm.create_model(f'local-dir:{tmp_path / "run" / "pruned"}', pretrained=True)
    assert sum(p.numel() for p in model.parameters()) == summary.parameters.kept


@pytest.mark.parametrize('warmup', [False, True])
def test_the_average_of_the_weights_is_what_is_judged_and_kept(recipe, data, warmup):
    config = recipe('--batch_size=16', '--epochs=2', '--ema.decay=0.6', f'--ema.warmup={str(warmup).lower()}')
    model, rows = make_model(heads=2), []
    trainer = make_trainer(config, model, rows.append)
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = {}

    def follow(*_):
        decay = trainer.state.ema.get_decay(trainer.num_updates + 1)
        assert warmup or decay == (0.6 if trainer.num_updates else 0.0)  # timm starts the average at the first step
        for name, tensor in model.state_dict().items():
            weights[name] = tensor.clone()
            average[name] = average[name].lerp(tensor, 1 - decay) if tensor.is_floating_point() else tensor.clone()

    trainer.state.optimizer.optimizer.register_step_post_hook(follow)
    result = trainer.fit()
    final = trainer.release().state_dict()
    for name, tensor in average.items():
        torch.testing.assert_close(final[name], tensor, rtol=1e-5, atol=1e-6)
    assert not equal(weights, final)
    assert rows[-1]['val'] == trainer.score(trainer.val_loader).row(model.kept_head)
    assert rows[-1]['kept_head'] == model.kept_head == result[-1]['kept_head']
    assert rows[-1]['val_without_ema']['loss_heads'] != rows[-1]['val']['loss_heads']


def test_without_an_average_nothing_is_said_of_it(recipe, data):
    rows = []
    make_trainer(recipe('--batch_size=16', '--epochs=1'), make_model(heads=2), rows.append).fit()
    assert 'val_without_ema' not in rows[0]
    with pytest.raises(TrainError, match=r'ema.decay must lie in \[0, 1\), got 1.0'):
        recipe('--ema.decay=1.0')
    with pytest.raises(TrainError, match=r'ema.warmup needs ema.decay'):
        recipe('--ema.warmup=true')


def batches_of(trainer: Trainer, monkeypatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What the task is given, batch by batch."""
    seen = []
    task = trainer.state.task
    forward = task.forward
    monkeypatch.setattr(task, 'forward', lambda x, y, *_: (seen.append((x.clone(), y.clone())), forward(x, y))[1])
    trainer.fit()
    return seen


@pytest.mark.parametrize('mode', ['batch', 'pair', 'elem'])
def test_batches_are_mixed_as_timm_mixes_them(recipe, data, monkeypatch, mode):
    config = recipe('--batch_size=16', '--epochs=3', '--augment.mixup=0.8', '--augment.cutmix=1.0',
                    f'--augment.mixup_mode={mode}', '--objective.smoothing=0.1', '--augment.mixup_off_epoch=2')
    seen = batches_of(make_trainer(config, make_model(heads=2)), monkeypatch)
    again = batches_of(make_trainer(config, make_model(heads=2)), monkeypatch)
    assert all(torch.equal(x, x_again) and torch.equal(y, y_again) for (x, y), (x_again, y_again) in
               zip(seen, again, strict=True))

    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, mode=mode, label_smoothing=0.1, num_classes=10)
    loader, sampler = training_loader(CachedImages(*data), 16, 0, config.seed)
    plain = 0
    for index, (x, y) in enumerate(seen):
        epoch, step = divmod(index, 3)
        sampler.epoch = epoch
        images, target_B = list(loader)[step]
        smooth = torch.full((16, 10), 0.01).scatter_(1, target_B[:, None], 0.91)
        if epoch < 2:
            with keyed_randomness(config.seed, epoch, 'mixup', step, 0):
                images, smooth = mixup(images, target_B)
        torch.testing.assert_close(y, smooth)
        assert torch.equal(x, images)
        plain += epoch == 2
    assert plain == 3


def test_smoothing_of_mixed_labels_is_not_doubled(recipe, data):
    config = recipe('--batch_size=16', '--augment.mixup=0.8', '--objective.smoothing=0.1')
    assert make_trainer(config, make_model(heads=2)).state.task.criterion.criterion.label_smoothing == 0.0
    config = recipe('--batch_size=16', '--objective.smoothing=0.1')
    trainer = make_trainer(config, make_model(heads=2))
    assert trainer.state.task.criterion.criterion.label_smoothing == 0.1 and trainer.state.mixup is None


def test_an_odd_batch_cannot_be_mixed(recipe):
    with pytest.raises(TrainError, match=r'mix the images of a batch in pairs: make batch_size, 15, an even number'):
        make_accelerator(recipe('--batch_size=15', '--augment.cutmix=1.0'))
    with pytest.raises(TrainError, match=r'augment.mixup must be at least 0, got -1.0'):
        recipe('--augment.mixup=-1')


@pytest.mark.parametrize(('shape', 'halfway'), [('linear', 0.5), ('gaussian', math.exp(-5 / 4))])
def test_the_weight_of_the_other_heads_rises(recipe, data, monkeypatch, shape, halfway):
    config = recipe('--batch_size=16', '--epochs=3', '--objective.beta=0.2', '--objective.ramp_up_epochs=2',
                    f'--objective.ramp_up={shape}')
    rows = []
    trainer = make_trainer(config, make_model(heads=2), rows.append)
    betas = []
    task = trainer.state.task
    forward = task.forward
    monkeypatch.setattr(task, 'forward', lambda x, y, *_: (betas.append(task.criterion.beta), forward(x, y))[1])
    trainer.fit()
    assert betas[0] == pytest.approx(1.0, abs=0.01) and betas == sorted(betas, reverse=True)
    assert betas[3] == pytest.approx(1 - 0.8 * halfway)
    assert betas[6:] == [pytest.approx(0.2)] * 3 and rows[-1]['beta'] == pytest.approx(0.2)


def test_heads_may_learn_from_each_other_one_by_one(recipe, data):
    config = recipe('--batch_size=16', '--objective.kind=mutual', '--objective.temperature=1')
    trainer = make_trainer(config, make_model(heads=3))
    assert type(trainer.state.task.criterion) is MutualLearningLoss
    assert len(trainer.fit()[-1]['train_soft_heads']) == 3


@pytest.mark.parametrize(('every_updates', 'expected'), [(2, [2, 4, 6, 8, 9]), (4, [4, 8, 9]), (6, [6, 9])])
def test_updates_between_checkpoints_are_counted_over_epochs(recipe, data, every_updates, expected):
    config = recipe('--batch_size=16', '--epochs=3', f'--checkpoint.every_updates={every_updates}',
                    '--checkpoint.every_epochs=10')
    trainer, saved = make_trainer(config, make_model(heads=2), data=data), []
    assert trainer.updates_per_epoch == 3
    trainer.callbacks = Callbacks(on_checkpoint=lambda state, update, score: saved.append(update))
    trainer.fit()
    assert saved == expected
