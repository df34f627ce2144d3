from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.runs import finished_run
from timm_collab import CollabModel, HeadEnsemble, from_pretrained_tree, load_run
from timm_collab.hub import ExportOptions, HubError, export, export_run
from timm_collab.hub.check import check_reload, folder_logits, sample, trained_logits
from timm_collab.hub.export import write_folder
from timm_collab.hub.folder import check_folder
from timm_collab.hub.options import check_license
from timm_collab.train.errors import TrainError
from timm_collab.train.record.save import save_tree

MIT = ExportOptions(license='mit')
FILES = ['README.md', 'config.json', 'model.safetensors', 'recipe.yaml', 'summary.json']


@pytest.fixture
def unchecked(monkeypatch) -> list:
    """Leave out the other process, which takes seconds; the calls there would have been."""
    calls: list = []
    monkeypatch.setattr(export, 'check_reload', lambda *args: calls.append(args))
    return calls


def test_any_exported_head_gives_the_logits_of_the_trained_head(tmp_path) -> None:
    # One process that loads all of them, and refuses to have the plugin.
    run = load_run(finished_run(tmp_path / 'run', kept_head=1))
    folders, expected = [], []
    for head in ('best', 0, 3):
        folders.append(tmp_path / f'head-{head}')
        assert write_folder(run, folders[-1], ExportOptions(license='mit', head=head)) == {'best': 1}.get(head, head)
        expected.append(trained_logits(run, run.find_head(head), half=False))
    folders.append(tmp_path / 'half')
    write_folder(run, folders[-1], ExportOptions(license='mit', half=True))
    expected.append(trained_logits(run, 1, half=True))
    check_reload(folders, expected)
    assert len({logits.numpy().tobytes() for logits in expected}) == 4
    with pytest.raises(HubError, match=r'other logits .* they differ by up to'):
        check_reload(folders[:1], expected[1:2])


def test_files_of_an_export_and_its_check_in_another_process(make_run, tmp_path, unchecked) -> None:
    run = load_run(make_run(labels=[f'digit {i}' for i in range(10)]))
    (run.path / 'plots').mkdir()
    (run.path / 'plots' / 'errors.svg').write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    folder = export_run(run, tmp_path / 'out', MIT)
    assert check_folder(folder).files == sorted([*FILES, 'plots/errors.svg'])
    assert [call[2] for call in unchecked] == [False] and torch.equal(unchecked[0][1][0], folder_logits(folder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out', 'run']
    with safe_open(folder / 'model.safetensors', framework='pt') as file:
        assert file.metadata() | {'timm_collab': ''} == {
            'format': 'pt', 'architecture': 'test_resnet', 'head': '1', 'tree': 'layer2:2,layer3:2', 'timm_collab': ''}
    config = json.loads((folder / 'config.json').read_text())
    assert config['label_names'][3] == 'digit 3' and 'num_classes' not in config['model_args']
    assert '![errors](plots/errors.svg)' in (folder / 'README.md').read_text()
    assert len({os.stat(folder / name).st_mode for name in FILES}) == 1


def test_the_same_run_gives_the_same_bytes(make_run, tmp_path, unchecked) -> None:
    run = load_run(make_run())
    first, second = (export_run(run, tmp_path / name, ExportOptions(license='mit', tree=True)) for name in 'ab')
    for file in check_folder(first).files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_paths_of_the_teacher_are_not_published(make_run, tmp_path, unchecked) -> None:
    path = make_run(tree='head', kept_head=0)
    teacher = {'path': '/home/somebody/teacher', 'name': None, 'checkpoint': None, 'architecture': 'resnet18'}
    summary = json.loads((path / 'summary.json').read_text())
    (path / 'summary.json').write_text(json.dumps({**summary, 'teacher': teacher}))
    recipe = yaml.safe_load((path / 'config.yaml').read_text())
    recipe['teacher'] |= {'name': 'local-dir:somebody/network', 'checkpoint': '~/somebody/weights.pth'}
    (path / 'config.yaml').write_text(yaml.safe_dump(recipe))
    folder = export_run(load_run(path), tmp_path / 'out', MIT)
    public = json.loads((folder / 'summary.json').read_text())['teacher']
    assert {**public, **teacher, 'path': 'teacher'} == public
    told = yaml.safe_load((folder / 'recipe.yaml').read_text())['teacher']
    assert (told['path'], told['name'], told['checkpoint']) == (None, 'local-dir:network', 'weights.pth')
    assert not any(b'somebody' in file.read_bytes() for file in folder.rglob('*') if file.is_file())


def test_half_precision_halves_the_file(make_run, tmp_path, unchecked) -> None:
    run = load_run(make_run())
    sizes = [
        (export_run(run, tmp_path / str(half), ExportOptions(license='mit', half=half)) / 'model.safetensors').stat()
        for half in (False, True)
    ]
    assert sizes[1].st_size < 0.52 * sizes[0].st_size
    tensors = load_file(tmp_path / 'True' / 'model.safetensors')
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16, torch.int64}


def test_values_outside_of_float16_are_refused(make_run, tmp_path, unchecked) -> None:
    run = load_run(make_run())
    tensors = load_file(run.weights_file)
    save_file({**tensors, 'fc.bias': tensors['fc.bias'] + 1e6}, run.weights_file)
    with pytest.raises(HubError, match=r'--half: fc.bias has values that float16 cannot hold'):
        export_run(run, tmp_path / 'out', ExportOptions(license='mit', half=True))
    assert not (tmp_path / 'out').exists()


def test_an_exported_tree_is_loaded_and_averaged(make_run, tmp_path, unchecked) -> None:
    run = load_run(make_run(kept_head=2))
    folder = export_run(run, tmp_path / 'out', ExportOptions(license='mit', head=3, tree=True))
    model = from_pretrained_tree(folder).eval()
    images = sample(run.model_config)
    with torch.inference_mode():
        assert model.kept_head == 3 and torch.equal(model(images), folder_logits(folder))
        heads = model.forward_heads(images)
        for head in range(4):
            assert torch.equal(heads[head], trained_logits(run, head, half=False))
        averaged = HeadEnsemble(model)(images).softmax(dim=-1)
        assert torch.allclose(averaged, heads.softmax(dim=-1).mean(dim=0), atol=1e-6)
        averaged = HeadEnsemble(model, multi_label=True)(images).sigmoid()
        assert torch.allclose(averaged, heads.sigmoid().mean(dim=0), atol=1e-6)
    assert tuple(timm.data.resolve_model_data_config(model)['mean']) == (0.5,)
    assert '3.3 times those of one' in (folder / 'README.md').read_text()


def test_any_head_of_a_tree_with_tied_tensors_is_exported(make_run, tmp_path, unchecked) -> None:
    path = make_run(arch='coat_lite_tiny', img_size=32, kept_head=1, with_tree=False)
    torch.manual_seed(0)  # as the run was drawn
    model = CollabModel('coat_lite_tiny', num_classes=10, in_chans=1, img_size=32, kept_head=1).eval()
    save_tree(model, path)
    run = load_run(path)
    images = sample(run.model_config)
    with torch.inference_mode():
        logits = model.forward_heads(images)
    for head, half in ((0, False), (1, False), (0, True)):
        options = ExportOptions(license='mit', head=head, half=half, tree=True)
        folder = export_run(run, tmp_path / f'{head}-{half}', options)
        assert torch.equal(unchecked[-1][1][0], folder_logits(folder))
        assert half or torch.equal(logits[head], folder_logits(folder))
        with torch.inference_mode():
            assert torch.equal(from_pretrained_tree(folder).eval().forward_heads(images), logits)


def test_other_formats_are_written_next_to_the_folder(make_run, tmp_path, unchecked) -> None:
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxscript')
    run = load_run(make_run())
    folder = export_run(run, tmp_path / 'out', ExportOptions(license='mit', formats=('pt2', 'onnx')))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out', 'out.onnx', 'out.pt2', 'run']
    images = torch.randn(5, 1, 32, 32)
    with torch.inference_mode():
        expected = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()(images)
        assert torch.allclose(torch.export.load(tmp_path / 'out.pt2').module()(images), expected, atol=1e-5)
    evaluator = onnx.reference.ReferenceEvaluator(str(tmp_path / 'out.onnx'))
    [found] = evaluator.run(None, {evaluator.input_names[0]: images.numpy()})
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-4)


def test_local_paths_are_not_published(make_run, tmp_path, unchecked) -> None:
    path = make_run()
    recipe = yaml.safe_load((path / 'config.yaml').read_text())
    summary = json.loads((path / 'summary.json').read_text())
    recipe['data']['path'] = summary['data']['path'] = str(tmp_path / 'secret-client' / 'cats')
    (path / 'config.yaml').write_text(yaml.safe_dump(recipe))
    (path / 'summary.json').write_text(json.dumps({**summary, 'single': summary}))
    for name, dataset in (('a', None), ('b', 'ann/cats')):
        folder = export_run(load_run(path), tmp_path / name, ExportOptions(license='mit', dataset=dataset))
        for file in FILES:
            content = (folder / file).read_bytes()
            assert str(tmp_path).encode() not in content and b'secret-client' not in content, file
        assert yaml.safe_load((folder / 'recipe.yaml').read_text())['data']['path'] == (dataset or 'cats')


def test_a_recipe_keeps_the_last_names_of_local_paths(make_run, tmp_path, unchecked) -> None:
    path = make_run()
    recipe = yaml.safe_load((path / 'config.yaml').read_text())
    recipe['project'] = 'somebody'
    recipe['data'] |= {'path': 'timm:folder', 'root': 'somebody/cats/', 'cache_dir': '/scratch/somebody'}
    recipe['model'] |= {'checkpoint_path': 'somebody/weights.pth', 'kwargs': {
        'drop_path_rate': 0.1, 'act_layer': 'gelu', 'pretrained_cfg_overlay': {'file': '~/somebody/more.bin'}}}
    recipe['optim']['kwargs'] = {'betas': [0.9, 0.95], 'files': ['/home/somebody/a', r'C:\somebody\b']}
    (path / 'config.yaml').write_text(yaml.safe_dump(recipe))
    folder = export_run(load_run(path), tmp_path / 'out', MIT)
    told = yaml.safe_load((folder / 'recipe.yaml').read_text())
    assert told['data']['root'] == 'cats' and 'cache_dir' not in told['data'] and 'project' not in told
    assert told['model']['checkpoint_path'] == 'weights.pth'
    assert told['model']['kwargs'] == {
        'drop_path_rate': 0.1, 'act_layer': 'gelu', 'pretrained_cfg_overlay': {'file': 'more.bin'}}
    assert told['optim']['kwargs'] == {'betas': [0.9, 0.95], 'files': ['a', 'b']}
    assert not any(b'somebody' in file.read_bytes() for file in folder.rglob('*') if file.is_file())


def test_labels_that_are_not_utf8_are_one_error(make_run, tmp_path, unchecked) -> None:
    (tmp_path / 'labels.txt').write_bytes('Löwe\n'.encode('latin-1') * 10)
    with pytest.raises(HubError, match=r"--labels '.*labels.txt' is not UTF-8 text \(byte 1\)"):
        export_run(load_run(make_run()), tmp_path / 'out', ExportOptions(
            license='mit', labels=tmp_path / 'labels.txt'))


def test_an_output_inside_a_file_is_one_error(make_run, tmp_path, unchecked) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(TrainError, match=r"out' can't be created: '.*file' is a file"):
        export_run(load_run(make_run()), tmp_path / 'file' / 'out', MIT)


def test_an_output_may_begin_with_a_tilde(make_run, tmp_path, unchecked, monkeypatch) -> None:
    monkeypatch.setenv('HOME', str(tmp_path))
    assert export_run(load_run(make_run()), Path('~/out'), MIT) == tmp_path / 'out'


@pytest.mark.parametrize('license', ['apple-amlr', 'apple-ascl', 'fair-noncommercial-research-license', 'gemma'])
def test_licences_of_published_weights_are_known(license) -> None:
    check_license(license, None, None)


@pytest.mark.parametrize(('options', 'message'), [
    ({}, '--license is missing: say under which licence'),
    ({'license': 'apache2.0'}, "'apache2.0' is not in this version's list.*; did you mean 'apache-2.0'"),
    ({'license': 'other'}, '--license-name and --license-link go together, and with --license other'),
    ({'license': 'mit', 'license_name': 'mine', 'license_link': 'https://example.org'}, 'go together'),
    ({'license': 'mit', 'head': 9}, "--head '9': write best, or a number from 0 to 3"),
    ({'license': 'mit', 'labels': 'nowhere.txt'}, "--labels: there is no file 'nowhere.txt'"),
    ({'license': 'mit', 'labels': 'labels.txt'}, '3 names for 10 classes: write one for each'),
    ({'license': 'mit', 'baseline': 'run'}, "--baseline 'run' is a tree of 4 heads"),
    ({'license': 'mit', 'formats': ('tflite',)}, "--formats: there is no format 'tflite'"),
])
def test_bad_options_leave_nothing(make_run, tmp_path, unchecked, monkeypatch, options, message) -> None:
    run = load_run(make_run())
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'labels.txt').write_text('a\nb\nc\n')
    given = {key: tmp_path.__class__(value) if key in ('labels', 'baseline') else value
             for key, value in options.items()}
    with pytest.raises(TrainError, match=message):
        export_run(run, tmp_path / 'out', ExportOptions(**given))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['labels.txt', 'run']


def test_a_failed_check_leaves_nothing(make_run, tmp_path, monkeypatch) -> None:
    def differ(*_):
        raise HubError('they differ')

    monkeypatch.setattr(export, 'check_reload', differ)
    with pytest.raises(HubError, match='they differ'):
        export_run(load_run(make_run()), tmp_path / 'out', MIT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['run']


def test_an_existing_folder_is_not_overwritten(make_run, tmp_path, unchecked) -> None:
    run = load_run(make_run())
    export_run(run, tmp_path / 'out', MIT)
    with pytest.raises(HubError, match=r"out' exists: choose another --output"):
        export_run(run, tmp_path / 'out', MIT)


def test_a_tree_of_another_run_is_refused(make_run, tmp_path, unchecked) -> None:
    run, other = (load_run(make_run(name, tree=tree)) for name, tree in (('a', None), ('b', 'layer2:2')))
    os.replace(other.tree_file, run.tree_file)
    with pytest.raises(TrainError, match=r"tree.safetensors does not hold the weights of its recipe's tree"):
        export_run(run, tmp_path / 'out', ExportOptions(license='mit', head=3))
