from __future__ import annotations

import pytest
import yaml

from timm_collab.train.config import TrainConfig
from timm_collab.train.config.parse import _keys, build_parser, from_mapping, parse_config
from timm_collab.train.config.recipes import find_recipe
from timm_collab.train.errors import TrainError

NEEDED = ['--model.name=collab_resnet18', '--data.path=builtin:digits']


@pytest.fixture
def write(tmp_path):
    def write_recipe(text: str) -> str:
        (tmp_path / 'recipe.yaml').write_text(text)
        return str(tmp_path / 'recipe.yaml')

    return write_recipe


def test_command_line_takes_precedence_over_recipe(write):
    path = write(
        'seed: 3\nmodel: {name: collab_resnet18, kwargs: {drop_rate: 0.1}}\ndata: {path: x}\noptim: {lr: 1e-2}')
    config = parse_config(['--config', path, '--optim.lr', '1e-3', '--model.kwargs.stem_width', '8', '--model.heads=2'])
    assert (config.seed, config.optim.lr, config.model.heads) == (3, 1e-3, 2)
    assert config.model.kwargs == {'drop_rate': 0.1, 'stem_width': 8}
    assert parse_config(['--config', path]).optim.lr == 0.01


def test_tree_can_be_a_mapping(write):
    path = write('model: {name: collab_resnet18, tree: {layer2: [{layer3: 2}, null]}}\ndata: {path: x}')
    assert parse_config(['--config', path]).model.num_heads == 3


def test_bare_name_is_a_shipped_recipe():
    assert parse_config(['--config', 'quickstart']) == parse_config([f'--config={find_recipe("quickstart")}'])


@pytest.mark.parametrize(('argv', 'message'), [
    (['--config=quikstart'], "no recipe 'quikstart'.*did you mean 'quickstart'"),
    ([*NEEDED, '--optim.lrr=1'], "unknown key 'optim.lrr'; did you mean 'optim.lr'"),
    ([*NEEDED, '--optim.lr 1'], "'--optim.lr' and its value are one argument with a space in it: write --optim.lr=VAL"),
    ([*NEEDED, '--epoch=1'], "unknown key 'epoch'; did you mean 'epochs'"),
    ([*NEEDED, '--optim.lr=fast'], 'optim.lr must be a number, got fast'),
    ([*NEEDED, '--optim.kwargs={alpha:0.9}'], r'got \{alpha:0.9\}; YAML needs a space after a colon'),
    ([*NEEDED, '--data.img_size=24x40'],
     r'data.img_size must be an integer or a list of integers such as \[1, 2\], got 24x40$'),
    ([*NEEDED, '--data.sampling=ballanced'],
     r'data.sampling must be shuffled or balanced, got ballanced; did you mean'),
    ([*NEEDED, '--data.workers=many'], 'data.workers must be an integer or auto, got many'),
    ([*NEEDED, '--noise.matrix=[[1]'], 'noise.matrix must be a list of lists'),
    ([*NEEDED, '--epochs=1.5'], 'epochs must be an integer, got 1.5'),
    ([*NEEDED, '--noise.kind=pepper'], 'noise.kind must be none, symmetric-exclude, .* got pepper'),
    ([*NEEDED, 'quickstart'], "unknown key 'quickstart'"),
    ([*NEEDED, '--seed'], 'seed'),
    ([], 'model.name is missing'),
])
def test_command_line_errors_name_the_key(argv, message):
    with pytest.raises(TrainError, match=message) as caught:
        parse_config(argv)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(('text', 'message'), [
    ('optim: {lrr: 1}', "unknown key 'optim.lrr'; did you mean 'optim.lr'"),
    ('optimizer: {lr: 1}', "unknown key 'optimizer.lr'; did you mean 'optim.lr'"),
    ('epochs: many', 'epochs must be an integer, got many'),
    ('epochs: [', 'recipe.yaml is not a YAML mapping'),
    ('- epochs', 'recipe.yaml is not a YAML mapping'),
])
def test_recipe_errors_name_the_key(write, text, message):
    with pytest.raises(TrainError, match=message) as caught:
        parse_config(['--config', write(text)])
    assert '\n' not in str(caught.value)


def test_saved_recipe_can_be_parsed_again(write):
    config = parse_config(['--config=quickstart', '--model.tree=layer1:2', '--output=there'])
    again = parse_config(['--config', write(yaml.safe_dump(config.to_dict()))])
    assert again.output is None
    assert again.to_dict() == config.to_dict()
    assert from_mapping(TrainConfig, config.to_dict()) == again


def test_print_config_prints_a_recipe(capsys, write):
    with pytest.raises(SystemExit, match='0'):
        parse_config(['--config=quickstart', '--epochs=7', '--print_config'])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed['epochs'] == 7
    del printed['output']
    assert parse_config(['--config', write(yaml.safe_dump(printed))]).epochs == 7


def test_help_documents_every_key(capsys):
    help_text = build_parser().format_help()
    keys = list(_keys(TrainConfig))
    assert len(keys) > 40
    for name, _, field in keys:
        assert f'--{name}' in help_text
        assert len(field.metadata['help']) > 5
