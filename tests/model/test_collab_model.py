from __future__ import annotations

import copy
from collections import Counter

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tester import FAMILIES, Family, check_tree, images
from timm_collab import CollabModel, CollaborativeLoss, HeadTree, HeadTreeError, SplitPointError
from timm_collab.split.meta import named_tensors
from timm_collab.sweep.checks import settle


def trees(family: Family) -> dict[str, str]:
    first, second = family.splits
    return {
        'hierarchical': f'{first}:2,{second}:2',
        'simple': f'{second}:3',
        'instances': 'input:2',
        'non-uniform': f'{first}:[{second}:2 | head]',
        'unlike-branches': f'{first}:[head | {second}:2]',
    }


@pytest.mark.parametrize('family', FAMILIES, ids=str)
def test_every_head_prunes_bit_for_bit_on_a_non_uniform_tree(family: Family) -> None:
    model = check_tree(family.arch, family.size, trees(family)['non-uniform'], **family.kwargs)
    logits_HBC = model.forward_heads(images(family.size))
    assert not torch.equal(logits_HBC[0], logits_HBC[1])


@pytest.mark.parametrize('shape', ['hierarchical', 'simple', 'instances', 'unlike-branches'])
@pytest.mark.parametrize('family', FAMILIES, ids=str)
def test_every_head_prunes_bit_for_bit(family: Family, shape: str) -> None:
    check_tree(family.arch, family.size, trees(family)[shape], **family.kwargs)


def test_one_head_is_the_plain_network() -> None:
    torch.manual_seed(3)
    plain = timm.create_model('resnet18', num_classes=10)
    torch.manual_seed(3)
    model = CollabModel('resnet18', heads=1, num_classes=10)
    x = images(64)
    assert torch.equal(model(x)[0], plain(x))
    F.cross_entropy(model(x)[0], torch.tensor([1, 2])).backward()
    F.cross_entropy(plain(x), torch.tensor([1, 2])).backward()
    grads = {name.removeprefix('nodes.trunk.'): p.grad for name, p in model.named_parameters()}
    assert all(torch.equal(grads[name], p.grad) for name, p in plain.named_parameters())


def test_each_head_takes_its_nodes_from_a_plain_network_of_its_own() -> None:
    torch.manual_seed(3)
    plain = [dict(named_tensors(timm.create_model('test_vit', num_classes=10))) for _ in range(4)]
    torch.manual_seed(3)
    model = CollabModel('test_vit', num_classes=10)
    first_head = {'trunk': 0, 'branch_0': 0, 'branch_0_0': 0, 'branch_0_1': 1,
                  'branch_1': 2, 'branch_1_0': 2, 'branch_1_1': 3}
    for name, node in model.nodes.items():
        expected = plain[first_head[name]]
        assert all(torch.equal(tensor, expected[key]) for key, tensor in named_tensors(node)), name
    assert all(torch.equal(tensor, plain[0][key]) for key, tensor in named_tensors(model.prune(0)))
    weights = [model.prune(head).state_dict()['head.weight'] for head in range(4)]
    assert all(not torch.equal(weights[i], weights[j]) for i in range(4) for j in range(i))


@pytest.mark.parametrize(('arch', 'tree', 'size'), [
    ('resnet18', 'layer2:2,layer3:2', 32),
    ('cifar_resnet14', 'layer1:[layer2.0:3,layer2:2 | layer2:[layer3.0:2 | head]]', 32),
    ('densenet121', 'features.denseblock1.denselayer3:[features.denseblock2.denselayer2:2 | head]', 32),
    ('hrnet_w18_small', 'stage2:2,stage3:2', 64),
])
def test_shared_layers_receive_the_mean_gradient_of_their_children(arch: str, tree: str, size: int) -> None:
    # Eq. 5: with I(x) at every split, a parameter above it gets the mean over the children of their gradients, each
    # of which is a mean again. The reference differentiates each head alone, without rescaling, and averages upwards.
    torch.manual_seed(0)
    model = CollabModel(arch, tree=tree, num_classes=5).double()
    x, target = images(size).double(), torch.tensor([1, 4])
    params = {key: list(node.parameters()) for key, node in model.nodes.items()}

    model.rescale = False
    losses = [F.cross_entropy(logits, target) for logits in model(x)]

    def averaged(node: HeadTree, path: tuple[int, ...], of: list[torch.Tensor]) -> list[torch.Tensor]:
        if node.split is None:
            head = model.tree.leaves.index(path)
            grads = torch.autograd.grad(losses[head], of, retain_graph=True, allow_unused=True)
            return [torch.zeros_like(p) if g is None else g for g, p in zip(grads, of, strict=True)]
        children = [averaged(child, (*path, i), of) for i, child in enumerate(node.children)]
        return [sum(grads) / len(children) for grads in zip(*children, strict=True)]

    expected = {}
    for path, node in model.tree.walk():
        key = 'trunk' if not path else 'branch_' + '_'.join(map(str, path))
        expected[key] = averaged(node, path, params[key])

    model.rescale = True
    sum(F.cross_entropy(logits, target) for logits in model(x)).backward()
    for key, grads in expected.items():
        for param, grad in zip(params[key], grads, strict=True):
            assert torch.linalg.vector_norm(param.grad - grad) <= 1e-10 * torch.linalg.vector_norm(grad) + 1e-16, key


def test_without_rescaling_gradients_are_summed() -> None:
    torch.manual_seed(0)
    model = CollabModel('test_resnet', tree='layer2:2,layer3:2', num_classes=5).double()
    x = images(64).double()
    weight = model.nodes['trunk'].get_parameter('conv1.0.weight')
    [mean] = torch.autograd.grad(model(x).square().sum(), weight)
    model.rescale = False
    [total] = torch.autograd.grad(model(x).square().sum(), weight)
    assert torch.allclose(total, 4 * mean, rtol=1e-10)


def test_eval_mode_computes_only_the_kept_path() -> None:
    model = CollabModel('test_resnet', num_classes=5).eval()
    ran = []
    for key, node in model.nodes.items():
        node.register_forward_hook(lambda *_, key=key: ran.append(key))
    model.kept_head = 2
    model(images(64))
    assert ran == ['trunk', 'branch_1', 'branch_1_0']


@pytest.mark.parametrize(('kwargs', 'error', 'complaint'), [
    (dict(backbone='resnet19'), ValueError, "timm has no architecture 'resnet19'; did you mean .*'resnet18'"),
    (dict(tree='layr2:2'), SplitPointError, "'layr2' is no module.*Did you mean 'layer2'.*points: input, .*layer4"),
    (dict(tree='layer3:2,layer2:2'), SplitPointError, "'layer2' comes before 'layer3' in the network: swap them"),
    (dict(tree='fc:2'), SplitPointError, "no parameter between 'fc' and the end.*Its split points: input"),
    (dict(tree='layer4:2,layer4.1:2'), SplitPointError, "no parameter between 'layer4' and 'layer4.1'"),
    (dict(tree='layr2:2', in_chans=1), SplitPointError, "Did you mean 'layer2'"),
    (dict(tree='layer2:1'), HeadTreeError, "write 'layer2:2'.* Split points of 'resnet18': input, conv1"),
    (dict(tree='layer2:2', heads=4), ValueError, "tree 'layer2:2' has 2 heads, not 4"),
    (dict(heads=0), HeadTreeError, 'heads must be a whole number from 1, got 0'),
    (dict(pattern='star'), HeadTreeError, "unknown pattern 'star'"),
    (dict(kept_head=4), ValueError, 'there is no head 4: this tree has heads 0 to 3'),
    (dict(num_classes=0), ValueError, 'needs at least one class'),
    (dict(features_only=True), ValueError, 'prune'),
    (dict(branch_init='zeros'), ValueError, "unknown branch_init 'zeros': write one of classifier"),
])
def test_bad_arguments(kwargs: dict, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        CollabModel(**{'backbone': 'resnet18', **kwargs})


class Encoder(timm.models.resnet.ResNet):
    """A network without a classifier, which returns features for any num_classes, like a few of timm's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_features(x)


def test_encoder_without_classifier_raises(monkeypatch) -> None:
    monkeypatch.setattr(timm.models.resnet, 'ResNet', Encoder)
    with pytest.raises(ValueError, match=r"can't be turned into a head tree: it maps 3 images to .*512, 7, 7"):
        CollabModel('resnet18')


def test_repr_draws_the_tree() -> None:
    plain = timm.create_model('resnet18')
    layer3, rest = (
        sum(p.numel() for name in names for p in plain.get_submodule(name).parameters()) / 1e6
        for names in (['layer3'], ['layer4', 'fc'])
    )
    trunk = sum(p.numel() for p in plain.parameters()) / 1e6 - layer3 - rest
    lines = str(CollabModel('resnet18')).split('\n')
    assert lines[0] == (
        "CollabModel('resnet18', tree='layer2:2,layer3:2', 4 heads, 0 kept,"
        f' {trunk + 2 * layer3 + 4 * rest:.2f} M parameters)'
    )
    assert lines[1].split() == ['trunk:', 'input', '->', 'layer2', f'{trunk:.2f}', 'M', 'parameters']
    assert len(lines) == 8


@pytest.mark.parametrize('branch_init', ['classifier', 'perturb', 'fresh', 'copy'])
def test_branch_init(branch_init: str) -> None:
    model = CollabModel('test_resnet', tree='layer2:2', num_classes=5)
    source = settle(timm.create_model('test_resnet', num_classes=5), images(64))
    model.load_backbone(source, branch_init)
    same = [
        {k for k, v in source.state_dict().items() if torch.equal(model.prune(head).state_dict()[k], v)}
        for head in range(2)
    ]
    trunk = {k for k in source.state_dict() if k.startswith(('conv1', 'bn1', 'layer1', 'layer2'))}
    everything, classifier = set(source.state_dict()), {'fc.weight', 'fc.bias'}
    assert trunk <= same[0] and trunk <= same[1]
    if branch_init == 'classifier':
        assert same == [everything - classifier] * 2
    elif branch_init == 'copy':
        assert same == [everything] * 2
    elif branch_init == 'fresh':
        assert not any(name.endswith('conv1.weight') for name in same[0] - trunk)
    else:
        weight = [model.prune(head).state_dict()['fc.weight'] for head in range(2)]
        off = (weight[0] - source.fc.weight).std() / source.fc.weight.std()
        assert .005 < off < .02
        assert not torch.equal(*weight)


def test_reset_classifier_differs_between_heads() -> None:
    model = settle(CollabModel('test_resnet', num_classes=5), images(64))
    before = [model.prune(head).state_dict() for head in range(4)]
    model.reset_classifier(3)
    assert model.num_classes == 3 and model(images(64)).shape == (2, 3)
    assert [classifier.out_features for classifier in model.get_classifier()] == [3] * 4
    weights = [classifier.weight for classifier in model.get_classifier()]
    assert not torch.equal(weights[0], weights[1])
    for head in range(4):
        after = model.prune(head).state_dict()
        assert all(torch.equal(v, after[k]) for k, v in before[head].items() if not k.startswith('fc.'))
    with pytest.raises(ValueError, match='at least one class'):
        model.reset_classifier(0)


def test_copies_share_no_memory() -> None:
    model = CollabModel('test_resnet', num_classes=5)
    other = copy.deepcopy(model)
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in other.parameters()}
    other.reset_classifier(3)
    assert model.num_classes == 5
    pruned = model.prune()
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in pruned.parameters()}


class Operators(TorchDispatchMode):
    """Counts the operators that run, except views."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[str(func)] += not any(value.alias_info and not value.alias_info.is_write
                                          for value in func._schema.returns)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('arch', ['resnet18', 'vit_tiny_patch16_224'])
def test_one_head_runs_the_operators_of_the_plain_network(arch: str) -> None:
    """A training step runs these and about a dozen more on the logits. Counting them is more exact than timing."""
    plain, tree = timm.create_model(arch), timm.create_model(f'collab_{arch}', heads=1)
    x, target_B = torch.randn(2, 3, 224, 224), torch.tensor([1, 2])
    counts = []
    for model, objective in ((plain, nn.CrossEntropyLoss()), (tree, CollaborativeLoss())):
        with Operators() as operators:
            objective(model.train()(x), target_B).backward()
        counts.append(operators.counts)
    of_plain, of_tree = counts
    assert not of_plain - of_tree and of_plain.total() > 150
    assert (of_tree - of_plain).total() <= 14
    assert not [name for name in of_tree - of_plain if 'conv' in name or 'mm' in name or 'norm' in name]
