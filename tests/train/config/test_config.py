from __future__ import annotations

import dataclasses
from typing import get_args, get_type_hints

import pytest

from timm_collab.model.weights import BRANCH_INITS
from timm_collab.train.config import (
    AugmentConfig,
    CheckpointConfig,
    DataConfig,
    EmaConfig,
    ModelConfig,
    NoiseConfig,
    ObjectiveConfig,
    OptimConfig,
    SchedConfig,
    StopConfig,
    TeacherConfig,
    TrainConfig,
)
from timm_collab.train.config.parse import _keys
from timm_collab.train.errors import TrainError
from timm_collab.tree import PATTERNS


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: ModelConfig(heads=0), 'model.heads must be at least 1, got 0'),
    (lambda: ModelConfig(num_classes=1), 'model.num_classes must be at least 2, got 1'),
    (lambda: ModelConfig(kwargs={'in_chans': 1}), "can't contain 'in_chans': write data.in_chans"),
    (lambda: ModelConfig(kwargs={'heads': 1}), "can't contain 'heads': write model.heads"),
    (lambda: ModelConfig(kwargs={'kept_head': 1}), "can't contain 'kept_head': it is chosen by the validation data"),
    (lambda: ModelConfig(tree='layer2:1'), "model.tree: .*'layer2:1' .*1 child.*write 'layer2:2'"),
    (lambda: ModelConfig(tree='layer2:2', heads=4), "heads is 4 but model.tree 'layer2:2' has 2: leave one out"),
    (lambda: ModelConfig(name='resnet18'), "'collab_resnet18' to train it with 4 heads, or --model.heads 1"),
    (lambda: DataConfig(in_chans=2), r'must be 1 \(grey\) or 3 \(colour\), got 2'),
    (lambda: DataConfig(val_fraction=1.0), r'data.val_fraction must lie in \(0, 1\), got 1.0'),
    (lambda: DataConfig(img_size=0), 'data.img_size must be at least 1, got 0'),
    (lambda: DataConfig(img_size=[32, -1]), r'data.img_size must be at least 1, got \[32, -1\]'),
    (lambda: DataConfig(img_size=[32]), r'must be the side of a square, or \[height, width\], got \[32\]'),
    (lambda: DataConfig(bit_depth=17), r'data.bit_depth must lie in \[8, 16\], got 17'),
    (lambda: DataConfig(mean=[0.5, 0.5]), r'data.mean needs 1 or in_chans=3 values, got \[0.5, 0.5\]'),
    (lambda: DataConfig(std=[0.0]), 'data.std must be positive'),
    (lambda: DataConfig(crop_pct=1.5), r'data.crop_pct must lie in \(0, 1\], got 1.5'),
    (lambda: DataConfig(class_weights='even'), "data.class_weights 'even': write balanced, effective, effective:BETA"),
    (lambda: DataConfig(class_weights='effective:1'), 'a BETA in .0, 1., or a mapping from class names to weights'),
    (lambda: DataConfig(class_weights='balanced:0.9'), "'balanced:0.9': write balanced, "),
    (lambda: DataConfig(class_weights={'cat': -1}), "weight of class 'cat' must be a number from 0, got -1"),
    (lambda: DataConfig(class_weights={0: float('nan')}), "weight of class '0' must be a number from 0, got nan"),
    (lambda: DataConfig(class_weights='balanced', sampling='balanced'), 'both make up for rare classes: leave one out'),
    (lambda: DataConfig(class_weights='balanced', multi_label=True), 'with data.multi_label an image has several'),
    (lambda: DataConfig(sampling='balanced', multi_label=True), 'with data.multi_label an image has several'),
    (lambda: DataConfig(class_weights='effective', streaming=True),
     "data.streaming doesn't go with data.class_weights effective: .*write a mapping from class names to weights"),
    (lambda: DataConfig(sampling='balanced', streaming=True), "data.streaming doesn't go with data.sampling balanced"),
    (lambda: AugmentConfig(hflip=2.0), r'augment.hflip must lie in \[0, 1\], got 2.0'),
    (lambda: AugmentConfig(scale=[1.0, 0.5]), r'\[low, high\] with 0 < low <= high'),
    (lambda: AugmentConfig(repeats=0), 'augment.repeats must be at least 1, got 0'),
    (lambda: OptimConfig(lr=0.0), 'optim.lr must be greater than 0, got 0.0'),
    (lambda: OptimConfig(lr=float('nan')), 'optim.lr must be a finite number, got nan'),
    (lambda: OptimConfig(momentum=1.0), r'optim.momentum must lie in \[0, 1\), got 1.0'),
    (lambda: SchedConfig(warmup_epochs=-1), 'sched.warmup_epochs must be at least 0, got -1'),
    (lambda: SchedConfig(decay_milestones=[8, 4]), r'must be positive and ascending, got \[8, 4\]'),
    (lambda: SchedConfig(decay_milestones=[0]), 'sched.decay_milestones must be positive'),
    (lambda: SchedConfig(decay_rate=-1.), 'sched.decay_rate must be greater than 0, got -1.0'),
    (lambda: SchedConfig(name='none', warmup_epochs=1), 'sched.warmup_epochs needs a schedule'),
    (lambda: ModelConfig(pretrained=True, checkpoint_path='x.pth'), 'are two weights to start from: leave one out'),
    (lambda: ObjectiveConfig(beta=1.1), r'objective.beta must lie in \[0, 1\], got 1.1'),
    (lambda: ObjectiveConfig(beta=0.0, full_labels=True), 'full_labels divides by objective.beta, which is 0'),
    (lambda: ObjectiveConfig(hard='gce', gce_q=0.0), r'objective.gce_q must lie in \(0, 1\], got 0.0'),
    (lambda: ObjectiveConfig(elr_weight=1.0), 'objective.elr_weight is for objective.hard elr, got ce'),
    (lambda: ObjectiveConfig(hard='gce', targets='mean'), 'is for objective.hard elr or selc, got gce'),
    (lambda: ObjectiveConfig(hard='sce', alpha=0.0, reverse=0.0), 'are both 0: the labels would have no weight'),
    (lambda: ObjectiveConfig(hard='small_loss'), 'leaves out the share of wrong labels: write --objective.noise_rate'),
    (lambda: ObjectiveConfig(hard='elr', smoothing=0.1), 'is for objective.hard ce or bce, got elr'),
    (lambda: ObjectiveConfig(hard='selc', kind='gated'), 'objective.kind gated trains an ensemble as well'),
    (lambda: ObjectiveConfig(hard='small_loss', noise_rate=0.4, kind='gated'), 'kind gated trains an ensemble as well'),
    (lambda: ObjectiveConfig(select='joint'), 'objective.select is for objective.hard small_loss, got ce'),
    (lambda: ObjectiveConfig(hard='small_loss', noise_rate=0.4, agreement=0.5), 'is for objective.select joint'),
    (lambda: ObjectiveConfig(hard='bce', balance=1.0), 'objective.balance compares a distribution over classes'),
    (lambda: ObjectiveConfig(temperature=0.0), 'objective.temperature must be greater than 0, got 0.0'),
    (lambda: CheckpointConfig(keep_last=0), 'checkpoint.keep_last must be at least 1, got 0'),
    (lambda: EmaConfig(decay=0.9, epochs=3.0), 'ema.decay and ema.epochs are two lengths'),
    (lambda: EmaConfig(warmup=True), 'ema.warmup needs ema.decay or ema.epochs'),
    (lambda: StopConfig(patience=0), 'stop.patience must be at least 1, got 0'),
    (lambda: EmaConfig(decay=1.0), r'ema.decay must lie in \[0, 1\), got 1.0'),
    (lambda: TeacherConfig(temperature=float('inf')), 'teacher.temperature must be a finite number, got inf'),
    (lambda: NoiseConfig(rate=-0.1), r'noise.rate must lie in \[0, 1\], got -0.1'),
])
def test_invalid_value_of_a_group_is_refused(make, message):
    with pytest.raises(TrainError, match=message):
        make()


@pytest.mark.parametrize(('keys', 'message'), [
    (dict(model=ModelConfig()), 'model.name is missing: start from a recipe, --config quickstart'),
    (dict(data=DataConfig()), 'data.path is missing: write e.g. --data.path'),
    (dict(epochs=0), 'epochs must be at least 1, got 0'),
    (dict(batch_size=0), 'batch_size must be at least 1, got 0'),
    (dict(seed=-1), r'seed must lie in \[0, 4294967296\), got -1'),
    (dict(seed=2**32), 'seed must lie in'),
    (dict(max_loss=float('nan')), 'max_loss must be greater than 0, got nan'),
    (dict(cpu_threads=0), 'cpu_threads must be at least 1, got 0'),
    (dict(augment=AugmentConfig(mixup=0.2), objective=ObjectiveConfig(hard='elr')), 'write --ema.epochs 3'),
    (dict(augment=AugmentConfig(cutmix=1.0), ema=EmaConfig(decay=0.9), objective=ObjectiveConfig(hard='selc')),
     'mixed images have two'),
    (dict(augment=AugmentConfig(mixup=0.2), objective=ObjectiveConfig(hard='small_loss', noise_rate=0.4)),
     'mixed images have two'),
    (dict(data=DataConfig(path='-', streaming=True), objective=ObjectiveConfig(hard='selc')), 'streamed images lack'),
    (dict(data=DataConfig(path='-', soft_labels=True), objective=ObjectiveConfig(hard='gce')), 'for class indices'),
    (dict(data=DataConfig(path='-', streaming=True), objective=ObjectiveConfig(balance=1.0)), 'needs all labels'),
    (dict(data=DataConfig(path='-', soft_labels=True), objective=ObjectiveConfig(balance=1.0)), 'for class indices'),
    (dict(model=ModelConfig(name='collab_resnet18', heads=1), teacher=TeacherConfig(path='-'),
          objective=ObjectiveConfig(balance=1.0)), 'timm distils with the cross-entropy alone'),
    (dict(data=DataConfig(path='builtin:digits', class_weights='balanced'), objective=ObjectiveConfig(hard='bce')),
     'data.class_weights weighs the cross-entropy: leave it out, or write --objective.hard ce'),
    (dict(stop=StopConfig(on='predictions')), 'write --stop.patience with the epochs to wait'),
    (dict(stop=StopConfig(smoothing_epochs=2)), 'stop.smoothing_epochs is for stop.on predictions'),
    (dict(stop=StopConfig(on='predictions', patience=3), augment=AugmentConfig(cutmix=1.0)), 'mixed images have two'),
    (dict(stop=StopConfig(on='predictions', patience=3), data=DataConfig(path='-', streaming=True)), 'have no number'),
    (dict(epochs=3, sched=SchedConfig(warmup_epochs=3)), r'warmup_epochs \(3\) must be fewer than epochs \(3\)'),
])
def test_invalid_recipe_is_refused(keys, message):
    good = dict(model=ModelConfig(name='collab_resnet18'), data=DataConfig(path='builtin:digits'))
    with pytest.raises(TrainError, match=message):
        TrainConfig(**{**good, **keys})


def test_range_of_every_bounded_key_is_checked():
    bounded = {name: field.metadata['bounds'] for name, _, field in _keys(TrainConfig) if field.metadata['bounds']}
    assert len(bounded) > 50
    good = TrainConfig(model=ModelConfig(name='collab_resnet18'), data=DataConfig(path='builtin:digits'))
    for name, bounds in bounded.items():
        *group, last = name.split('.')
        config = getattr(good, group[0]) if group else good
        below = bounds.get('gt', bounds.get('ge', 0) - 1)
        with pytest.raises(TrainError, match=rf'{name} must .*, got {below}$'):
            dataclasses.replace(config, **{last: below})


def test_number_of_heads_is_read_from_the_tree():
    assert ModelConfig().num_heads == 4
    assert ModelConfig(tree='layer2:[layer3:2 | head]').num_heads == 3
    assert ModelConfig(tree={'layer2': 2}, heads=2).num_heads == 2


def test_choices_match_the_library():
    hints = get_type_hints(ModelConfig)
    assert get_args(hints['branch_init']) == BRANCH_INITS
    assert get_args(hints['pattern']) == PATTERNS


def test_plain_name_is_the_single_network():
    plain = ModelConfig(name='resnet18', heads=1)
    assert plain.architecture == 'resnet18' == ModelConfig(name='collab_resnet18').architecture


def test_single_keeps_everything_except_the_tree():
    tree = ModelConfig(name='collab_resnet18', tree='layer2:2', kwargs={'drop_rate': 0.1}, rescale=False)
    assert tree.single() == ModelConfig(name='collab_resnet18', heads=1, kwargs={'drop_rate': 0.1}, rescale=False)
