"""The heads in hub/: their recorded metrics are reproduced by plain timm on their data."""
from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image

from tests.hub.conftest import ROOT
from timm_collab import list_heads, load_head
from timm_collab.hub import PushOptions, push_folder
from timm_collab.hub.entry import MAX_SHIPPED, add_entry
from timm_collab.pretrained.catalogue import PublishedHead, read_catalogue
from timm_collab.train.config.parse import parse_config

SHIPPED = [head for head in list_heads() if head.folder is not None]


def measured_on(head: PublishedHead) -> Path:
    """File with the images that a head was evaluated on."""
    if head.dataset == 'builtin:digits':
        return ROOT / 'timm_collab' / 'data' / 'digits' / 'test.parquet'
    data = os.environ.get('TIMM_COLLAB_DATA')
    if not data:
        pytest.skip('TIMM_COLLAB_DATA, the folder with cifar10/test.parquet, is not set')
    return Path(data) / 'cifar10' / 'test.parquet'


def test_digits_and_cifar10_are_shipped() -> None:
    assert {head.dataset for head in SHIPPED} == {'builtin:digits', 'uoft-cs/cifar10'}
    assert {path.parent.name for path in (ROOT / 'hub').glob('*/config.json')} == {head.folder.name for head in SHIPPED}


@pytest.mark.parametrize('head', SHIPPED, ids=lambda head: head.name)
def test_recorded_accuracy_is_reproduced(head) -> None:
    model = load_head(head.name).eval()
    assert type(model).__module__.startswith('timm.')
    data = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**data)
    rows = parquet.read_table(measured_on(head), columns=['image', 'label']).to_pylist()
    mode = 'L' if data['input_size'][0] == 1 else 'RGB'
    right = 0
    for start in range(0, len(rows), 500):
        some = rows[start:start + 500]
        images = [transform(Image.open(io.BytesIO(row['image']['bytes'])).convert(mode)) for row in some]
        with torch.inference_mode():
            right += int((model(torch.stack(images)).argmax(dim=-1) == torch.tensor([r['label'] for r in some])).sum())
    assert len(rows) == head.metrics['images']
    # One image may lie on a decision boundary and be classified differently on another processor.
    assert abs(100 * right / len(rows) - head.metrics['top1']) <= 100 / len(rows) + 1e-9


@pytest.mark.parametrize('head', SHIPPED, ids=lambda head: head.name)
def test_card_catalogue_and_summary_agree(head, tmp_path) -> None:
    folder = ROOT / 'hub' / head.folder.name
    card = ModelCard.load(folder / 'README.md')
    summary = json.loads((folder / 'summary.json').read_text())
    assert card.data.license == head.license and card.data.library_name == 'timm'
    assert card.data.eval_results[0].metric_value == pytest.approx(head.metrics['top1'], abs=1e-6)
    assert 100 - summary['error_heads'][summary['export']['head']] == pytest.approx(head.metrics['top1'], abs=1e-6)
    assert sum(path.stat().st_size for path in folder.rglob('*')) <= MAX_SHIPPED
    # `timm-collab catalogue` still makes the same entry.
    shutil.copytree(folder, tmp_path / folder.name)
    (tmp_path / 'heads.yaml').write_text('{}\n')
    add_entry(tmp_path / folder.name, tmp_path / 'heads.yaml', head.tag)
    again = read_catalogue(tmp_path / 'heads.yaml')[head.name]
    assert (again.sha256, again.metrics, again.tree) == (head.sha256, head.metrics, head.tree)


@pytest.mark.parametrize('head', SHIPPED, ids=lambda head: head.name)
def test_shipped_head_can_be_pushed(hub, head) -> None:
    pushed = push_folder(ROOT / 'hub' / head.folder.name, PushOptions(repo=f'ann/{head.tag}'))
    assert hub.repos[f'ann/{head.tag}'].history()[0] == pushed.commit
    plain = timm.create_model(f'hf-hub:ann/{head.tag}', pretrained=True)
    kept = load_head(head.name).state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize('head', SHIPPED, ids=lambda head: head.name)
def test_recipe_of_a_shipped_head_is_valid(head) -> None:
    config = parse_config(['--config', str(ROOT / 'hub' / head.folder.name / 'recipe.yaml')])
    assert config.model.architecture == head.architecture and config.compare_single
    assert not Path(config.data.path).is_absolute() and config.output is None
