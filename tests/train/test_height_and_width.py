"""`data.img_size: [height, width]`, from the recipe to the published model."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import timm.data
import torch
from PIL import Image

from timm_collab import from_pretrained_tree, load_run
from timm_collab.hub import ExportOptions
from timm_collab.hub.export import write_folder
from timm_collab.hub.formats import write_formats
from timm_collab.train import TrainError
from timm_collab.train.run import train
from timm_collab.train.validate import validate


@pytest.fixture(params=[
    ('test_resnet', [24, 40], '--augment.crop=pad'),
    ('test_vit', [32, 64], '--augment.crop=rkrc'),  # position embeddings for one size
], ids=lambda param: param[0])
def trained(request, recipe) -> tuple[Path, tuple[int, int]]:
    """A run of one epoch, and the height and width of its input."""
    arch, (height, width), crop = request.param
    config = recipe(
        f'--model.name=collab_{arch}', f'--data.img_size=[{height}, {width}]', '--augment.no_aug=false', crop,
        '--augment.cutmix=1', '--augment.re_prob=0.2')
    train(config)
    return Path(str(config.output)), (height, width)


def test_a_run_of_height_and_width_is_pruned_validated_and_exported(trained, tmp_path) -> None:
    path, size = trained
    run = load_run(path)
    assert run.data_config['input_size'] == (1, *size)
    found = [head['nll'] for head in validate(run)['heads']]
    assert found == pytest.approx(run.summary.measured['loss_heads'], rel=1e-5)

    pruned = timm.create_model(f'local-dir:{path}/pruned', pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(pruned))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 61), dtype=np.uint8))
    x = run.transform(image)
    assert x.shape == (1, *size) and torch.equal(transform(image), x)

    exported = tmp_path / 'out'
    write_folder(run, exported, ExportOptions(license='mit', tree=True))
    write_formats(exported, exported, ['pt2'])
    assert f'grey images of {size[0]}x{size[1]} pixels (height x width)' in (exported / 'README.md').read_text()
    program = torch.export.load(tmp_path / 'out.pt2').module()
    with torch.inference_mode():
        logits_BC = pruned(x[None])
        assert torch.equal(from_pretrained_tree(exported).eval()(x[None]), logits_BC)
        torch.testing.assert_close(program(x[None]), logits_BC)


def test_an_architecture_for_squares_alone_says_so(recipe) -> None:
    with pytest.raises(TrainError, match="model 'collab_nest_tiny' can't be made: Model only handles square inputs"):
        train(recipe('--model.name=collab_nest_tiny', '--data.img_size=[32, 64]'))
