"""The commands list and split-points, and what all commands share."""
from __future__ import annotations

import json

import pytest
import timm

import timm_collab
from timm_collab.cli import find_commands, main


def test_every_command_has_help(capsys):
    assert {'inspect', 'list', 'plot', 'prune', 'split-points', 'train', 'validate'} <= set(find_commands())
    for name, module in find_commands().items():
        if name != 'train':
            with pytest.raises(SystemExit, match='0'):
                main([name, '--help'])
        else:
            assert main([name, '--help']) == 0
        output = capsys.readouterr().out
        assert f'usage: timm-collab {name}' in output
        assert module.__doc__.splitlines()[0].split('.')[0] in ' '.join(output.split())


def test_help_of_train_documents_the_recipe_too(command):
    status, output, _ = command('train', '--help')
    assert status == 0
    assert '--num-processes' in output and '--optim.lr' in output and '--model.heads' in output


@pytest.mark.parametrize(('argv', 'message'), [
    ([], 'the following arguments are required: COMMAND'),
    (['fly'], 'invalid choice'),
    (['list', 'recipes', 'x', 'y'], 'unrecognized arguments: y'),
    (['split-points', 'resnet18', '--im', '32'], 'unrecognized arguments: --im 32'),
])
def test_invalid_command_line(argv, message, capsys):
    with pytest.raises(SystemExit, match='2'):
        main(argv)
    assert message in capsys.readouterr().err


def test_list_recipes_shows_nested_names_and_which_are_parts(command):
    status, output, _ = command('list')
    lines = {line.split()[0]: line for line in output.splitlines() if line}
    assert status == 0
    assert '(part)' in lines['methods/heads4'] and '(part)' not in lines['cifar10/resnet32']
    assert 'quickstart' in lines and not any(name.startswith('accelerate/') for name in lines)


def test_list_filters_and_prints_json(command):
    found = [entry['name'] for entry in json.loads(command('list', 'architectures', 'resnet1?', '--json')[1])]
    assert found == [name for name in timm.list_models('resnet1?') if not name.startswith('collab_')]
    assert 'resnet18' in found
    assert command('list', 'optimizers', 'adamw')[1].split()[0] == 'adamw'
    assert command('list', 'schedules')[1].split() == ['cosine', 'multistep', 'step', 'poly', 'tanh', 'none']
    assert 'accelerate/ddp' in command('list', 'launches')[1]


def test_list_suggests_similar_names(command):
    status, output, error = command('list', 'optimizers', 'adamz')
    assert (status, output) == (2, '')
    assert error.startswith('error: none of the ') and "did you mean 'adam'" in error


def test_split_points_match_the_library(command):
    points = timm_collab.split_points('test_vit', in_chans=1)
    status, output, _ = command('split-points', 'collab_test_vit', '--in-chans', 1)
    rows = [line.split() for line in output.splitlines()[1:len(points) + 1]]
    assert status == 0
    assert [row[0] for row in rows] == [point.name for point in points]
    assert [row[-1] for row in rows] == [f'{point.cost:.2f}x' for point in points]
    spoken = json.loads(command('split-points', 'test_vit', '--in-chans=1', '--json')[1])
    assert [tuple(map(tuple, point['shapes'])) for point in spoken] == [point.shapes for point in points]
    assert [point['cost'] for point in spoken] == [point.cost for point in points]


@pytest.mark.parametrize(('argv', 'message'), [
    (['resnet181'], "timm has no architecture 'resnet181'; did you mean 'resnet18'"),
    (['resnet18', '--img-size', '64'], "--img-size: 'resnet18' takes images of any size"),
    (['test_vit', '--img-size', '0'], '--img-size must be at least 1, got 0'),
    (['test_vit', '--img-size', '33'], "'test_vit': "),
])
def test_split_points_invalid_arguments(argv, message, command):
    status, output, error = command('split-points', *argv)
    assert (status, output) == (2, '')
    assert error.startswith(f'error: {message}') and error.count('\n') == 1
