from __future__ import annotations

import subprocess
import sys

import timm
import torch

from tests.tester import images
from timm_collab import CollabModel


def test_every_architecture_is_registered() -> None:
    plain = set(timm.list_models(exclude_filters='collab_*'))
    collab = set(timm.list_models('collab_*'))
    assert collab == {f'collab_{name}' for name in plain}
    assert len(collab) > 1000
    assert timm.is_model('collab_resnet50') and timm.is_model('collab_resnet50.a1_in1k')


def test_list_models_by_module_is_unchanged() -> None:
    assert not [name for name in timm.list_models(module='resnet') if name.startswith('collab_')]
    assert set(timm.list_models('collab_*')) == set(timm.list_models(module='registry'))


def test_pretrained_tags_of_the_architecture() -> None:
    tags = timm.list_models('resnet50', pretrained=True)
    assert timm.list_models('collab_resnet50', pretrained=True) == [f'collab_{tag}' for tag in tags]
    assert timm.get_pretrained_cfg('collab_resnet50.a1_in1k').hf_hub_id == 'timm/resnet50.a1_in1k'


def test_create_model() -> None:
    model = timm.create_model('collab_test_resnet', heads=3, pattern='simple', num_classes=5, in_chans=1)
    assert isinstance(model, CollabModel)
    assert model(images(64, channels=1)).shape == (3, 2, 5)
    pruned = model.prune()
    assert type(pruned).__module__ == 'timm.models.resnet'
    assert pruned.pretrained_cfg['architecture'] == 'test_resnet'
    tagged = timm.create_model('collab_test_resnet.r160_in1k', num_classes=5)
    assert tagged.pretrained_cfg['tag'] == 'r160_in1k'


def test_pretrained_cfg_of_the_collab_name() -> None:
    cfg = timm.get_pretrained_cfg('collab_test_resnet')
    for given in (cfg, cfg.to_dict()):
        model = timm.create_model('collab_test_resnet', pretrained_cfg=given)
        assert model.prune().pretrained_cfg['architecture'] == 'test_resnet'


def test_pretrained_weights_from_a_local_file(tmp_path) -> None:
    source = timm.create_model('test_resnet', num_classes=1000)
    path = tmp_path / 'weights.pth'
    torch.save(source.state_dict(), path)
    model = timm.create_model('collab_test_resnet', pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))
    for head in range(model.num_heads):
        state = model.prune(head).state_dict()
        assert all(torch.equal(state[k], v) for k, v in source.state_dict().items() if not k.startswith('fc.'))
        assert not torch.equal(state['fc.weight'], source.state_dict()['fc.weight'])


def test_register_a_later_architecture() -> None:
    # in a separate process, as timm's registry has no way to remove an entry
    code = """
import timm, timm_collab, torch

def my_resnet(pretrained=False, **kwargs):
    return timm.create_model('test_resnet', pretrained=pretrained, **kwargs)

timm.models.register_model(my_resnet)
timm_collab.register_collab('my_resnet')
print(tuple(timm.create_model('collab_my_resnet', heads=2, num_classes=3)(torch.randn(2, 3, 64, 64)).shape))
"""
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert run.stdout.strip() == '(2, 2, 3)', run.stderr


def test_import_without_warnings() -> None:
    code = 'import timm, timm_collab; print(len(timm.list_models("collab_*")))'
    run = subprocess.run([sys.executable, '-W', 'error::UserWarning', '-c', code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 1000
