"""A finished run: what `load_run` gives, and which runs it refuses."""
from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import timm.data
import torch
import yaml
from PIL import Image

import timm_collab
from tests.runs import finished_run
from timm_collab import CollabModel, Run, load_run
from timm_collab.train import TrainConfig, TrainError
from timm_collab.train.data.augment.preprocess import make_preprocessing
from timm_collab.train.data.sources import load_split
from timm_collab.train.record.summary import RunSummary
from timm_collab.train.run import train
from timm_collab.train.validate import validate


@pytest.fixture(scope='module')
def usual_run(tmp_path_factory) -> Path:
    return finished_run(tmp_path_factory.mktemp('usual') / 'run', labels=list('abcdefghij'), kept_head=2)


@pytest.fixture
def folder(usual_run, tmp_path) -> Path:
    """A copy, to damage."""
    return shutil.copytree(usual_run, tmp_path / 'run')


def test_a_run_has_its_recipe_its_summary_and_its_classes(usual_run) -> None:
    run = load_run(str(usual_run))
    assert isinstance(run, Run) and isinstance(run.config, TrainConfig) and isinstance(run.summary, RunSummary)
    assert run.config.model.name == 'collab_test_resnet' and run.summary.scores.kept == 8.0
    assert (run.architecture, run.summary.num_heads, run.summary.kept_head) == ('test_resnet', 4, 2)
    assert run.class_names == list('abcdefghij')
    assert run.model_args['in_chans'] == 1 and not run.needs_plugin
    assert load_run(usual_run) == run


def test_the_kept_head_of_the_tree_gives_the_logits_of_the_pruned_model(usual_run) -> None:
    run = load_run(usual_run)
    tree, pruned = run.load_tree(), run.load_pruned()
    assert isinstance(tree, CollabModel) and tree.kept_head == 2 and not tree.training and not pruned.training
    assert type(pruned) is type(timm.create_model('test_resnet'))
    images = torch.randn(3, *run.data_config['input_size'])
    with torch.inference_mode():
        assert torch.equal(tree.forward_heads(images)[tree.kept_head], pruned(images))
        assert torch.equal(tree(images), pruned(images))


def test_the_transform_is_the_one_that_timm_makes_of_the_saved_config(usual_run) -> None:
    run = load_run(usual_run)
    config = timm.data.resolve_model_data_config(run.load_pruned())
    expected = timm.data.create_transform(**{**config, 'input_size': tuple(config['input_size'])}, is_training=False)
    assert repr(run.transform) == repr(expected)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 40), dtype=np.uint8))
    assert torch.equal(run.transform(image), expected(image))
    assert run.transform(image).shape == (1, 32, 32)


def test_a_run_is_validated_as_it_was_evaluated(recipe, tmp_path) -> None:
    """Runs of older versions have recipes without `crop_pct` whose evaluation cropped nevertheless."""
    train(recipe('--data.img_size=32', '--data.crop_pct=0.95'))
    path = tmp_path / 'run'
    saved = yaml.safe_load((path / 'config.yaml').read_text())
    saved['data']['crop_pct'] = None
    (path / 'config.yaml').write_text(yaml.safe_dump(saved))
    run = load_run(path)
    assert (run.data_config['crop_pct'], run.data_config['crop_mode']) == (0.95, 'center')
    assert validate(run)['heads'][0]['nll'] == pytest.approx(run.summary.measured['loss_heads'][0], rel=1e-5)
    with pytest.raises(TrainError, match=r'data\.in_chans must be what the run was trained with, 1'):
        validate(run, overrides={'in_chans': 3})
    now = make_preprocessing(run.load_pruned(), run.config.data, run.config.augment).evaluation
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8))
    assert not torch.equal(run.transform(image), now(image))


@pytest.mark.parametrize(('asked', 'expected'), [
    (dict(crop_pct=1.0), dict(crop_pct=1.0)),
    (dict(img_size=24), dict(input_size=(1, 24, 24))),
    (dict(mean=[0.2], std=[0.3], interpolation='nearest'), dict(mean=(0.2,), std=(0.3,), interpolation='nearest')),
], ids=str)
def test_keys_of_the_preprocessing_that_are_asked_for_replace_the_runs(recipe, tmp_path, asked, expected) -> None:
    train(recipe('--data.img_size=32', '--data.crop_pct=0.8'))
    run = load_run(tmp_path / 'run')
    transform = timm.data.create_transform(**{**run.data_config, **expected}, is_training=False)
    images, _ = load_split(run.config.data, 'test')
    x = torch.stack([transform(images.image(index)) for index in range(len(images))])
    with torch.inference_mode():
        nll = torch.nn.functional.cross_entropy(run.load_pruned()(x), torch.from_numpy(images.labels))
    found = validate(run, overrides=asked)['pruned']['nll']
    assert found == pytest.approx(nll.item(), rel=1e-4)
    assert found != pytest.approx(validate(run)['pruned']['nll'], rel=1e-4)


def test_an_architecture_of_the_plugin_needs_it(tmp_path) -> None:
    assert load_run(finished_run(tmp_path / 'run', arch='cifar_resnet20', in_chans=3)).needs_plugin


def test_the_public_module_has_no_other_names() -> None:
    assert {'Run', 'load_run'} <= set(dir(timm_collab))
    with pytest.raises(AttributeError, match="has no attribute 'load_runs'"):
        _ = timm_collab.load_runs  # type: ignore[attr-defined]


def edit(file: Path, **changes: Any) -> None:
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


@pytest.mark.parametrize(('damage', 'message'), [
    (shutil.rmtree, 'is no folder: name the folder that training wrote'),
    (lambda run: (run / 'summary.json').unlink(), 'is not finished, it has no summary.json'),
    (lambda run: (run / 'config.yaml').unlink(), 'holds no run: it has no config.yaml'),
    (lambda run: (run / 'config.yaml').write_text('epochs: ['), 'is damaged, or from another version: recipe'),
    (lambda run: (run / 'summary.json').write_text('{"network": '), r"summary.json' is damaged: .*"),
    (lambda run: (run / 'summary.json').write_text('[]'), r"summary.json' is damaged: it is not the summary of a run"),
    (lambda run: edit(run / 'summary.json', tree=..., noise=...), "summary.json' lacks tree, noise"),
    (lambda run: edit(run / 'summary.json', kept_head=4), '4 heads, head 4 kept'),
])
def test_a_missing_unfinished_or_damaged_run_is_one_clear_error(
        folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(TrainError) as error:
        load_run(folder)
    assert re.search(message, str(error.value)) and str(folder) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(('damage', 'load', 'message'), [
    (lambda run: edit(run / 'pruned' / 'config.json', architecture=...), lambda run: run.architecture,
     'pruned/config.json lacks architecture'),
    (lambda run: (run / 'pruned' / 'config.json').write_text('{'), lambda run: run.architecture,
     'pruned/config.json is missing or damaged'),
    (lambda run: (run / 'pruned' / 'config.json').unlink(), lambda run: run.architecture,
     'pruned/config.json is missing or damaged'),
    (lambda run: (run / 'pruned' / 'config.json').unlink(), Run.load_pruned,
     'pruned/, the pruned model, is incomplete: move pruned/ away and write it again with `timm-collab prune'),
    (lambda run: (run / 'pruned' / 'model.safetensors').write_bytes(b'no tensors'), Run.load_pruned,
     "pruned/ can't be loaded"),
    (lambda run: (run / 'tree.safetensors').unlink(), Run.load_tree, 'has no tree.safetensors'),
    (lambda run: (run / 'tree.safetensors').write_bytes(b'no tensors'), Run.load_tree,
     "tree.safetensors does not hold the weights of its recipe's tree"),
])
def test_a_damaged_model_is_an_error_where_it_is_loaded(folder, damage, load, message) -> None:
    damage(folder)
    run = load_run(folder)
    with pytest.raises(TrainError, match=re.escape(message)) as error:
        load(run)
    assert str(folder) in str(error.value) and '\n' not in str(error.value)


def test_a_head_is_the_best_one_or_a_number(usual_run) -> None:
    run = load_run(usual_run)
    assert (run.find_head('best'), run.find_head('0'), run.find_head(3)) == (2, 0, 3)
    for head in ('4', '-1', 'worst', 17):
        with pytest.raises(TrainError, match=f"--head '{head}': write best, or a number from 0 to 3"):
            run.find_head(head)


def test_another_head_than_the_kept_one_needs_the_tree(folder) -> None:
    (folder / 'tree.safetensors').unlink()
    run = load_run(folder)
    assert run.find_head('2') == 2
    with pytest.raises(TrainError, match=r"--head '1': .* has no tree.safetensors, only the weights of head 2"):
        run.find_head('1')
