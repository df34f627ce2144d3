from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from timm_collab import CatalogueError, list_heads
from timm_collab.pretrained.catalogue import CATALOGUE, PublishedHead, find_head, read_catalogue, shipped_folder

ENTRY = {
    'repo': 'ann/digits', 'revision': 'a' * 40, 'sha256': 'b' * 64, 'license': 'cc-by-4.0', 'dataset': 'builtin:digits',
    'tree': 'layer2:2', 'metrics': {'top1': 96.5}, 'pretrained_cfg': {'input_size': [1, 32, 32], 'num_classes': 10},
}


def write(path: Path, **changes) -> Path:
    entry = {key: value for key, value in {**ENTRY, **changes}.items() if value is not ...}
    path.write_text(yaml.safe_dump({changes.pop('name', 'test_resnet.digits'): entry}))
    return path


def test_entry_describes_a_head(tmp_path) -> None:
    [head] = read_catalogue(write(tmp_path / CATALOGUE)).values()
    assert (head.architecture, head.tag, head.repo, head.folder) == ('test_resnet', 'digits', 'ann/digits', None)
    assert repr(head) == '<test_resnet.digits: builtin:digits, top1 96.5, cc-by-4.0, ann/digits@aaaaaaa>'


def test_folder_is_relative_to_the_catalogue(tmp_path) -> None:
    [head] = read_catalogue(write(tmp_path / CATALOGUE, repo=..., revision=..., folder='digits')).values()
    assert head.folder == tmp_path / 'digits' and 'shipped' in repr(head)


@pytest.mark.parametrize(('changes', 'message'), [
    ({'sha256': 'b' * 63}, 'test_resnet.digits: sha256 must be 64 hexadecimal digits'),
    ({'sha256': 12}, 'sha256 must be 64 hexadecimal digits, got 12'),
    ({'revision': 'main'}, "revision must be a full commit hash, 40 hexadecimal digits, got 'main'"),
    ({'revision': ...}, 'revision must be a full commit hash'),
    ({'repo': ...}, 'needs a repo, or a folder'),
    ({'license': ''}, 'has no license'),
    ({'license': ...}, "test_resnet.digits: missing 1 required positional argument: 'license'"),
    ({'sha': '1'}, "got an unexpected keyword argument 'sha'"),
])
def test_invalid_entry_raises_with_its_name(tmp_path, changes, message) -> None:
    with pytest.raises(CatalogueError, match=message):
        read_catalogue(write(tmp_path / CATALOGUE, **changes))


@pytest.mark.parametrize(('text', 'message'), [
    ('a: [', "can't be read"),
    ('- a', 'must map names to heads'),
    ('resnet50.x: 3', 'an entry is a mapping, got 3'),
    ('resnet50: {}', 'missing'),
])
def test_invalid_catalogue_file_raises(tmp_path, text, message) -> None:
    (tmp_path / CATALOGUE).write_text(text)
    with pytest.raises(CatalogueError, match=message):
        read_catalogue(tmp_path / CATALOGUE)


def test_name_needs_a_tag() -> None:
    with pytest.raises(CatalogueError, match="'resnet50' must be an architecture and a tag"):
        PublishedHead(name='resnet50', **{**ENTRY, 'model_args': {}})


def test_shipped_catalogue_is_valid_and_registered() -> None:
    folder = shipped_folder()
    assert folder is not None
    shipped = read_catalogue(folder / CATALOGUE)
    assert shipped.keys() <= {head.name for head in list_heads()}
    for head in shipped.values():
        if head.folder is not None:
            assert sum(path.stat().st_size for path in head.folder.rglob('*')) <= 2e6


def test_unknown_head_raises() -> None:
    with pytest.raises(CatalogueError, match=r"has no head 'resnet50.nothing'; it has .*timm.create_model\('hf-hub:"):
        find_head('resnet50.nothing')
    assert list_heads('nothing*') == []
