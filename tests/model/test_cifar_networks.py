"""The paper's networks for 32x32 images: their size in the paper, and the interface of a timm model."""
from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.models import group_parameters
from torch import Tensor, fx, nn

from timm_collab.model.networks import cifar_densenet, cifar_resnet

RESNET_DEPTHS = (8, 14, 20, 32, 44, 56, 110)
RESNETS = [f'cifar_resnet{depth}' for depth in RESNET_DEPTHS]
NETWORKS = ['cifar_resnet8', 'cifar_resnet20', 'cifar_densenet40_12']


def make_model(name: str, **kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs)


def make_images(batch: int = 2, size: int = 32) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def resnet_parameters(depth: int) -> int:
    """Counted from table 6 of the paper: 3x3 convolutions without bias, each with a BatchNorm, and a classifier."""
    blocks = (depth - 2) // 6
    widths = [3, 16] + [16] * (2 * blocks) + [32] * (2 * blocks) + [64] * (2 * blocks)
    convs = sum(9 * in_chs * out_chs for in_chs, out_chs in pairwise(widths))
    return convs + 2 * sum(widths[1:]) + (64 + 1) * 10


def densenet_parameters(depth: int, growth: int) -> int:
    """Counted from section 3 of the paper: three blocks of (depth - 4) / 3 layers, plain transitions between them."""
    total, channels = 3 * 16 * 9, 16
    for block in range(3):
        for _ in range((depth - 4) // 3):
            total += 2 * channels + 9 * channels * growth
            channels += growth
        total += 2 * channels + (channels * channels if block < 2 else 0)
    return total + (channels + 1) * 10


@pytest.mark.parametrize(
    ('depth', 'millions'),
    [(8, 0.08), (14, 0.17), (20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)],
)
def test_resnet_has_the_parameters_of_the_paper(depth: int, millions: float) -> None:
    with torch.device('meta'):
        model = timm.create_model(f'cifar_resnet{depth}')
    assert count_parameters(model) == resnet_parameters(depth)
    assert resnet_parameters(depth) / 1e6 == pytest.approx(millions, abs=0.05 if millions > 1 else 0.005)
    # The depth counts the layers with weights on the longest path; shortcuts have none.
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == depth


def test_densenet_has_the_parameters_of_the_paper() -> None:
    model = timm.create_model('cifar_densenet40_12')
    assert count_parameters(model) == densenet_parameters(40, 12) == 1_019_722
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == 40


def test_registered_under_their_modules() -> None:
    assert timm.list_models(module='cifar_resnet') == RESNETS
    assert timm.list_models(module='cifar_densenet') == ['cifar_densenet40_12']
    assert set(RESNETS) <= set(cifar_resnet.__all__)
    assert 'cifar_densenet40_12' in cifar_densenet.__all__
    with pytest.raises(RuntimeError, match='No pretrained weights exist for cifar_resnet20'):
        timm.create_model('cifar_resnet20', pretrained=True)


def test_importing_registers_once() -> None:
    """timm warns when a name is registered twice, so in a fresh interpreter this must pass with warnings as errors."""
    code = (
        'import timm, timm_collab.model.networks.cifar_densenet, timm_collab.model.networks.cifar_resnet, timm_collab\n'
        'assert timm.is_model("cifar_resnet20") and timm.is_model("cifar_densenet40_12")'
    )
    subprocess.run([sys.executable, '-W', 'error::UserWarning', '-c', code], check=True)


@pytest.mark.parametrize('name', NETWORKS)
def test_data_config_is_that_of_cifar(name: str) -> None:
    config = resolve_data_config(model=make_model(name))
    assert config['input_size'] == (3, 32, 32)
    assert config['mean'] == (0.4914, 0.4822, 0.4465)
    assert config['std'] == (0.2470, 0.2435, 0.2616)
    assert (config['interpolation'], config['crop_pct']) == ('bilinear', 1.0)


@pytest.mark.parametrize('name', NETWORKS)
def test_config_names_real_modules(name: str) -> None:
    model = make_model(name)
    assert model.get_submodule(model.pretrained_cfg['classifier']) is model.get_classifier()
    assert model.get_submodule(model.pretrained_cfg['first_conv']).in_channels == 3
    assert model.forward_features(make_images()).shape[-2:] == model.pretrained_cfg['pool_size']


@pytest.mark.parametrize('name', NETWORKS)
def test_shapes(name: str) -> None:
    model = make_model(name).eval()
    x = make_images()
    features = model.forward_features(x)
    assert model(x).shape == (2, 10)
    assert features.shape == (2, model.num_features, 8, 8)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert torch.equal(model.forward_head(features), model(x))
    assert model(make_images(size=40)).shape == (2, 10)
    assert make_model(name, in_chans=1, num_classes=100)(x[:, :1]).shape == (2, 100)


@pytest.mark.parametrize('name', NETWORKS)
def test_reset_classifier(name: str) -> None:
    model = make_model(name)
    model.reset_classifier(7, global_pool='catavgmax')
    assert model.num_classes == 7 and model.head_hidden_size == 2 * model.num_features
    assert model(make_images()).shape == (2, 7)
    model.reset_classifier(0, global_pool='')
    assert model(make_images()).shape == (2, model.num_features, 8, 8)


@pytest.mark.parametrize('name', NETWORKS)
def test_feature_info_describes_the_features(name: str) -> None:
    x = make_images()
    model = make_model(name).eval()
    taps: dict[str, Tensor] = {}
    for info in model.feature_info:
        model.get_submodule(info['module']).register_forward_hook(
            lambda module, args, output, key=info['module']: taps.update({key: output.clone()}))
    model(x)
    features = make_model(name, features_only=True).eval()(x)
    assert len(features) == len(model.feature_info) == 4
    for info, feature in zip(model.feature_info, features, strict=True):
        assert feature.shape == (2, info['num_chs'], 32 // info['reduction'], 32 // info['reduction'])
        assert torch.equal(feature, taps[info['module']])


@pytest.mark.parametrize('in_chs', [16, 32])
def test_shortcut_subsamples_and_appends_zeros(in_chs: int) -> None:
    x = torch.randn(2, in_chs, 9, 8)
    shortcut = cifar_resnet.PadShortcut(in_chs, 2 * in_chs, stride=2)
    out = shortcut(x)
    assert not list(shortcut.parameters())
    assert out.shape == (2, 2 * in_chs, 5, 4)
    for row in range(5):
        for column in range(4):
            assert torch.equal(out[:, :in_chs, row, column], x[:, :, 2 * row, 2 * column])
    assert not out[:, in_chs:].any()


def test_resnet_shortcuts_only_where_the_shape_changes() -> None:
    model = make_model('cifar_resnet20')
    shortcuts = {name for name, module in model.named_modules() if isinstance(module, cifar_resnet.PadShortcut)}
    assert shortcuts == {'layer2.0.downsample', 'layer3.0.downsample'}


def test_dense_layers_see_everything_before_them() -> None:
    block = make_model('cifar_densenet40_12').features.denseblock1.eval()
    x = torch.randn(1, 16, 4, 4)
    out = block(x)
    assert torch.equal(out[:, :16], x)
    for index, layer in enumerate(block):
        end = 16 + 12 * index
        assert torch.equal(layer(out[:, :end]), out[:, end:end + 12])


@pytest.mark.parametrize('name', NETWORKS)
def test_initialised_as_by_he(name: str) -> None:
    for module in make_model(name).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1.).all() and not module.bias.any()


@pytest.mark.parametrize('name', NETWORKS)
def test_groups_follow_the_depth(name: str) -> None:
    model = make_model(name)
    for coarse, count in ((True, 5), (False, 2 + 3 * 12 if 'dense' in name else 2 + (int(name[12:]) - 2) // 2)):
        layers = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        in_order = [layers[key] for key, _ in model.named_parameters()]
        assert in_order == sorted(in_order), 'a layer is grouped with one of another depth'
        assert len(set(in_order)) == count  # stem, stages or blocks, and what comes after the last of them


@pytest.mark.parametrize('name', NETWORKS)
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    results = []
    for enable in (False, True):
        model = make_model(name)
        model.set_grad_checkpointing(enable)
        logits = model(make_images(size=16))
        logits.square().sum().backward()
        results.append([logits] + [parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(plain, checkpointed) for plain, checkpointed in zip(*results, strict=True))


class ChildTracer(fx.Tracer):
    """Traces the root and DenseNet's `features`, every module below them is one opaque call."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name != 'features'


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('training', [True, False])
def test_traces_to_a_chain_of_modules(name: str, training: bool) -> None:
    model = make_model(name, drop_rate=0.1).train(training)
    graph = ChildTracer().trace(model)
    calls = [node for node in graph.nodes if node.op not in ('placeholder', 'output')]
    assert {node.op for node in calls} == {'call_module'}
    assert all(node.args == (node.prev,) for node in calls), 'a module that does not take the output of the one before'
    split_points = ['layer1', 'layer2'] if 'resnet' in name else ['features.denseblock1', 'features.transition1']
    assert set(split_points) <= {node.target for node in calls}

    outputs = []
    for run in (model, fx.GraphModule(model, graph)):
        torch.manual_seed(0)
        outputs.append(run(make_images()))
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    ('name', 'rate'),
    [('cifar_resnet20', 'drop_path_rate'), ('cifar_densenet40_12', 'proj_drop_rate')],
)
def test_drop_rates_act_in_training_only(name: str, rate: str) -> None:
    model, plain, x = make_model(name, **{rate: 0.5}), make_model(name), make_images()
    assert not torch.equal(model(x), model(x))
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model.eval()(x), plain.eval()(x))


def test_stochastic_depth_grows_linearly() -> None:
    model = make_model('cifar_resnet20', drop_path_rate=0.4)
    rates = [getattr(block.drop_path, 'drop_prob', 0.) for stage in (model.layer1, model.layer2, model.layer3)
             for block in stage]
    assert rates == pytest.approx([0.05 * block for block in range(9)])


@pytest.mark.parametrize('name', NETWORKS)
def test_every_parameter_learns(name: str) -> None:
    model, x, target = make_model(name), make_images(8, size=16), torch.arange(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
