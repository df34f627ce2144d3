"""Push heads and load them in a process without the plugin and with an empty cache: logits are equal bit for bit.

The heads are of twelve architectures from different families, each with a tree of one shape, in the slow test of three.
"""
from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.hub.conftest import client_environment, python, running_hub
from tests.runs import finished_run
from timm_collab import HeadTree, load_run, split_points
from timm_collab.hub import ExportOptions, PushOptions, push_folder
from timm_collab.hub.check import sample, trained_logits
from timm_collab.hub.export import write_folder

SHAPES = ('hierarchical', 'simple', 'instances')
HEADS = {'hierarchical': 4, 'simple': 3, 'instances': 2}
ARCHITECTURES = {  # with their image size, None for the default
    'test_resnet': 32, 'test_vit': None, 'test_convnext': 64, 'test_efficientnet': 64, 'test_byobnet': 64,
    'test_nfnet': 64, 'test_mambaout': 64, 'regnetx_002': 64, 'lcnet_035': 64, 'edgenext_xx_small': 64,
    'xcit_nano_12_p16_224': None, 'mobilevitv2_050': 64,
}
CASES = tuple(itertools.product(ARCHITECTURES, SHAPES))
USUAL = tuple(case for number, case in enumerate(CASES) if number // 3 % 3 == number % 3)
OTHERS = tuple(case for case in CASES if case not in USUAL)
BY_TRANSFORMERS = [
    'test_resnet-hierarchical', 'test_vit-simple', 'test_convnext-instances', 'test_efficientnet-hierarchical']

LOAD = """
import json, sys, timm, torch
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
images, logits = load_file('images.safetensors'), {}
with torch.inference_mode():
    for repo in json.loads(sys.argv[1]):
        logits[repo] = timm.create_model(f'hf-hub:{repo}', pretrained=True).eval()(images[repo])
assert 'timm_collab' not in sys.modules
try:
    from transformers import AutoImageProcessor, AutoModelForImageClassification
except ImportError:
    print('no transformers')
else:
    with torch.inference_mode():
        for repo in json.loads(sys.argv[2]):
            model = AutoModelForImageClassification.from_pretrained(repo).eval()
            logits[f'mapped {repo}'] = model(images[repo]).logits
            model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
            logits[f'copied {repo}'] = model(images[repo]).logits
            print(repo, type(AutoImageProcessor.from_pretrained(repo)).__name__, model.config.id2label[1])
save_file(logits, 'logits.safetensors')
"""


@dataclass(frozen=True)
class Elsewhere:
    """Results of the other process.

    Args:
        expected: Logits of each trained head, by repository.
        found: Logits of plain timm and of transformers there.
        output: Its standard output.
    """

    expected: dict[str, torch.Tensor]
    found: dict[str, torch.Tensor]
    output: str


def round_trip(folder: Path, cases: Sequence[tuple[str, str]], by_transformers: Sequence[str] = ()) -> Elsewhere:
    """Push a head of each case, and load them in another process."""
    expected, images = {}, {}
    with running_hub(folder) as hub:
        for arch, shape in cases:
            number = CASES.index((arch, shape))
            names = [point.name for point in split_points(arch) if point.name != 'input']
            # A fork needs parameters up to the next one; the default tree ensures that.
            tree = None if shape == 'hierarchical' else str(HeadTree.preset(HEADS[shape], shape, names[-3:-1]))
            name, classes = f'{arch}-{shape}', 3 + number
            path = finished_run(folder / name, arch=arch, tree=tree, size=ARCHITECTURES[arch], in_chans=3,
                                classes=classes, kept_head=1, labels=[f'class {label}' for label in range(classes)])
            run = load_run(path)
            head = number % HEADS[shape]
            write_folder(run, folder / f'{name}-out', ExportOptions(license='mit', head=head, tree=number == 0))
            repo = f'ann/{name}'
            push_folder(folder / f'{name}-out', PushOptions(repo=repo))
            expected[repo], images[repo] = trained_logits(run, head, half=False), sample(run.model_config)
            shutil.rmtree(path)
        save_file(images, folder / 'images.safetensors')
        mapped = json.dumps([f'ann/{name}' for name in by_transformers])
        done = python(LOAD, json.dumps(list(expected)), mapped, cwd=folder,
                      **client_environment(hub, folder / 'other-home'))
        assert done.returncode == 0, done.stderr[-2000:]
        return Elsewhere(expected, load_file(folder / 'logits.safetensors'), done.stdout)


@pytest.fixture(scope='module')
def elsewhere(tmp_path_factory) -> Elsewhere:
    return round_trip(tmp_path_factory.mktemp('round-trip'), USUAL, BY_TRANSFORMERS)


@pytest.mark.parametrize(('arch', 'shape'), USUAL)
def test_plain_timm_in_another_process_gives_the_logits_of_the_trained_head(elsewhere, arch, shape) -> None:
    repo = f'ann/{arch}-{shape}'
    assert elsewhere.found[repo].shape[1] == elsewhere.expected[repo].shape[1] != 1000
    assert torch.equal(elsewhere.found[repo], elsewhere.expected[repo])


@pytest.mark.slow
def test_the_other_shapes_too(tmp_path) -> None:
    others = round_trip(tmp_path, OTHERS)
    assert len(others.expected) == 24
    for repo, expected in others.expected.items():
        assert torch.equal(others.found[repo], expected), repo


@pytest.mark.parametrize('name', BY_TRANSFORMERS)
def test_transformers_loads_the_same_repository_with_equal_logits(elsewhere, name) -> None:
    if 'no transformers' in elsewhere.output:
        pytest.skip('transformers is not installed')
    repo = f'ann/{name}'
    assert torch.equal(elsewhere.found[f'copied {repo}'], elsewhere.expected[repo])
    # transformers maps the file into memory. Tensors there may be aligned differently from PyTorch's own, so that a
    # kernel sums in another order and the last bit differs.
    assert torch.allclose(elsewhere.found[f'mapped {repo}'], elsewhere.expected[repo], rtol=0, atol=1e-6)
    assert f'{repo} TimmWrapperImageProcessor class 1' in elsewhere.output
