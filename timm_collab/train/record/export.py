"""Save the kept head as a plain timm model, and prove that plain timm gets the same model back."""
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn as nn
from timm.models import model_entrypoint, save_for_hf
from torch import Tensor

from ...split.meta import storage_key

RECOMMENDED = ('test_input_size', 'test_crop_pct')
MULTI_LABEL = 'multi_label_classification'  # transformers' word
PROVENANCE = ('tag', 'license', 'origin_url', 'paper_name', 'paper_ids', 'notes')


class ExportError(RuntimeError):
    """The saved model does not give the logits of the head that it was saved from."""


def export_head(
        model: nn.Module,
        folder: Path,
        images: Tensor,
        data_config: dict[str, Any],
        model_args: dict[str, Any],
        label_names: Sequence[str] | None = None,
        from_scratch: bool = True,
        multi_label: bool = False,
) -> str:
    """Prune a model to its kept head, save it in timm's format, and reload it.

    Files are written to a folder beside the final one, which they replace only when the reloaded model's logits equal
    the head's bit for bit.

    Args:
        model: `CollabModel` on the CPU; left in eval mode.
        folder: Folder to create.
        images: Batch [B, in_chans, height, width] on which logits are compared.
        data_config: Preprocessing of evaluation, saved as part of the model's `pretrained_cfg`.
        model_args: Arguments of the architecture beyond `num_classes`.
        label_names: Names of the classes, saved with the model.
        from_scratch: Whether training began with random weights, to which tag and licence of the backbone's pretrained
            ones don't apply.
        multi_label: Whether classes are independent, which transformers then asks a sigmoid of.

    Returns:
        The line that loads the saved model.

    Raises:
        ExportError: The logits differ.
    """
    model.eval()
    pruned = model.prune().eval()  # type: ignore[operator]
    architecture = pruned.pretrained_cfg['architecture']
    dropped = RECOMMENDED + (PROVENANCE if from_scratch else ())
    # What the weights were trained with replaces the recommendations of the backbone's own weights.
    pruned.pretrained_cfg = {
        name: value for name, value in {**pruned.pretrained_cfg, **data_config}.items()
        if name not in dropped
    }

    pruned.register_state_dict_post_hook(_untie)
    partial = folder.with_name(f'.{folder.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    save_for_hf(
        pruned,
        str(partial),
        model_config={
            **({'label_names': list(label_names)} if label_names else {}),
            **({'problem_type': MULTI_LABEL} if multi_label else {}),
        },
        model_args=model_args or None,
        safe_serialization=True,
    )
    _drop_repeated_num_classes(partial / 'config.json')
    # safetensors makes a file that only its owner can read; a model folder is there to be shared.
    shutil.copymode(partial / 'config.json', partial / 'model.safetensors')
    _check_reload(model, pruned, partial, images)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed before its end
    os.replace(partial, folder)
    modules = 'timm' if _is_timm_own(architecture) else 'timm, timm_collab'
    return f"import {modules}; model = timm.create_model('local-dir:{folder.as_posix()}', pretrained=True)"


def _untie(module: nn.Module, state: dict[str, Tensor], *_: Any) -> None:
    """Give each further name of a tensor a copy: safetensors refuses shared memory, and plain timm a missing name."""
    seen: set[int] = set()
    for name, tensor in state.items():
        key = storage_key(tensor)
        if key in seen:
            state[name] = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(key)


def _drop_repeated_num_classes(config_file: Path) -> None:
    """transformers' TimmWrapper passes `num_classes` itself and stumbles over a second one in `model_args`."""
    config = json.loads(config_file.read_text(encoding='utf-8'))
    config.get('model_args', {}).pop('num_classes', None)
    config_file.write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')


@torch.inference_mode()
def _check_reload(model: nn.Module, pruned: nn.Module, folder: Path, images: Tensor) -> None:
    reloaded = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    head_BC = model.forward_heads(images)[model.kept_head]  # type: ignore[operator]
    for name, logits_BC in (('pruned', pruned(images)), ('reloaded', reloaded(images))):
        if not torch.equal(head_BC, logits_BC):
            difference = (head_BC - logits_BC).abs().max().item()
            raise ExportError(f'the {name} model does not give the logits of head {model.kept_head}: they differ by up'
                              f' to {difference:.3g}; {folder} is left for inspection')


def _is_timm_own(architecture: str) -> bool:
    return model_entrypoint(architecture).__module__.split('.')[0] == 'timm'
