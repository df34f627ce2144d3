"""Verify an export: another process without the plugin loads it and must get the trained head's logits bit for bit.

Shapes: B images, C classes, H heads.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..train.paths import MODEL_CONFIG, WEIGHTS
from ..train.record.finished_run import Run
from .errors import HubError, require

BATCH = 4
TIMEOUT = 600
TOKENS = ('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN')


def sample(config: dict[str, Any]) -> Tensor:
    """Random images [B, in_chans, height, width] of the input size in a config, the same for every call."""
    size = config['pretrained_cfg']['input_size']
    return torch.randn(BATCH, *size, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def trained_logits(run: Run, head: int, half: bool) -> Tensor:
    """Logits [B, C] of a head, from the tree as it was trained; from the saved head where the tree was not kept."""
    images = sample(run.model_config)
    with _one_thread():
        model: Any = run.load_pruned() if run.tree_file is None else run.load_tree()
        if half:
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(tensor.half())
        logits_BC: Tensor = model(images) if run.tree_file is None else model.forward_heads(images)[head]
    return logits_BC.clone()


@torch.inference_mode()
def folder_logits(folder: Path) -> Tensor:
    """Logits [B, C] of an exported folder, loaded in this process."""
    with _one_thread():
        model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
        logits_BC: Tensor = model(sample(_config(folder)))
    return logits_BC.clone()


def check_reload(folders: Sequence[Path], expected: Sequence[Tensor], plugin: bool = False) -> None:
    """Load folders with plain timm in another process and compare logits.

    Args:
        folders: Exported folders.
        expected: Logits [B, C] of each for the `sample` of its config.
        plugin: Whether the architectures need timm_collab.

    Raises:
        HubError: A folder can't be loaded, or gives other logits.
    """
    with tempfile.TemporaryDirectory() as scratch:
        images, logits = Path(scratch, 'images.safetensors'), Path(scratch, 'logits.safetensors')
        save_file({str(number): sample(_config(folder)) for number, folder in enumerate(folders)}, images)
        task = {'folders': [str(folder.resolve()) for folder in folders], 'images': str(images), 'logits': str(logits),
                'plugin': plugin}
        environment = {key: value for key, value in os.environ.items() if key not in TOKENS} | {'HF_HUB_OFFLINE': '1'}
        done = subprocess.run(
            # As text: a script's own folder would come first in `sys.path` and shadow other packages.
            [sys.executable, '-c', Path(__file__).with_name('reload.py').read_text(encoding='utf-8')],
            input=json.dumps(task),
            env=environment,
            cwd=scratch,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ['it ended without a message'])[-1]
            raise HubError(f'plain timm in another process cannot load what was exported: {reason}')
        found = load_file(logits)
    for number, (folder, expected_BC) in enumerate(zip(folders, expected, strict=True)):
        found_BC = found[str(number)]
        require(torch.isfinite(found_BC).all(), f"'{folder / WEIGHTS}' gives logits that are not finite")
        if not torch.equal(found_BC, expected_BC.float()):
            difference = (found_BC - expected_BC.float()).abs().max().item()
            raise HubError(f"plain timm in another process gets other logits from '{folder}' than the trained head"
                           f' gives: they differ by up to {difference:.3g}')


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / MODEL_CONFIG).read_text(encoding='utf-8'))
    return config


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: the number of threads decides how sums are rounded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
