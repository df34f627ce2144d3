from __future__ import annotations

import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import TensorDataset

from timm_collab.train.images import CachedImages, evaluation_loader, training_loader
from timm_collab.train.trainer import Loaders, NonFiniteLossError, Trainer

SIZE = 16


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(48, 1, SIZE, SIZE, generator=generator), torch.randint(10, (48,), generator=generator)


def make_model(heads: int) -> nn.Module:
    set_seed(0)
    return timm.create_model('collab_test_resnet', heads=heads, num_classes=10, in_chans=1)


def make_trainer(config, model, data, on_epoch=lambda row: None) -> Trainer:
    train_loader, sampler = training_loader(CachedImages(*data), config.batch_size, 0, config.seed)
    val = evaluation_loader(TensorDataset(data[0][:20], data[1][:20]), 8, 0)
    return Trainer(config, model, Loaders(train_loader, sampler, val, None), Accelerator(cpu=True), on_epoch)


def test_one_head_trains_like_the_plain_network(recipe, data):
    config = recipe('--model.heads=1', '--epochs=3', '--batch_size=16', '--sched.name=none', '--optim.weight_decay=0')
    model = make_model(heads=1)
    plain = model.prune()
    make_trainer(config, model, data).fit()

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
    trainer = make_trainer(config, model, data, rows.append)
    result = trainer.fit()
    assert [row['epoch'] for row in rows] == [0, 1, 2, 3]
    assert trainer.num_updates == 4 * 3
    assert rows[-1] is result['last'] and model.kept_head == rows[-1]['kept_head']
    assert result['best']['val']['top1_kept'] == max(row['val']['top1_kept'] for row in rows)
    # Warm-up in the first epoch, then a cosine down.
    lrs = [row['lr'] for row in rows]
    assert lrs[0] == 0.001 and lrs[1] > lrs[2] > lrs[3] > 0
    for row in rows:
        hard, soft = row['train_hard_heads'], row['train_soft_heads']
        assert len(hard) == len(soft) == 2
        assert row['train_loss'] == pytest.approx(0.5 * sum(hard) + 0.5 * sum(soft), rel=1e-5)
        assert row['val']['count'] == 20 and row['images_per_second'] > 0


def test_same_seed_same_weights(recipe, data):
    states = []
    for _ in range(2):
        model = make_model(heads=2)
        make_trainer(recipe('--batch_size=16'), model, data).fit()
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_nan_names_epoch_and_step(recipe, data):
    images, target_N = data
    config = recipe('--batch_size=16', '--epochs=2')
    _, sampler = training_loader(CachedImages(*data), 16, 0, config.seed)
    # The batch that comes second in the first epoch.
    images = images.clone()
    images[[index for _, index in sampler][20]] = float('nan')
    with pytest.raises(NonFiniteLossError, match=r'the loss is nan at epoch 0, step 1 \(both from 0\): lower optim.lr'):
        make_trainer(config, make_model(heads=2), (images, target_N)).fit()


@pytest.mark.parametrize('precision', ['bf16'])
def test_mixed_precision_trains_and_prunes_in_float32(recipe, data, precision):
    model = make_model(heads=2)
    config = recipe('--batch_size=16')
    train_loader, sampler = training_loader(CachedImages(*data), 16, 0, 0)
    loaders = Loaders(train_loader, sampler, evaluation_loader(CachedImages(*data), 8, 0), None)
    trainer = Trainer(config, model, loaders, Accelerator(cpu=True, mixed_precision=precision), lambda row: None)
    row = trainer.fit()['last']
    assert torch.isfinite(torch.tensor(row['train_loss']))
    released = trainer.release().eval()
    assert released is model and released(data[0][:2]).dtype == torch.float32
    assert all(tensor.dtype == torch.float32 for tensor in model.prune().parameters())
