"""The commands that read a finished run: validate and prune, on an intact one and on damaged ones."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import timm_collab
from timm_collab import load_run


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    """A copy, to damage."""
    shutil.copytree(finished_run, tmp_path / 'run')
    return tmp_path / 'run'


def change(file: Path, edit) -> None:
    values = json.loads(file.read_text())
    edit(values)
    file.write_text(json.dumps(values))


def test_the_kept_head_of_the_saved_tree_gives_the_pruned_logits(run):
    saved = load_run(run)
    tree = saved.load_tree()
    with safe_open(run / 'tree.safetensors', framework='pt') as file:
        assert file.metadata() == {'kept_head': str(saved.summary.kept_head)}
    assert tree.kept_head == saved.summary.kept_head
    plain = saved.load_pruned()
    images = torch.randn(2, *saved.data_config['input_size'])
    with torch.no_grad():
        assert torch.equal(tree(images), plain(images))
        assert torch.equal(tree.forward_heads(images)[tree.kept_head], plain(images))


@pytest.mark.parametrize('split', ['test', 'val'])
def test_validate_agrees_with_training(run, command, split):
    status, said, _ = command('validate', run, '--split', split, '--device=cpu')
    summary = json.loads((run / 'summary.json').read_text())
    result = json.loads((run / 'validation.json').read_text())
    assert status == 0
    assert [head['top1'] for head in result['heads']] == pytest.approx(summary[split]['top1_heads'])
    assert [head['nll'] for head in result['heads']] == pytest.approx(summary[split]['loss_heads'], rel=1e-5)
    assert result['consensus']['top1'] == pytest.approx(summary[split]['top1_consensus'])
    assert result['pruned'] == result['heads'][summary['kept_head']]
    assert result['count'] == summary[split]['count'] == sum(row['count'] for row in result['per_class'])
    mean = sum(row['count'] * row['top1_kept'] for row in result['per_class']) / result['count']
    assert mean == pytest.approx(summary[split]['top1_kept'])
    assert [head['balanced'] for head in result['heads']] == pytest.approx(summary[split]['balanced_heads'])
    assert result['confusion'] == summary[split]['confusion_kept']
    assert [row['top1_kept'] for row in result['per_class']] == pytest.approx(summary[split]['recall_kept'])
    count, label, predicted = max((count, -label, -predicted) for label, row in enumerate(result['confusion'])
                                  for predicted, count in enumerate(row) if label != predicted)
    share = 100 * count / result['per_class'][-label]['count']
    table = f'most confused taken for images of the class, % {-label} {-predicted} {count} {share:.2f}'
    assert table in ' '.join(said.split())
    assert f'{result["consensus"]["ece"]:.2f}' in said and f'head {summary["kept_head"]} (kept)' in said


def test_validate_on_other_data_prints_json(run, command, tmp_path):
    rows = datasets.load_dataset(str(Path(timm_collab.__file__).parent / 'data' / 'digits'))['test']
    rows = rows.rename_column('label', 'y')
    (tmp_path / 'other').mkdir()
    rows.select(range(0, 500, 5)).to_parquet(str(tmp_path / 'other' / 'test.parquet'))
    folder = tmp_path / 'other'
    status, said, _ = command(
        'validate', run, f'--data.path={folder}', '--data.label_column=y', '--split=test', '--json', '--device=cpu')
    result = json.loads(said)
    assert status == 0
    assert (result['split'], result['count'], result['data']) == ('test', 100, str(folder))
    assert result == json.loads((run / 'validation.json').read_text())


@pytest.fixture
def digits(tmp_path):
    """Write test digits as another data set, with classes numbered in another order."""
    def make(name: str, names: list[str], keep=lambda digit: True) -> Path:
        rows = datasets.load_dataset(str(Path(timm_collab.__file__).parent / 'data' / 'digits'))['test']
        rows = rows.select(index for index, digit in enumerate(rows['label'][:100]) if keep(digit))
        labels = [names.index(str(digit)) for digit in rows['label']]
        rows = rows.remove_columns('label').add_column('label', labels, feature=datasets.ClassLabel(names=names))
        (tmp_path / name).mkdir()
        rows.to_parquet(str(tmp_path / name / 'test.parquet'))
        return tmp_path / name

    return make


def test_other_data_are_joined_with_the_classes_of_the_run_by_name(run, command, digits):
    def validate(folder):
        status, said, error = command('validate', run, f'--data.path={folder}', '--json', '--device=cpu')
        assert status == 0, error
        return json.loads(said)

    plain = validate(digits('plain', list('0123456789')))
    turned = validate(digits('turned', ['not used', *'9876543210']))
    assert turned['heads'] == plain['heads'] and turned['per_class'] == plain['per_class']
    fewer = validate(digits('fewer', list('64201'), lambda digit: digit in (0, 1, 2, 4, 6)))
    for row, other in zip(fewer['per_class'], plain['per_class'], strict=True):
        assert row == other if row['name'] in '01246' else (row['count'], row['top1_kept']) == (0, None)
    said = command('validate', run, f'--data.path={digits("again", list("64201"), lambda digit: digit == 4)}')[1]
    assert 'no image of 9 classes: 0, 1, 2, 3, 5 and 4 more' in said


def test_a_run_without_names_takes_numbers_alone(run, command, digits, tmp_path):
    expected = json.loads(command('validate', run, '--json', '--device=cpu')[1])
    change(run / 'summary.json', lambda values: values['data'].update(label_names=None))
    assert json.loads(command('validate', run, '--json', '--device=cpu')[1])['heads'] == expected['heads']
    plain = json.loads(command('validate', run, f'--data.path={digits("a", list("0123456789"))}', '--json')[1])
    folder = digits('b', list('9876543210'))
    error = command('validate', run, f'--data.path={folder}')[2]
    assert 'names its classes, and the run numbers them from 0: write --data.classes' in error
    (tmp_path / 'names').write_text('\n'.join('0123456789'))
    argv = [f'--data.path={folder}', f'--data.classes={tmp_path / "names"}', '--json']
    assert json.loads(command('validate', run, *argv)[1])['heads'] == plain['heads']


def test_validate_says_what_the_data_lack(run, command, digits, tmp_path):
    folder = digits('unknown', ['ten', *'0123456789'])
    rows = datasets.Dataset.from_parquet(str(folder / 'test.parquet')).map(lambda row: {'label': 0})
    rows.to_parquet(str(folder / 'test.parquet'))
    error = command('validate', run, f'--data.path={folder}')[2]
    assert "label 'ten' in row 0 of split 'test' is none of the 10 classes of the run" in error
    error = command('validate', run, f'--data.path={folder}', '--split=dev')[2]
    assert f"--split: '{folder}' has no split 'dev', it has 'test': write --split test" in error
    error = command('validate', run, '--data.test_split=null')[2]
    assert 'has no test split, or the run uses none: write --split val, or the name of another split' in error
    assert error.count('\n') == 1


@pytest.mark.parametrize('head', ['best', '0', '1'])
def test_prune_saves_any_head(run, command, head):
    status, said, _ = command('prune', run, '--head', head, '--output', run / 'other' / 'folder')
    saved = load_run(run)
    number = saved.summary.kept_head if head == 'best' else int(head)
    assert status == 0 and said.startswith(f'Head {number} is saved')
    plain = timm.create_model(f'local-dir:{run / "other" / "folder"}', pretrained=True).eval()
    images = torch.randn(2, *saved.data_config['input_size'])
    with torch.no_grad():
        assert torch.equal(plain(images), saved.load_tree().forward_heads(images)[number])
    config = json.loads((run / 'other' / 'folder' / 'config.json').read_text())
    assert config['label_names'] == saved.class_names
    assert config['pretrained_cfg']['mean'] == list(saved.data_config['mean'])


def test_prune_writes_the_kept_head_as_training_did(run, command):
    shutil.move(run / 'pruned', run / 'before')
    assert command('prune', run / 'tree.safetensors', '--output', run / 'pruned')[0] == 0
    for name in ('model.safetensors', 'config.json'):
        assert (run / 'pruned' / name).read_bytes() == (run / 'before' / name).read_bytes()
    assert 'exists: choose another folder' in command('prune', run, '--output', run / 'before')[2]


@pytest.mark.parametrize(('argv', 'message'), [
    (['prune', '--head=2'], "--head '2': write best, or a number from 0 to 1"),
    (['prune', '--head=-1'], "--head '-1': write best"),
    (['validate', '--split=bonus'], "data.test_split: 'builtin:digits' has no split 'bonus'"),
    (['validate', '--optim.lr=3'], "unknown option '--optim.lr=3'"),
    (['validate', '--data.pathh=3'], "unknown key 'data.pathh'; did you mean 'data.path'"),
    (['validate', '--data.path=nowhere'], "data.path 'nowhere' does not exist"),
    (['validate', '--batch-size=0'], '--batch-size must be at least 1, got 0'),
])
def test_bad_options_are_refused(run, command, argv, message):
    status, said, error = command(argv[0], run, *argv[1:])
    assert (status, said) == (2, '')
    assert error.startswith(f'error: {message}') and error.count('\n') == 1
    assert not (run / 'validation.json').exists()


def _truncate(name: str):
    return lambda run: (run / name).write_bytes((run / name).read_bytes()[:200])


def _other_weights(run: Path) -> None:
    tensors = load_file(run / 'tree.safetensors')
    save_file(dict(list(tensors.items())[1:]), run / 'tree.safetensors')


@pytest.mark.parametrize(('damage', 'message'), [
    (shutil.rmtree, 'is no folder'),
    (lambda run: (run / 'config.yaml').unlink(), 'holds no run: it has no config.yaml'),
    (lambda run: (run / 'summary.json').unlink(), 'is not finished, it has no summary.json'),
    (lambda run: (run / 'tree.safetensors').unlink(), 'has no tree.safetensors'),
    (lambda run: shutil.rmtree(run / 'pruned'), 'is damaged: pruned/, the pruned model, is incomplete'),
    (_truncate('summary.json'), "summary.json' is damaged"),
    (_truncate('tree.safetensors'), 'is damaged: tree.safetensors does not hold'),
    (_truncate('pruned/model.safetensors'), "is damaged: pruned/ can't be loaded"),
    (_other_weights, "is damaged: tree.safetensors does not hold the weights of its recipe's tree"),
    (lambda run: (run / 'config.yaml').write_text('epochs: ['), 'is damaged, or from another version: recipe'),
    (lambda run: change(run / 'summary.json', lambda values: values['data'].pop('num_classes')),
     'lacks data.num_classes'),
    (lambda run: change(run / 'summary.json', lambda values: values['data'].update(label_names=list('abcdefghij'))),
     'is none of the 10 classes of the run'),
])
def test_a_damaged_run_is_refused(run, command, damage, message):
    damage(run)
    status, said, error = command('validate', run)
    assert (status, said) == (2, '')
    assert message in error and error.startswith('error: ') and error.count('\n') == 1
    assert not (run / 'validation.json').exists()
