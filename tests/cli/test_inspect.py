"""The command inspect: what it prints, and which options it takes."""
from __future__ import annotations

import json

import pytest

from timm_collab.train.config import DataConfig
from timm_collab.train.inspect import inspect_data


def test_it_prints_tables(command):
    status, output, error = command('inspect', 'builtin:digits')
    assert (status, error) == (0, '')
    lines = output.splitlines()
    assert lines[0] == 'builtin:digits: shipped with the package'
    assert ['train', 'train', '1,297'] in [line.split() for line in lines]
    assert ['8', '124', '50'] in [line.split() for line in lines]
    assert 'sizes: all 8x8' in lines and 'modes: L 1,797' in lines
    assert 'exact duplicates: 0 within splits, 0 across splits' in lines


def test_json_is_what_the_library_returns(command):
    status, output, _ = command('inspect', 'builtin:digits', '--json')
    assert status == 0
    assert json.loads(output) == json.loads(json.dumps(inspect_data(DataConfig(path='builtin:digits')).to_dict()))


def test_of_many_classes_the_smallest_and_the_largest_are_shown(command, tmp_path):
    from PIL import Image
    for number in range(40):
        folder = tmp_path / f'class {number}'
        folder.mkdir()
        for place in range(1 + number):
            Image.new('RGB', (4, 4), (number, place, 0)).save(folder / f'{place}.png')
    output = command('inspect', tmp_path)[1]
    assert 'smallest and largest 10 of 40 classes' in output
    shown = [line.split()[1] for line in output.splitlines() if line.startswith('class ') and len(line.split()) == 3]
    assert shown == [str(number) for number in [*range(10), *range(30, 40)]]
    assert "smallest 'class 0' with 1 training image, largest 'class 39' with 40, 40.0 times as many" in output


def test_a_recipe_gives_keys_but_neither_noise_nor_model_are_needed(command, tmp_path):
    recipe = tmp_path / 'my.yaml'
    recipe.write_text('noise.rate: 0.4\ndata: {in_chans: 1, path: elsewhere}\naugment.crop: pad\n')
    sheet = tmp_path / 'sheet.png'
    for argv in (['--config', recipe, 'builtin:digits'], ['builtin:digits', '--config', recipe]):
        status, output, error = command('inspect', *argv, '--sheet', sheet, '--per-class', 1, '--seed', 1)
        assert (status, error) == (0, '') and sheet.is_file()
        assert f'sheet: {sheet}, 10 training images of 10 classes' in output
        assert 'training images are augmented in whole batches' in output
    output, error = command('inspect', 'builtin:digits', '--sheet', sheet, '--json')[1:]
    assert json.loads(output)['classes'] and f'sheet: {sheet}' in error


@pytest.mark.parametrize(('argv', 'message'), [
    (['nowhere'], "data.path 'nowhere' does not exist"),
    (['builtin:digits', '--optim.lr', '1'], "unknown option '--optim.lr'"),
    (['builtin:digits', '--data.lable_column', 'x'], "did you mean 'data.label_column'"),
    (['builtin:digits', '--per-class', '0'], '--per-class must be at least 1, got 0'),
    (['builtin:digits', '--data.label_column', 'colour'], "there is no column 'colour'"),
])
def test_mistakes_are_one_line(command, argv, message):
    status, output, error = command('inspect', *argv)
    assert (status, output) == (2, '') and error.startswith('error: ') and message in error
    assert len(error.splitlines()) == 1
