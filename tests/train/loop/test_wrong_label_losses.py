"""Every loss for wrong labels in the loop: killed and resumed, in low precision, and on mixed images."""
from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tests.train.killed import KilledError, kill_before
from tests.train.toys import make_data, make_model, make_trainer
from timm_collab.train import TrainError
from timm_collab.train.build import build_criterion, build_mixup, check_targets
from timm_collab.train.data.random_streams import Purpose, keyed_randomness
from timm_collab.train.loop.objective_schedule import schedule_objective
from timm_collab.train.loop.step import TrainState

SMALL_LOSS = ('--objective.hard=small_loss', '--objective.noise_rate=0.4', '--objective.noise_rate_epochs=1')
LOSSES = {
    'gce': ('--objective.hard=gce',),
    'sce': ('--objective.hard=sce',),
    'nce_rce': ('--objective.hard=nce_rce',),
    'selc': ('--objective.hard=selc', '--objective.selc_epoch=1'),
    'elr': ('--objective.hard=elr',),
    'elr, mixed': ('--objective.hard=elr', '--augment.mixup=0.8', '--augment.cutmix=1', '--ema.decay=0.9'),
    'small_loss': SMALL_LOSS,
    'joint small_loss': (*SMALL_LOSS, '--objective.select=joint'),
    'balance': ('--objective.balance=1',),
}


@pytest.mark.parametrize('loss', LOSSES)
def test_killed_and_resumed_it_ends_the_same(recipe, monkeypatch, loss) -> None:
    config = recipe('--batch_size=16', '--epochs=2', *LOSSES[loss])
    whole, killed, resumed = (make_trainer(config, make_model(2)) for _ in range(3))
    whole.fit()
    with monkeypatch.context() as patch:
        kill_before(patch, 4)  # within the second epoch
        with pytest.raises(KilledError):
            killed.fit()
    killed.meter.check(False)  # as before every checkpoint
    resumed.load_state_dict(copy.deepcopy(killed.state_dict()))
    assert resumed.num_updates == 4
    resumed.fit()
    assert resumed.rows[-1]['train_loss'] == whole.rows[-1]['train_loss']
    expected = whole.state.state_dict(False)
    for part in ('model', 'criterion'):
        found = resumed.state.state_dict(False)[part]
        assert found.keys() == expected[part].keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected[part].items())


@pytest.mark.parametrize('loss', LOSSES)
def test_in_bfloat16_it_trains_as_in_float32(recipe, loss) -> None:
    rows = []
    for precision in ('no', 'bf16'):
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True, mixed_precision=precision)
        config = recipe('--batch_size=16', '--optim.lr=0.005', *LOSSES[loss])
        rows.append(make_trainer(config, make_model(2), accelerator=accelerator).fit()[-1]['train_hard_heads'])
    single, low = map(torch.tensor, rows)
    assert low.isfinite().all()
    torch.testing.assert_close(low, single, rtol=0.05, atol=0.02)


@pytest.mark.parametrize('heads', [1, 2])
@pytest.mark.parametrize('loss', [loss for loss in LOSSES if loss != 'balance'])  # of one head, PyTorch's
def test_of_bfloat16_logits_it_is_computed_in_float32(recipe, loss, heads) -> None:
    config = recipe(*LOSSES[loss])
    labels = torch.arange(16) % 10
    criterion = build_criterion(config.objective, heads, 10, config.augment.mixes, None, labels)
    schedule_objective(criterion, config.objective, 1.0)
    logits = (3 * torch.randn(heads, 16, 10)).bfloat16()
    batch = [labels, torch.arange(16)]
    if config.augment.mixes:
        share = torch.rand(16, 16).softmax(dim=1)
        batch = [share @ F.one_hot(labels, 10).float(), torch.arange(16), share]
    expected = criterion(logits.float(), *batch)
    with torch.autocast('cpu', torch.bfloat16):
        found = criterion(logits, *batch)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize('parts', [1, 2])
@pytest.mark.parametrize('mode', ['batch', 'elem'])
def test_targets_of_mixed_images_come_from_the_average_of_the_weights(recipe, mode, parts) -> None:
    """As in ELR+: predicted for unmixed images, stored, then mixed like the labels."""
    config = recipe('--batch_size=16', '--objective.hard=elr', '--augment.mixup=1', f'--augment.mixup_mode={mode}',
                    '--ema.decay=0.9', f'--grad_accum_steps={parts}', '--objective.beta=1')
    images, labels = (each[:16] for each in make_data())
    model = make_model(2)
    state = TrainState(config, model, 3, Accelerator(cpu=True), labels=torch.zeros(48, dtype=torch.long))
    with torch.no_grad():
        for parameter in state.ema.module.parameters():  # so that it differs from the model
            parameter.mul_(1.1)
    index = torch.arange(16) * 3
    criterion = state.task.criterion.criterion
    criterion.targets[:, index] = torch.rand(2, 16, 10).softmax(dim=-1).half()
    p_HBC = state.ema.module.eval().forward_heads(images).softmax(dim=-1).clamp(1e-4, 1 - 1e-4).detach()
    updated_HBC = 0.7 * criterion.targets[:, index] + 0.3 * p_HBC / p_HBC.sum(dim=-1, keepdim=True)
    with keyed_randomness(config.seed, 0, Purpose.MIXUP, 0, 0):
        mixed, share_BB = build_mixup(config, 10, 1)(images.clone(), torch.arange(16))
    network = copy.deepcopy(model).train()
    log_p_HBC = torch.cat([network.forward_heads(each) for each in mixed.chunk(parts)], dim=1).log_softmax(dim=-1)
    agreement_HB = ((share_BB @ updated_HBC) * log_p_HBC.exp()).sum(dim=-1)
    hard_HB = -((share_BB @ F.one_hot(labels, 10).float()) * log_p_HBC).sum(dim=-1) + 3 * torch.log(1 - agreement_HB)

    row = state.train_step(images.clone(), labels, labels, 0, 0, index)
    assert torch.allclose(criterion.targets[:, index].float(), updated_HBC, atol=1e-3)
    assert not criterion.targets[:, index + 1].any()
    assert row[3:5].tolist() == pytest.approx(hard_HB.mean(dim=-1).tolist(), rel=1e-3)


IMAGENET = 1_281_167, 1000, 4


@pytest.mark.parametrize(('keys', 'size'), [
    ((), '4 x 1,281,167 images x 1,000 classes take 10.2 GB of the memory of cpu'),
    (('--objective.targets=mean',), '1 x 1,281,167 images x 1,000 classes take 2.6 GB of the memory of cpu'),
])
def test_memory_of_large_targets_is_named(recipe, monkeypatch, keys, size) -> None:
    config = recipe('--objective.hard=elr', *keys).objective
    monkeypatch.setattr('timm_collab.train.build._total_memory', lambda device: 64e9)
    assert size in check_targets(config, *IMAGENET, torch.device('cpu'))
    assert check_targets(config, 50_000, 100, 4, torch.device('cpu')) is None
    assert check_targets(recipe().objective, *IMAGENET, torch.device('cpu')) is None


@pytest.mark.parametrize(('keys', 'device', 'instead'), [
    ((), 'cuda', ': write --objective.targets mean, one for all heads, for 2.6 GB, or --objective.targets_device cpu'),
    (('--objective.targets_device=cpu',), 'cuda', ': write --objective.targets mean, one for all heads, for 2.6 GB$'),
    (('--objective.targets=mean',), 'cpu', ': choose an objective that remembers no images'),
])
def test_targets_larger_than_the_memory_are_refused(recipe, monkeypatch, keys, device, instead) -> None:
    monkeypatch.setattr('timm_collab.train.build._total_memory', lambda device: 2e9)
    config = recipe('--objective.hard=elr', *keys).objective
    with pytest.raises(TrainError, match=f'which has 2.0 GB{instead}'):
        check_targets(config, *IMAGENET, torch.device(device))


def test_targets_are_checked_before_images_are_decoded(recipe, monkeypatch) -> None:
    from timm_collab.train.data.training_data import TrainingData
    from timm_collab.train.run import train

    monkeypatch.setattr('timm_collab.train.build._total_memory', lambda device: 1e3)
    monkeypatch.setattr(TrainingData, 'load', lambda *_: pytest.fail('decoded'))
    with pytest.raises(TrainError, match='2 x 128 images x 10 classes take'):
        train(recipe('--objective.hard=elr'))
