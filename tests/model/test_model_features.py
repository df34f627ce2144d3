"""Features of timm and PyTorch that a head tree supports as any model does."""
from __future__ import annotations

import copy
import pickle

import pytest
import timm
import timm.data
import timm.optim
import timm.utils
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from tests.tester import FAMILIES, images
from timm_collab import CollabModel, split_points
from timm_collab.sweep.checks import check_logits, check_partition, check_training, settle


def make(arch: str = 'test_resnet', **kwargs) -> CollabModel:
    torch.manual_seed(0)
    return CollabModel(arch, **{'num_classes': 5, **kwargs})


def grads(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters()}


def test_timm_resolves_the_data_config_of_the_architecture() -> None:
    model, plain = make(in_chans=1), timm.create_model('test_resnet', num_classes=5, in_chans=1)
    assert timm.data.resolve_data_config({}, model=model) == timm.data.resolve_data_config({}, model=plain)
    assert (model.num_classes, model.num_features) == (plain.num_classes, plain.num_features)
    assert model.default_cfg == model.pretrained_cfg == plain.pretrained_cfg
    assert not hasattr(model, 'no_such_attribute')


def test_attribute_of_the_plain_network_only_gives_a_hint() -> None:
    model = make()
    for name in ('forward_features', 'forward_intermediates', 'layer1'):
        assert not hasattr(model, name)
    hints = {'forward_head': ': a ResNet has one, write model.prune().forward_head', 'nothing': '', '_x': ''}
    for name, hint in hints.items():
        with pytest.raises(AttributeError) as error:
            getattr(model, name)
        assert str(error.value) == f"'CollabModel' object has no attribute '{name}'{hint}"


def test_layer_decay_groups_each_branch_as_the_plain_network() -> None:
    model, plain = make('test_vit', tree='blocks.2:2,blocks.4:2'), timm.create_model('test_vit', num_classes=5)

    def settings(net: nn.Module) -> dict[str, tuple[float, float]]:
        optimizer = timm.optim.create_optimizer_v2(net, opt='adamw', lr=1., weight_decay=.1, layer_decay=.7)
        names = {id(p): name for name, p in net.named_parameters()}
        return {
            names[id(p)]: (group['lr_scale'], group['weight_decay'])
            for group in optimizer.param_groups for p in group['params']
        }

    expected = settings(plain)
    found = settings(model)
    assert len(found) == len(list(model.named_parameters()))
    for name, setting in found.items():
        assert setting == expected[name.split('.', 2)[2]], name
    assert model.no_weight_decay() == {'nodes.trunk.pos_embed', 'nodes.trunk.cls_token'} & set(found)


def test_architecture_without_group_matcher_is_grouped_by_stage() -> None:
    model = make('poolformer_s12', tree='stages.1:2')
    assert not hasattr(model._template, 'group_matcher')
    group = model.group_matcher()
    stem, stage0 = group('nodes.trunk.stem.conv.weight'), group('nodes.trunk.stages.0.blocks.0.norm1.weight')
    stage3, head = group('nodes.branch_1.stages.3.blocks.1.norm1.weight'), group('nodes.branch_1.head.fc.weight')
    assert stem < stage0 < stage3 < head
    assert group('nodes.branch_0.stages.3.blocks.0.norm1.weight') == stage3
    timm.optim.create_optimizer_v2(model, opt='adamw', lr=1., layer_decay=.7)


def test_ema_averages_all_nodes() -> None:
    model = make()
    ema = timm.utils.ModelEmaV3(model, decay=.5)
    before = ema.module.prune(3).state_dict()['fc.weight'].clone()
    with torch.no_grad():
        for param in model.parameters():
            param.add_(1)
    ema.update(model)
    assert torch.allclose(ema.module.prune(3).state_dict()['fc.weight'], before + .5)


@pytest.mark.parametrize('arch', ['test_resnet', 'test_vit', 'densenet121', 'hrnet_w18_small'])
def test_gradient_checkpointing_changes_nothing_but_memory(arch: str) -> None:
    # The own checkpointing of densenet and hrnet covers only parts of them, or nothing.
    model = make(arch, **(dict(img_size=32) if arch == 'test_vit' else {}))
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    x = images(32 if arch == 'test_vit' else 64)
    saved: dict[str, int] = {}
    for name, net in (('plain', model), ('checkpointed', other)):
        stored: dict[int, int] = {}
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t, stored=stored: (stored.setdefault(t.untyped_storage().data_ptr(), t.numel()), t)[1], lambda t: t
        )
        torch.manual_seed(1)
        with hooks:
            logits_HBC = net(x)
        params = {p.untyped_storage().data_ptr() for p in net.parameters()}
        saved[name] = sum(numel for storage, numel in stored.items() if storage not in params)
        logits_HBC.square().sum().backward()
    assert saved['checkpointed'] < saved['plain'] / 2
    expected = grads(model)
    for name, grad in grads(other).items():
        assert torch.equal(grad, expected[name]), name
    for (name, a), b in zip(model.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize('arch', ['test_resnet', 'test_convnext', 'test_vit'])
def test_bfloat16_autocast_equals_the_plain_network(arch: str) -> None:
    size = 160
    model = make(arch)
    x = images(size)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        logits_HBC = model(x)
        F.cross_entropy(logits_HBC.flatten(0, 1).float(), torch.tensor([0, 1] * 4)).backward()
        settle(model, x)
        with torch.no_grad():
            assert torch.equal(model.prune(1)(x), model.forward_heads(x)[1])
    assert logits_HBC.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_channels_last() -> None:
    model = make().to(memory_format=torch.channels_last)
    x = images(64).contiguous(memory_format=torch.channels_last)
    model(x).sum().backward()
    conv = model.nodes['branch_0_0'].get_parameter('layer4.0.conv1.weight')
    assert conv.is_contiguous(memory_format=torch.channels_last)
    assert model.prune().get_parameter('layer4.0.conv1.weight').is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(('arch', 'tree'), [
    ('test_resnet', 'layer2:2,layer3:2'),
    ('resnet18', 'bn1:2'),  # the branches modify their input in place
    pytest.param('densenet121', 'features.denseblock2.denselayer3:2', marks=pytest.mark.slow),
])
def test_tree_compiles_without_graph_breaks_in_train_mode(arch: str, tree: str) -> None:
    torch.compiler.reset()
    model = make(arch, tree=tree)
    expected = copy.deepcopy(model)
    x = images(32)
    expected(x).square().sum().backward()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    compiled(x).square().sum().backward()
    for (name, a), (_, b) in zip(grads(model).items(), grads(expected).items(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5), name


def test_ddp_uses_every_parameter(tmp_path) -> None:
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path / "store"}', rank=0, world_size=1)
    try:
        model = make()
        expected = copy.deepcopy(model)
        wrapped = DistributedDataParallel(model, static_graph=True)
        for _ in range(2):
            model.zero_grad(), expected.zero_grad()
            wrapped(images(64)).square().sum().backward()
            expected(images(64)).square().sum().backward()
        assert all(torch.equal(grad, grads(expected)[name]) for name, grad in grads(model).items())
    finally:
        torch.distributed.destroy_process_group()


def test_sync_batchnorm_becomes_batchnorm_when_pruned() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(settle(make(), images(64))).eval()
    assert any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    pruned = model.prune(2)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in pruned.modules())
    with torch.no_grad():
        assert torch.equal(pruned(images(64)), model.forward_heads(images(64))[2])


@pytest.mark.parametrize('family', FAMILIES[::4], ids=str)
def test_copies_and_pickles_compute_the_same(family) -> None:
    model = settle(make(family.arch, tree=f'{family.splits[0]}:2', **family.kwargs), images(family.size))
    x = images(family.size)
    with torch.no_grad():
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other.forward_heads(x), model.forward_heads(x))
            assert torch.equal(other.prune(1)(x), model.prune(1)(x))


def test_state_dict_round_trips_and_trunk_freezes() -> None:
    model, other = make(), CollabModel('test_resnet', num_classes=5)
    other.load_state_dict(model.state_dict(), strict=True)
    settle(model, images(64))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(images(64)), model(images(64)))
    for param in model.nodes['trunk'].parameters():
        param.requires_grad_(False)
    model.train()(images(64)).sum().backward()
    assert all(p.grad is None for p in model.nodes['trunk'].parameters())
    assert all(p.grad is not None for p in model.nodes['branch_1_0'].parameters())


@pytest.mark.parametrize(('arch', 'kwargs', 'size'), [
    ('test_resnet', dict(in_chans=1), 64),
    ('test_resnet', dict(global_pool='max'), 64),
    ('test_resnet', dict(output_stride=16), 64),
    ('convnext_atto', dict(drop_rate=.5, drop_path_rate=.5), 64),
    ('test_vit', dict(img_size=64, global_pool='avg', class_token=False), 64),
    ('test_vit', dict(img_size=(32, 64)), (32, 64)),
    ('swin_tiny_patch4_window7_224', dict(img_size=112, window_size=7, drop_path_rate=.3), 112),
])
def test_model_arguments_reach_every_node(arch: str, kwargs: dict, size: int | tuple[int, int]) -> None:
    torch.manual_seed(0)
    model, plain = make(arch, **kwargs), timm.create_model(arch, num_classes=5, **kwargs)
    x = torch.randn(2, kwargs.get('in_chans', 3), *((size, size) if isinstance(size, int) else size))
    check_partition(model, plain)
    check_logits(settle(model, x), plain, x)
    check_training(model, x, head=3)
    assert repr(model.prune(3)) == repr(plain)  # drop rates, kernel sizes, pooling and all
    if 'drop_rate' in kwargs:
        model.train()
        assert not torch.equal(model(x), model(x))


def test_reset_classifier_of_every_head() -> None:
    model, plain = make('test_resnet'), timm.create_model('test_resnet', num_classes=5)
    for net in (model, plain):
        net.reset_classifier(3, 'max')
    assert repr(model.prune(2)) == repr(plain)
    check_logits(settle(model, images(64)), plain, images(64))


def test_float16_autocast_with_grad_scaler() -> None:
    model, scaler = make(), torch.amp.GradScaler('cpu', init_scale=16.)
    optimizer = torch.optim.SGD(model.parameters(), lr=.1)
    before = copy.deepcopy(model.state_dict())
    with torch.autocast('cpu', dtype=torch.float16):
        logits_HBC = model(images(64))
        loss = F.cross_entropy(logits_HBC.flatten(0, 1).float(), torch.tensor([0, 1] * 4))
    assert logits_HBC.dtype == torch.float16
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize('arch', ['convnext_atto', 'vit_tiny_patch16_224', 'mobilenetv3_small_050'])
def test_tree_in_half_precision(arch: str) -> None:
    model = CollabModel(arch, num_classes=5, dtype=torch.bfloat16)
    assert {param.dtype for param in model.parameters()} == {torch.bfloat16}
    assert [point.name for point in split_points(model.prune())] == [point.name for point in split_points(arch)]
    model.reset_classifier(3)
    size = model.pretrained_cfg['input_size'][-1]
    x = torch.randn(2, 3, size, size, dtype=torch.bfloat16)
    logits_HBC = model.eval().forward_heads(x)
    assert logits_HBC.shape == (4, 2, 3) and logits_HBC.dtype == torch.bfloat16
    assert torch.equal(model.prune(2)(x), logits_HBC[2])
