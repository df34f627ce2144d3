from __future__ import annotations

import json
import os

import pytest
import timm
import timm.data
import torch
from safetensors.torch import load_file

from timm_collab.train.record import save
from timm_collab.train.record.save import ExportError, save_pruned

DATA_CONFIG = dict(
    input_size=(1, 32, 32), mean=(0.25,), std=(0.5,), interpolation='bilinear', crop_pct=1.0, crop_mode='center')


@pytest.fixture
def model():
    model = timm.create_model('collab_test_resnet', heads=2, num_classes=3, in_chans=1)
    model.kept_head = 1
    return model


@pytest.fixture
def images():
    return torch.randn(4, 1, 32, 32)


def test_plain_timm_loads_the_kept_head(model, images, tmp_path):
    line = save_pruned(model, tmp_path / 'pruned', images, DATA_CONFIG, {'in_chans': 1}, ['a', 'b', 'c'])
    assert line == f"import timm; model = timm.create_model('local-dir:{tmp_path}/pruned', pretrained=True)"
    names: dict = {}
    exec(line, names)
    reloaded = names['model'].eval()
    with torch.no_grad():
        assert torch.equal(reloaded(images), model.forward_heads(images)[1])
        assert not torch.equal(reloaded(images), model.forward_heads(images)[0])
    assert type(reloaded) is type(timm.create_model('test_resnet'))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['pruned']
    assert sorted(path.name for path in (tmp_path / 'pruned').iterdir()) == ['config.json', 'model.safetensors']


def test_saved_config_rebuilds_the_evaluation_transform(model, images, tmp_path):
    save_pruned(model, tmp_path / 'pruned', images, DATA_CONFIG, {'in_chans': 1}, ['a', 'b', 'c'])
    reloaded = timm.create_model(f'local-dir:{tmp_path}/pruned', pretrained=True)
    resolved = timm.data.resolve_data_config({}, model=reloaded)
    # JSON has no tuples.
    assert {name: tuple(value) if isinstance(value, list) else value for name, value in resolved.items()} == DATA_CONFIG
    config = json.loads((tmp_path / 'pruned' / 'config.json').read_text())
    assert (config['architecture'], config['num_classes'], config['label_names']) == ('test_resnet', 3, ['a', 'b', 'c'])
    assert 'num_classes' not in config.get('model_args', {})


@pytest.mark.parametrize(('from_scratch', 'kept'), [(True, False), (False, True)])
def test_licence_of_the_backbone_goes_with_its_weights(model, images, tmp_path, from_scratch, kept):
    save_pruned(model, tmp_path / 'pruned', images, DATA_CONFIG, {'in_chans': 1}, from_scratch=from_scratch)
    config = json.loads((tmp_path / 'pruned' / 'config.json').read_text())
    assert ('license' in config['pretrained_cfg']) is kept


def test_weights_are_as_readable_as_the_config(model, images, tmp_path):
    save_pruned(model, tmp_path / 'pruned', images, DATA_CONFIG, {'in_chans': 1})
    modes = {os.stat(path).st_mode for path in (tmp_path / 'pruned').iterdir()}
    assert len(modes) == 1


def test_the_line_to_load_an_architecture_of_the_plugin_imports_it(tmp_path):
    model = timm.create_model('collab_cifar_resnet20', heads=2, num_classes=3)
    data_config = {**DATA_CONFIG, 'input_size': (3, 32, 32), 'mean': (0.5,) * 3, 'std': (0.5,) * 3}
    line = save_pruned(model, tmp_path / 'pruned', torch.randn(2, 3, 32, 32), data_config, {})
    assert line.startswith('import timm, timm_collab; model = ')


def test_transformer_of_another_size(tmp_path):
    model = timm.create_model('collab_test_vit', heads=2, num_classes=3, img_size=32)
    data_config = {**DATA_CONFIG, 'input_size': (3, 32, 32), 'mean': (0.5,) * 3, 'std': (0.5,) * 3}
    save_pruned(model, tmp_path / 'pruned', torch.randn(2, 3, 32, 32), data_config, {'img_size': 32})
    reloaded = timm.create_model(f'local-dir:{tmp_path}/pruned', pretrained=True)
    assert reloaded(torch.randn(1, 3, 32, 32)).shape == (1, 3)


def test_tied_tensors_are_saved_under_all_their_names(tmp_path):
    model = timm.create_model('collab_coat_lite_tiny', heads=2, num_classes=3, img_size=32)
    data_config = {**DATA_CONFIG, 'input_size': (3, 32, 32), 'mean': (0.5,) * 3, 'std': (0.5,) * 3}
    images = torch.randn(2, 3, 32, 32)
    save_pruned(model, tmp_path / 'pruned', images, data_config, {'img_size': 32})
    reloaded = timm.create_model(f'local-dir:{tmp_path}/pruned', pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(reloaded(images), model(images))
    assert load_file(tmp_path / 'pruned' / 'model.safetensors').keys() == reloaded.state_dict().keys()
    assert reloaded.cpe1 is reloaded.serial_blocks1[1].cpe


def test_different_logits_are_refused_and_no_folder_is_left(model, images, tmp_path, monkeypatch):
    save_for_hf = save.save_for_hf

    def damage(pruned, *args, **kwargs):
        with torch.no_grad():
            next(pruned.parameters()).add_(1e-3)
        save_for_hf(pruned, *args, **kwargs)
        with torch.no_grad():
            next(pruned.parameters()).sub_(1e-3)

    monkeypatch.setattr(save, 'save_for_hf', damage)
    with pytest.raises(ExportError, match='model does not give the logits of head 1: they differ by up to'):
        save_pruned(model, tmp_path / 'pruned', images, DATA_CONFIG, {'in_chans': 1})
    assert not list(tmp_path.iterdir())
