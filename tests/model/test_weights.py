from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf
from timm.utils import freeze
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tests.tester import images
from timm_collab import CollabModel, HeadTreeError, split_points
from timm_collab.model.weights import BRANCH_INITS
from timm_collab.sweep.checks import settle, vary


@pytest.fixture
def plain() -> nn.Module:
    torch.manual_seed(5)
    return settle(vary(timm.create_model('test_resnet', num_classes=5)), images(64))


def matching(model: CollabModel, state: dict[str, Tensor], head: int) -> set[str]:
    """Return the names of the tensors in a head's plain state dict that equal those of `state`."""
    return {name for name, tensor in model.plain_state_dict(head).items() if torch.equal(tensor, state[name])}


@pytest.mark.parametrize('arch', ['test_resnet', 'coat_tiny'])  # coat has several names for one tensor
def test_plain_state_dict_equals_the_pruned_network_and_shares_memory(arch: str) -> None:
    model = CollabModel(arch, num_classes=5)
    state, pruned = model.plain_state_dict(2), model.prune(2)
    assert list(state) == list(pruned.state_dict())
    assert all(torch.equal(tensor, state[name]) for name, tensor in pruned.state_dict().items())
    ours = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert {tensor.data_ptr() for tensor in state.values()} <= ours
    assert not {tensor.data_ptr() for tensor in pruned.state_dict().values()} & ours


@pytest.mark.parametrize('branch_init', BRANCH_INITS)
def test_plain_checkpoint_initializes_trunk_and_branches(
        plain: nn.Module,
        branch_init: str,
        tmp_path: Path,
) -> None:
    state = plain.state_dict()
    torch.save({'state_dict': state}, tmp_path / 'plain.pth')
    model = timm.create_model(
        'collab_test_resnet', num_classes=5, branch_init=branch_init, checkpoint_path=str(tmp_path / 'plain.pth')
    )
    by_name = CollabModel(
        'test_resnet', num_classes=5, branch_init=branch_init, checkpoint_path=str(tmp_path / 'plain.pth')
    )
    trunk = {name for name in state if name.split('.')[0] in ('conv1', 'bn1', 'layer1', 'layer2')}
    for tree in (model, by_name):
        for head in range(4):
            same = matching(tree, state, head)
            if branch_init == 'copy':
                assert same == set(state)
            elif branch_init == 'classifier':
                assert same == set(state) - {'fc.weight', 'fc.bias'}
            else:
                assert trunk <= same and 'layer4.0.conv1.weight' not in same
        assert not torch.equal(tree.plain_state_dict(0)['fc.weight'], tree.plain_state_dict(3)['fc.weight']) or \
            branch_init == 'copy'


def test_checkpoint_with_other_classes_loads_all_but_the_classifiers(plain: nn.Module) -> None:
    model = CollabModel('test_resnet', num_classes=7)
    before = [model.plain_state_dict(head)['fc.weight'].clone() for head in range(4)]
    model.load_state_dict(plain.state_dict(), strict=True)
    for head in range(4):
        assert torch.equal(model.plain_state_dict(head)['fc.weight'], before[head])
        rest = {name: tensor for name, tensor in plain.state_dict().items() if not name.startswith('fc.')}
        assert all(torch.equal(model.plain_state_dict(head)[name], tensor) for name, tensor in rest.items())
    with pytest.raises(RuntimeError, match='size mismatch for nodes'):
        CollabModel('test_resnet', num_classes=7, branch_init='copy').load_state_dict(plain.state_dict())


def test_one_head_loads_the_complete_checkpoint(plain: nn.Module) -> None:
    model = CollabModel('test_resnet', heads=1, num_classes=5)
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model.eval()(images(64)), plain(images(64)))


def test_missing_and_unexpected_keys_are_reported(plain: nn.Module) -> None:
    model = CollabModel('test_resnet', num_classes=5)
    state = plain.state_dict()
    del state['layer3.0.conv1.weight']
    state['layer9.weight'] = torch.ones(1)
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(state)
    assert '"nodes.branch_0.layer3.0.conv1.weight", "nodes.branch_1.layer3.0.conv1.weight"' in str(error.value)
    assert 'Unexpected key(s) in state_dict: "layer9.weight"' in str(error.value)


def test_wrapped_tree_loads_a_plain_checkpoint(plain: nn.Module) -> None:
    wrapped = nn.Sequential(CollabModel('test_resnet', num_classes=5))
    wrapped.load_state_dict({f'0.{name}': tensor for name, tensor in plain.state_dict().items()})
    assert matching(wrapped[0], plain.state_dict(), 1) == set(plain.state_dict()) - {'fc.weight', 'fc.bias'}


def test_saved_model_as_backbone(plain: nn.Module, tmp_path: Path) -> None:
    save_for_hf(plain, tmp_path, safe_serialization=True)
    model = CollabModel(f'local-dir:{tmp_path}', heads=3, pretrained=True)
    assert model.num_classes == 5 and model.num_heads == 3
    assert matching(model, plain.state_dict(), 2) == set(plain.state_dict()) - {'fc.weight', 'fc.bias'}
    assert type(model.prune()) is type(plain)


def test_load_with_assign_gives_each_branch_its_own_memory(plain: nn.Module) -> None:
    model = CollabModel('test_resnet', num_classes=5)
    model.load_state_dict(plain.state_dict(), assign=True)
    pointers = [param.data_ptr() for param in model.parameters()]
    assert len(set(pointers)) == len(pointers)
    assert not {tensor.data_ptr() for tensor in plain.state_dict().values()} & set(pointers)
    expected = CollabModel('test_resnet', num_classes=5)
    expected.load_state_dict(plain.state_dict())
    assert matching(model, expected.plain_state_dict(3), 3) >= set(plain.state_dict()) - {'fc.weight', 'fc.bias'}


def test_tree_frozen_by_timm_prunes(plain: nn.Module) -> None:
    """Frozen BatchNorm layers have no num_batches_tracked; those of the plain network do."""
    model = CollabModel('test_resnet', num_classes=5)
    model.load_backbone(plain, 'copy')
    freeze(model, 'nodes.trunk')
    pruned = model.eval().prune(1)
    assert set(pruned.state_dict()) == set(plain.state_dict()) == set(model.plain_state_dict(1))
    assert pruned.bn1.num_batches_tracked == 0 and plain.bn1.num_batches_tracked == 1
    # Close but not equal: the frozen layers use other operators.
    torch.testing.assert_close(pruned(images(64)), model.forward_path(images(64), 1))
    assert not pruned.layer1[0].conv1.weight.requires_grad and pruned.fc.weight.requires_grad


def test_missing_tensor_is_named() -> None:
    model = CollabModel('test_resnet', num_classes=5)
    parametrize.register_parametrization(model.get_classifier()[0], 'weight', nn.Identity())
    for use in (model.prune, model.plain_state_dict):
        with pytest.raises(ValueError, match=r"the tree no longer has 'fc\.weight' of its architecture"):
            use(0)
        use(1)


def test_invalid_tree_of_a_network_in_a_folder(plain: nn.Module, tmp_path: Path) -> None:
    save_for_hf(plain, str(tmp_path), safe_serialization=True)
    source = f'local-dir:{tmp_path}'
    with pytest.raises(HeadTreeError, match=r"has no number of children.*Split points of 'local-dir:.*layer2"):
        CollabModel(source, tree='layer2')
    assert [point.name for point in split_points(source)] == [point.name for point in split_points('test_resnet')]


def test_backbone_may_have_the_collab_prefix() -> None:
    assert CollabModel('collab_test_resnet', num_classes=5).backbone == 'test_resnet'
