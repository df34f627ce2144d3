"""Recipes: merging them, and a training step with each shipped one."""
from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import timm
import torch
import yaml
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file

from timm_collab.train.build import build_model
from timm_collab.train.config import TrainConfig
from timm_collab.train.config.parse import parse_config
from timm_collab.train.config.recipes import LAUNCH, compose, find_recipe, load_recipe, shipped_recipes
from timm_collab.train.data.augment.preprocess import make_preprocessing
from timm_collab.train.errors import TrainError
from timm_collab.train.loop.step import TrainState

RECIPES = {name: load_recipe(path) for name, path in shipped_recipes().items()}
COMPLETE = [name for name, values in RECIPES.items() if values.get('model', {}).get('name')]
METHODS = [name for name in RECIPES if name.startswith('methods/')]
PAPER = ['cifar10/resnet32', 'cifar10/resnet110', 'cifar10/densenet40_12']
# Small networks of the same family.
SMALL = {
    'resnet50': 'test_resnet', 'convnext_tiny': 'test_convnext', 'convnext_tiny.in12k_ft_in1k': 'test_convnext',
    'cifar_resnet32': 'cifar_resnet20', 'cifar_resnet110': 'cifar_resnet20', 'cifar_densenet40_12': 'cifar_resnet20',
}


def parse(*names: str) -> TrainConfig:
    return parse_config([*(f'--config={name}' for name in names), '--data.path=somewhere'])


@pytest.fixture
def write(tmp_path):
    def write_recipe(name: str, text: str) -> str:
        path = tmp_path / f'{name}.yaml'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write_recipe


def take_a_step(config: TrainConfig) -> torch.nn.Module:
    """One update on random images of its size, at most 64 pixels, with its transform."""
    small = SMALL.get(config.model.architecture, config.model.architecture)
    data = dataclasses.replace(config.data, img_size=min(config.data.img_size or 32, 64))
    model_config = dataclasses.replace(config.model, name=f'collab_{small}', pretrained=False)
    model = build_model(model_config, data, num_classes=10)
    transform = make_preprocessing(model, data, config.augment).training
    image = timm.data.transforms.transforms.ToPILImage()(torch.rand(data.in_chans, 80, 80))
    images = torch.stack([transform(image) for _ in range(4)])
    target = torch.tensor([0, 1, 2, 3])
    state = TrainState(
        dataclasses.replace(config, compile=False), model, 10, Accelerator(cpu=True), labels=target)
    state.begin_epoch(0)
    row = state.train_step(images, target, target, epoch=0, step=0, index=torch.arange(4))
    assert torch.isfinite(row).all()
    assert state.lr > 0
    return model


@pytest.mark.parametrize('name', COMPLETE)
def test_shipped_recipe_takes_a_step(name):
    config = parse(name)
    model = take_a_step(config)
    assert model.num_heads == config.model.num_heads == 4
    assert timm.is_model(config.model.architecture.split('.')[0])


@pytest.mark.parametrize('method', METHODS)
def test_method_takes_a_step_on_top_of_another_recipe(method):
    heads_of = {'single': 1, 'label_smoothing': 1, 'distilled': 1, 'instances2': 2, 'heads2': 2,
                'co_teaching': 2, 'jocor': 2}
    heads = heads_of.get(method.split('/')[1], 4)
    config = parse('cifar10/resnet20', method)
    assert take_a_step(config).num_heads == heads
    assert config.augment.crop == 'pad' and config.sched.name == 'cosine'


@pytest.mark.parametrize('network', PAPER)
def test_grid_of_the_paper_differs_only_in_the_method(network):
    expected = {
        'single': (1, 'hierarchical', 0.0), 'label_smoothing': (1, 'hierarchical', 0.05),
        'instances2': (2, 'instances', 0.0), 'instances4': (4, 'instances', 0.0),
        'heads2': (2, 'simple', 0.0), 'heads4': (4, 'hierarchical', 0.0),
    }
    plain = parse(network)
    assert (plain.objective.beta, plain.objective.full_labels) == (0.5, False)
    for method, (heads, pattern, smoothing) in expected.items():
        config = parse(network, f'methods/{method}')
        assert (config.model.num_heads, config.model.pattern, config.objective.smoothing) == (heads, pattern, smoothing)
        assert (config.objective.beta, config.objective.temperature) == (0.5, 2.0)
        assert dataclasses.replace(config, model=plain.model, objective=plain.objective) == plain


def test_distilled_method_is_a_single_network_with_a_teacher():
    config = parse('cifar10/resnet32', 'methods/distilled')
    assert config.model.num_heads == 1 and not config.teacher.given
    assert (config.teacher.temperature, config.teacher.task_loss_weight) == (4.0, 0.5)


@pytest.mark.parametrize(('method', 'select'), [('co_teaching', 'others'), ('jocor', 'joint')])
def test_methods_of_two_networks_share_nothing_but_the_selection(method, select):
    config = parse('cifar10/resnet32', 'methods/clean', f'methods/{method}')
    assert (config.model.num_heads, config.model.pattern) == (2, 'instances')
    assert (config.objective.beta, config.objective.hard, config.objective.select) == (1.0, 'small_loss', select)


@pytest.mark.parametrize(('name', 'tree'), [
    ('cifar10/resnet110', 'layer1:2,layer2:2'),
    ('cifar10/densenet40_12', 'features.denseblock1:2,features.denseblock2:2'),
    ('imagenet/resnet50', 'layer2:2,layer3:2'),
    ('imagenet/convnext_tiny', 'stages.1:2,stages.2:2'),
])
def test_default_trees(name, tree):
    config = parse(name)
    with torch.device('meta'):
        model = build_model(config.model, config.data, num_classes=10)
    assert str(model.tree) == tree


@pytest.mark.parametrize('name', shipped_recipes(LAUNCH))
def test_accelerate_reads_launch_settings(name):
    path = shipped_recipes(LAUNCH)[name]
    settings = load_config_from_file(str(path))
    written = yaml.safe_load(path.read_text())
    assert settings.num_processes == {'one_gpu': 1, 'two_machines': 8}.get(path.stem, 4)
    assert settings.num_machines == (2 if path.stem == 'two_machines' else 1)
    assert settings.mixed_precision == written['mixed_precision']
    assert settings.distributed_type == written['distributed_type']
    assert settings.fsdp_config == written.get('fsdp_config', {})


def test_recipe_overrides_its_bases_in_order(write):
    write('a', 'epochs: 1\nseed: 1\noptim: {lr: 1e-2, name: adamw}\n'
               'model: {name: collab_resnet18, kwargs: {a: 1, b: 1}}')
    write('b', 'seed: 2\noptim: {lr: 0.02}\n')
    path = write('c', 'base: [a, b]\noptim.momentum: 0.5\nmodel: {kwargs: {b: 2}}\ndata: {path: x}')
    config = parse_config(['--config', path])
    assert (config.epochs, config.seed) == (1, 2)
    assert (config.optim.lr, config.optim.name, config.optim.momentum) == (0.02, 'adamw', 0.5)
    assert config.model.kwargs == {'a': 1, 'b': 2}


def test_tree_replaces_the_tree_of_the_base(write):
    write('base_tree', 'model: {name: collab_resnet18, tree: {layer2: 2}}\ndata: {path: x}')
    path = write('other', 'base: base_tree\nmodel: {tree: {layer3: 3}}')
    assert load_recipe(Path(path))['model']['tree'] == {'layer3': 3}


def test_base_can_be_a_shipped_recipe_and_command_line_takes_precedence(write):
    path = write('mine', 'base: quickstart\nepochs: 3\n')
    config = parse_config(['--epochs=5', '--config', path, '--config=methods/heads2'])
    quickstart = parse_config(['--config=quickstart'])
    assert (config.epochs, config.model.num_heads, config.noise) == (5, 2, quickstart.noise)


def test_print_config_shows_the_merged_recipe(write, capsys):
    with pytest.raises(SystemExit, match='0'):
        parse_config(['--config', write('mine', 'base: cifar10/resnet32\n'), '--data.path=x', '--print_config'])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert 'base' not in printed
    assert printed['model']['name'] == 'collab_cifar_resnet32'
    assert printed['sched']['decay_milestones'] == [150, 225, 290]


@pytest.mark.parametrize(('text', 'message'), [
    ('base: mine', 'mine.yaml. builds on itself: mine.yaml -> mine.yaml'),
    ('base: other', 'mine.yaml. builds on itself: mine.yaml -> other.yaml -> mine.yaml'),
    ('base: quikstart', "no recipe 'quikstart'.*did you mean 'quickstart'"),
    ('base: 3', 'base must name a recipe, or several in a list, got 3'),
    ('- epochs', 'mine.yaml is not a YAML mapping of keys to values: it contains list'),
    ('3: 4', 'mine.yaml is not a YAML mapping'),
    ('base: quickstart\noptim: 3', "'optim' is a group of keys, such as optim.name, got 3"),
])
def test_invalid_recipe_file(write, text, message):
    write('other', 'base: mine')
    with pytest.raises(TrainError, match=message) as caught:
        parse_config(['--config', write('mine', text)])
    assert '\n' not in str(caught.value)


def test_config_option_without_a_value_is_refused():
    with pytest.raises(TrainError, match='--config needs a recipe'):
        parse_config(['--epochs=1', '--config'])


def test_numbers_in_scientific_notation(write):
    values = load_recipe(Path(write('numbers', 'optim: {lr: 1e-4, kwargs: {eps: 1E-8}}\nmodel: {name: 1e-4x}')))
    assert values == {'optim': {'lr': 1e-4, 'kwargs': {'eps': 1e-8}}, 'model': {'name': '1e-4x'}}


def test_compose_does_not_modify_its_arguments():
    below = {'optim': {'kwargs': {'a': 1}}}
    assert compose([below, {'optim': {'kwargs': {'b': 2}}}]) == {'optim': {'kwargs': {'a': 1, 'b': 2}}}
    assert below == {'optim': {'kwargs': {'a': 1}}}


def test_recipes_are_found_by_name():
    assert find_recipe('cifar10/resnet32').name == 'resnet32.yaml'
    assert 'accelerate/ddp' not in shipped_recipes()
    assert {'accelerate/ddp', 'accelerate/two_machines'} < set(shipped_recipes(LAUNCH))
