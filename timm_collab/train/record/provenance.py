"""Versions, commit and hardware: what it takes to reproduce the figures of a run."""
from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ('torch', 'timm', 'accelerate', 'datasets', 'numpy')
CPU_INFO = Path('/proc/cpuinfo')


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    return {name: metadata.version(name) for name in PACKAGES}


def commit() -> str | None:
    """The commit of this code, with `-dirty` where files differ from it; None outside of a git checkout."""
    root = Path(__file__).parents[3]
    if not (root / '.git').exists():  # a repository above an installed package isn't ours
        return None
    try:
        return subprocess.run(
            ['git', '-C', str(root), 'describe', '--always', '--abbrev=12', '--exclude=*', '--dirty'],
            capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def hardware(device: torch.device) -> str:
    """Name of the hardware that a process computes on, e.g. `NVIDIA H100` or `AMD EPYC, 1 thread`."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    name = _cpu() if device.type == 'cpu' else str(device)
    return f'{name}, 1 thread' if threads == 1 else f'{name}, {threads} threads'


def _cpu() -> str:
    try:
        lines = CPU_INFO.read_text(encoding='utf-8').splitlines()
    except OSError:
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return next(filter(None, [*names, platform.processor(), platform.machine()]), 'CPU')
