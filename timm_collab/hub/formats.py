"""Write an exported head in other formats: torch.export and ONNX.

The files go beside the exported folder and are never uploaded: a `.pt2` file may contain pickles.

Shapes: B images, C classes.
"""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from ..errors import one_line
from ..train.paths import FORMATS, MODEL_CONFIG
from .check import sample
from .errors import HubError, require


def write_formats(source: Path, folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write `<folder>.pt2` and `<folder>.onnx`, for batches of any size.

    Args:
        source: Exported folder to read.
        folder: Folder whose name the files get.
        formats: Names from `FORMATS`.

    Returns:
        Paths of the files.

    Raises:
        HubError: A format is unknown, the network can't be written in it, or the file gives other logits.
    """
    for name in formats:
        require(name in FORMATS, f"--formats: there is no format '{name}', write one of {', '.join(FORMATS)}")
    written: list[Path] = []
    if not formats:
        return written
    model = timm.create_model(f'local-dir:{source}', pretrained=True).eval()
    images = sample(json.loads((source / MODEL_CONFIG).read_text(encoding='utf-8')))
    try:
        for name in formats:
            written.append(folder.with_name(f'{folder.name}.{name}'))
            {'pt2': _write_pt2, 'onnx': _write_onnx}[name](model, images, written[-1])
    except Exception as error:  # exporters raise errors of many types
        for file in written:
            file.unlink(missing_ok=True)
        if isinstance(error, HubError):
            raise
        raise HubError(f'--formats {name}: {type(error).__name__}: {one_line(error)[:300]}') from None
    return written


def _exported(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim('batch')},))


def _write_pt2(model: nn.Module, images: Tensor, file: Path) -> None:
    torch.export.save(_exported(model, images), file)
    with torch.inference_mode():
        logits_BC = torch.export.load(file).module()(images)
        if not torch.allclose(logits_BC, model(images), rtol=1e-4, atol=1e-5):
            raise HubError('--formats pt2: the exported program gives other logits')


def _write_onnx(model: nn.Module, images: Tensor, file: Path) -> None:
    try:
        import onnx  # type: ignore[import-not-found, unused-ignore]
        import onnxscript  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
    except ImportError:
        raise HubError('--formats onnx: needs the packages onnx and onnxscript: pip install onnx onnxscript') from None
    program = torch.onnx.export(_exported(model, images), (), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(file))
    onnx.checker.check_model(str(file))
