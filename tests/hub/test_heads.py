"""Load published heads from the loopback Hub, its cache and a folder, with the errors of unavailable files."""
from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import constants

from tests.hub.conftest import TOKEN, client_environment, python
from tests.hub_server import Fault, User
from timm_collab import DownloadError, from_pretrained_tree, list_heads, load_head, load_run, register_heads
from timm_collab.hub import ExportOptions, PushOptions, push_folder
from timm_collab.hub.check import folder_logits, sample
from timm_collab.hub.entry import add_entry
from timm_collab.hub.export import write_folder
from timm_collab.pretrained.catalogue import CATALOGUE
from timm_collab.pretrained.download import fetch

ALWAYS = 99


@pytest.fixture
def published(hub, exported, tmp_path) -> str:
    """Name of a head that was pushed and added to a new catalogue."""
    pushed = push_folder(exported, PushOptions(repo='ann/digits'))
    catalogue = tmp_path / 'catalogue' / CATALOGUE
    catalogue.parent.mkdir()
    catalogue.write_text('# heads\n')
    name = add_entry(exported, catalogue, f'h{os.urandom(4).hex()}', 'ann/digits', pushed.commit)
    assert catalogue.read_text().startswith('# heads\n')
    register_heads(catalogue)
    hub.requests.clear()
    return name


def logits(model: torch.nn.Module, folder: Path) -> torch.Tensor:
    images = sample(json.loads((folder / 'config.json').read_text()))
    with torch.inference_mode():
        return model.eval()(images)


def test_load_head_by_name(hub, published, exported) -> None:
    model = load_head(published)
    assert type(model).__module__ == 'timm.models.resnet'
    assert torch.equal(logits(model, exported), folder_logits(exported))
    [head] = list_heads(published)
    assert (head.dataset, head.license, head.metrics['top1']) == ('builtin:digits', 'cc-by-4.0', 91.0)
    assert load_head(published, num_classes=3)(torch.randn(2, 1, 32, 32)).shape == (2, 3)


def test_cached_head_needs_no_connection(hub, published, exported) -> None:
    load_head(published)
    hub.requests.clear()
    assert torch.equal(logits(load_head(published), exported), folder_logits(exported))
    assert hub.requests == []


def test_pretrained_tag_loads_trunk_and_all_branches(hub, published, exported) -> None:
    assert f'collab_{published}' in timm.list_models('collab_test_resnet*', pretrained=True)
    torch.manual_seed(1)  # the published head was drawn from seed 0
    model = timm.create_model(f'collab_{published}', pretrained=True, heads=3)
    assert (model.num_heads, model.num_classes) == (3, 10)
    plain = load_head(published).state_dict()
    for head in range(3):
        state = model.prune(head).state_dict()
        assert all(torch.equal(state[name], value) for name, value in plain.items() if not name.startswith('fc.'))
        assert not torch.equal(state['fc.weight'], plain['fc.weight'])
    assert tuple(timm.data.resolve_model_data_config(model)['input_size']) == (1, 32, 32)


def test_load_tree_of_a_repository(hub, usual_run, tmp_path) -> None:
    write_folder(load_run(usual_run), tmp_path / 'out', ExportOptions(license='mit', tree=True))
    pushed = push_folder(tmp_path / 'out', PushOptions(repo='ann/tree'))
    for model in (from_pretrained_tree('ann/tree'), from_pretrained_tree('ann/tree', revision=pushed.commit)):
        assert (str(model.tree), model.kept_head) == ('layer2:2,layer3:2', 1)
        assert torch.equal(logits(model, tmp_path / 'out'), folder_logits(tmp_path / 'out'))


def test_head_without_a_tree(hub, published, exported) -> None:
    with pytest.raises(DownloadError, match=r"'ann/digits' at [0-9a-f]{40} has no tree.safetensors"):
        from_pretrained_tree(published)
    with pytest.raises(DownloadError, match='it has no tree to load'):
        from_pretrained_tree(exported)


def test_weights_of_another_tree(usual_run, tmp_path) -> None:
    folder = tmp_path / 'out'
    write_folder(load_run(usual_run), folder, ExportOptions(license='mit', tree=True))
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, 'head_tree': {'tree': 'layer2:2', 'kept_head': 0}}))
    with pytest.raises(DownloadError, match="does not match the tree 'layer2:2'"):
        from_pretrained_tree(folder)
    del config['head_tree']
    (folder / 'config.json').write_text(json.dumps(config))
    with pytest.raises(DownloadError, match='does not have the spec of the tree'):
        from_pretrained_tree(folder)


def forget_cache() -> None:
    shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)


def test_interrupted_download_is_resumed(hub, published, exported, monkeypatch) -> None:
    monkeypatch.setattr(constants, 'DOWNLOAD_CHUNK_SIZE', 1000)  # several chunks also for a small file
    hub.inject('download', Fault(cut=True))
    assert torch.equal(logits(load_head(published), exported), folder_logits(exported))
    assert [request.status for request in hub.requests if request.kind == 'download'] == [200, 206]


def test_wrong_checksum_is_downloaded_again_and_then_rejected(hub, published, exported) -> None:
    hub.inject('download', Fault(corrupt=True))
    assert torch.equal(logits(load_head(published), exported), folder_logits(exported))
    assert hub.kinds().count('download') == 2
    forget_cache()
    hub.inject('download', Fault(corrupt=True, times=ALWAYS))
    with pytest.raises(DownloadError, match=r'the weights have the SHA-256 [0-9a-f]{64} and should have [0-9a-f]{64}'):
        load_head(published)


def test_renamed_repository_is_found(hub, published, exported) -> None:
    hub.repos['ann/numbers'] = hub.repos.pop('ann/digits')
    hub.moved['ann/digits'] = 'ann/numbers'
    assert torch.equal(logits(load_head(published), exported), folder_logits(exported))


def missing(hub) -> None:
    hub.repos.clear()


def private(hub) -> None:
    hub.tokens[TOKEN] = User('bob')


def gated(hub) -> None:
    hub.repos['ann/digits'].gated = True
    hub.repos['ann/digits'].private = False
    hub.tokens[TOKEN] = User('bob')


def rewritten(hub) -> None:
    hub.repos['ann/digits'] = hub.create('ann/other')


def down_later(hub) -> None:
    hub.inject('download', Fault(status=503, times=ALWAYS))


def cut_off(hub) -> None:
    hub.inject('resolve', Fault(drop=True, times=ALWAYS))


@pytest.mark.parametrize(('happens', 'message'), [
    (missing, r"config.json: 'ann/digits' at [0-9a-f]{40} is not there: it was renamed or deleted, or is private"),
    (private, 'is not there: it was renamed or deleted, or is private'),
    (gated, 'is gated: accept its conditions on https://huggingface.co/ann/digits and log in'),
    (rewritten, 'is there, but this revision is not'),
    (down_later, 'model.safetensors: .* answered 503: try again later'),
    (cut_off, 'could not be reached|could not be loaded'),
])
def test_errors_of_unavailable_files(hub, published, happens, message) -> None:
    happens(hub)
    with pytest.raises(DownloadError, match=message) as error:
        load_head(published)
    assert '\n' not in str(error.value) and TOKEN not in str(error.value)


def test_offline_without_a_cache(hub, published, monkeypatch) -> None:
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    reset = getattr(huggingface_hub.utils, 'reset_sessions', lambda: None)  # absent in older releases
    reset()
    with pytest.raises(DownloadError, match='could not be reached, and the cache does not have it'):
        load_head(published)
    reset()
    assert hub.requests == []


def test_missing_file_in_a_repository(hub, published) -> None:
    with pytest.raises(DownloadError, match=r"nothing.json: 'ann/digits' has no nothing.json"):
        fetch('ann/digits', 'nothing.json')


def test_shipped_head_needs_no_hub(exported, tmp_path) -> None:
    catalogue = tmp_path / CATALOGUE
    catalogue.write_text('{}\n')
    name = add_entry(exported, catalogue, 'shipped')
    code = f"""
import timm, timm_collab, sys
timm_collab.register_heads({str(catalogue)!r})
print(timm_collab.list_heads({name!r}), type(timm_collab.load_head({name!r})).__module__)
model = timm.create_model('collab_{name}', pretrained=True)
print(timm.get_pretrained_cfg('collab_{name}').num_classes, model.num_heads)
try:
    open({str(exported / 'model.safetensors')!r}, 'ab').write(b'x')
    timm_collab.load_head({name!r})
except timm_collab.DownloadError as error:
    print(error)
print(sorted({{'accelerate', 'datasets'}} & set(sys.modules)))
"""
    done = python(code, cwd=tmp_path, HF_HUB_OFFLINE='1', HF_HOME=str(tmp_path / 'home'))
    lines = done.stdout.splitlines()
    assert lines[0].endswith('shipped>] timm.models.resnet') and lines[1] == '10 4', done.stderr
    assert 'and should have' in lines[2] and lines[3] == '[]'


def test_clients_use_the_loopback_hub_only(hub) -> None:
    assert client_environment(hub, Path('home'))['HF_ENDPOINT'].startswith('http://127.0.0.1:')
