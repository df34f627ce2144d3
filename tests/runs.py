"""Finished runs made without training: weights as they are initialized, scores made up."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from timm_collab import CollabModel
from timm_collab.train.config.parse import parse_config
from timm_collab.train.record.save import save_pruned


def summary_values(**changes: Any) -> dict[str, Any]:
    """A summary as in JSON, of a tree of two heads on the digits, with some keys replaced."""
    scores = {'top1_heads': [90.0, 91.0], 'top1_consensus': 95.5, 'top1_kept': 91.0, 'loss_heads': [0.5, 0.5],
              'count': 500}
    data_config = dict(input_size=[1, 32, 32], mean=[0.5], std=[0.25], interpolation='bilinear', crop_pct=1.0,
                       crop_mode='center')
    return {
        'network': '2-head tree',
        'model': 'collab_test_resnet',
        'tree': 'layer3:2',
        'num_heads': 2,
        'kept_head': 1,
        'kept_head_rule': 'highest validation accuracy',
        'error_on': "split 'test'",
        'error_kept': 9.0,
        'error_consensus': 4.5,
        'error_heads': [10.0, 9.0],
        'test': scores,
        'val': scores,
        'best_epoch': {'epoch': 3, 'val': scores},
        'parameters': {'trained': 200, 'kept': 100},
        'data': {'path': 'builtin:digits', 'num_classes': 10, 'train': 1000, 'val': 130,
                 'val_origin': "held out from split 'train'", 'test': 500, 'label_names': None,
                 'preprocessing': data_config},
        'noise': {'kind': 'symmetric-exclude', 'rate': 0.4, 'column': None, 'realised_rate': 0.4, 'confusion': None},
        'seed': 0,
        'epochs': 5,
        'versions': {'torch': '2.15.0', 'timm': '1.0.31'},
        'num_processes': 1,
        'device': 'cpu',
        'train_seconds': 61.5,
        **changes,
    }


def finished_run(
        path: Path,
        arch: str = 'test_resnet',
        tree: str | None = None,
        classes: int = 10,
        size: int | None = 32,
        in_chans: int = 1,
        kept_head: int = 1,
        labels: list[str] | None = None,
        with_tree: bool = True,
        **kwargs: Any,
) -> Path:
    """Make the folder of a finished run."""
    torch.manual_seed(0)
    model_args = {**kwargs, **({} if in_chans == 3 else {'in_chans': in_chans})}
    model = CollabModel(arch, tree=tree, num_classes=classes, kept_head=kept_head, **model_args)
    side = size or model.pretrained_cfg['input_size'][-1]
    data_config = dict(input_size=(in_chans, side, side), mean=(0.5,) * in_chans, std=(0.25,) * in_chans,
                       interpolation='bilinear', crop_pct=1.0, crop_mode='center')
    path.mkdir()
    save_pruned(model, path / 'pruned', torch.randn(2, in_chans, side, side), data_config, model_args, labels)
    if with_tree:
        state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
        save_file(state, path / 'tree.safetensors', {'kept_head': str(kept_head)})

    kwargs_of_model = yaml.safe_dump(kwargs, default_flow_style=True).strip()
    config = parse_config([
        f'--model.name=collab_{arch}', f'--model.tree={model.tree}', f'--model.kwargs={kwargs_of_model}',
        f'--data.in_chans={in_chans}', '--data.path=builtin:digits'])
    (path / 'config.yaml').write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
    top1 = [90.0 + head for head in range(model.num_heads)]
    scores = {'top1_heads': top1, 'top1_consensus': 95.5, 'top1_kept': top1[kept_head],
              'loss_heads': [0.5] * len(top1), 'count': 500}
    values = summary_values()
    (path / 'summary.json').write_text(json.dumps({
        **values,
        'network': f'{len(top1)}-head tree',
        'model': f'collab_{arch}',
        'tree': str(model.tree),
        'num_heads': len(top1),
        'kept_head': kept_head,
        'error_kept': 100 - top1[kept_head],
        'error_heads': [100 - each for each in top1],
        'test': scores,
        'val': scores,
        'best_epoch': {'epoch': 3, 'val': scores},
        'parameters': {
            'trained': sum(parameter.numel() for parameter in model.parameters()),
            'kept': sum(parameter.numel() for parameter in model.prune().parameters()),
        },
        'data': {**values['data'], 'num_classes': classes, 'label_names': labels, 'preprocessing': data_config},
        'load': f"import timm; model = timm.create_model('local-dir:{path}/pruned', pretrained=True)",
    }))
    return path


