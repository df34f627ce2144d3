"""Save the trained tree of a run, and its kept head as a plain timm model."""
from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import save_model
from timm.models import model_entrypoint, save_for_hf
from torch import Tensor, nn

from ...model import CollabModel
from ...split.meta import storage_key
from ..errors import TrainError, one_line, require
from ..paths import CONFIG, MODEL_CONFIG, TREE, WEIGHTS, atomic

KEPT_HEAD = 'kept_head'  # in the metadata of the tree's file
MULTI_LABEL = 'multi_label_classification'  # as transformers names it
# Entries of timm's pretrained_cfg that describe the backbone's own weights.
_RECOMMENDED = ('test_input_size', 'test_crop_pct')
_PROVENANCE = ('tag', 'license', 'origin_url', 'paper_name', 'paper_ids', 'notes')


class ExportError(RuntimeError):
    """The saved model does not give the logits of the head that it was saved from."""


def save_tree(model: CollabModel, folder: Path) -> None:
    """Write the weights of all heads into a run's folder, atomically.

    Args:
        model: The tree.
        folder: The run's folder.

    Raises:
        TrainError: The file can't be written, for example because the disk is full.
    """
    with _explain_full_disk(folder / TREE), atomic(folder / TREE) as partial:
        save_model(model, str(partial), metadata={KEPT_HEAD: str(model.kept_head)})
        shutil.copymode(folder / CONFIG, partial)  # safetensors makes files that only their owner can read


def save_pruned(
        model: CollabModel,
        folder: Path,
        images: Tensor,
        data_config: dict[str, Any],
        model_args: dict[str, Any],
        label_names: Sequence[str] | None = None,
        from_scratch: bool = True,
        multi_label: bool = False,
) -> str:
    """Prune a model to its kept head, save it in timm's format, and reload it.

    The folder is written atomically: it appears only when the reloaded model's logits equal the head's bit for bit.

    Args:
        model: The tree, on the CPU; left in eval mode.
        folder: Folder to create. One that a killed run left there is replaced.
        images: Batch [B, in_chans, height, width] on which logits are compared.
        data_config: Preprocessing of evaluation, saved as part of the model's `pretrained_cfg`.
        model_args: Arguments of the architecture beyond `num_classes`.
        label_names: Names of the classes, saved with the model.
        from_scratch: Whether training started from random weights. Tag and licence of the backbone's pretrained weights
            are then left out.
        multi_label: Whether classes are independent. transformers then applies a sigmoid.

    Returns:
        The line of Python that loads the saved model.

    Raises:
        ExportError: The logits differ.
        TrainError: The folder can't be written, for example because the disk is full.
    """
    model.eval()
    pruned: Any = model.prune().eval()
    architecture = pruned.pretrained_cfg['architecture']
    dropped = _RECOMMENDED + (_PROVENANCE if from_scratch else ())
    # The preprocessing of this run replaces what is recommended for the backbone's own weights.
    pruned.pretrained_cfg = {
        name: value for name, value in {**pruned.pretrained_cfg, **data_config}.items()
        if name not in dropped
    }
    pruned.register_state_dict_post_hook(_untie)
    model_config: dict[str, Any] = {}
    if label_names:
        model_config['label_names'] = list(label_names)
    if multi_label:
        model_config['problem_type'] = MULTI_LABEL

    with _explain_full_disk(folder), atomic(folder) as partial:
        save_for_hf(
            pruned, str(partial), model_config=model_config, model_args=model_args or None, safe_serialization=True)
        _drop_repeated_num_classes(partial / MODEL_CONFIG)
        # safetensors makes files that only their owner can read; a model folder is there to be shared.
        shutil.copymode(partial / MODEL_CONFIG, partial / WEIGHTS)
        _check_reload(model, pruned, partial, images)
        shutil.rmtree(folder, ignore_errors=True)
    modules = 'timm, timm_collab' if needs_plugin(architecture) else 'timm'
    return f"import {modules}; model = timm.create_model('local-dir:{folder.as_posix()}', pretrained=True)"


@contextmanager
def _explain_full_disk(path: Path) -> Iterator[None]:
    """Turn errors of writing into one that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TrainError(f"'{path}' can't be written ({one_line(error)}): free disk space, then run the same command to"
                         ' resume') from error


def needs_plugin(architecture: str) -> bool:
    """Whether `timm_collab` must be imported to create a plain network, as for the paper's CIFAR networks.

    Raises:
        TrainError: Neither timm nor `timm_collab` has this architecture.
    """
    require(timm.is_model(architecture), f"there is no architecture '{architecture}' in this version of timm")
    return model_entrypoint(architecture).__module__.split('.')[0] != 'timm'


def _untie(module: nn.Module, state: dict[str, Tensor], *_: Any) -> None:
    """Give each further name of a tied tensor a copy: safetensors refuses shared memory, timm a missing name."""
    seen: set[int] = set()
    for name, tensor in state.items():
        key = storage_key(tensor)
        if key in seen:
            state[name] = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(key)


def _drop_repeated_num_classes(config_file: Path) -> None:
    """Remove `num_classes` from `model_args`: transformers' TimmWrapper passes it itself and fails on a second one."""
    config = json.loads(config_file.read_text(encoding='utf-8'))
    config.get('model_args', {}).pop('num_classes', None)
    config_file.write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')


@torch.inference_mode()
def _check_reload(model: CollabModel, pruned: nn.Module, folder: Path, images: Tensor) -> None:
    reloaded = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    head_BC = model.forward_heads(images)[model.kept_head]
    for name, logits_BC in (('pruned', pruned(images)), ('reloaded', reloaded(images))):
        if not torch.equal(head_BC, logits_BC):
            difference = (head_BC - logits_BC).abs().max().item()
            raise ExportError(f'the {name} model does not give the logits of head {model.kept_head}: they differ by up'
                              f' to {difference:.3g}')
