"""What a run ran on, and what code it ran: what its figures can't be repeated without."""
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
    """The commit of this code, `-dirty` behind it where files differ from it; None outside of a git checkout."""
    root = Path(__file__).parents[3]
    if not (root / '.git').exists():  # of an installed package a repository further up is somebody else's
        return None
    try:
        return subprocess.run(
            ['git', '-C', str(root), 'describe', '--always', '--abbrev=12', '--exclude=*', '--dirty'],
            capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def hardware(device: torch.device) -> str:
    """What a process computes on, e.g. `NVIDIA H100` or `AMD EPYC, 1 thread`."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f'{_cpu() if device.type == "cpu" else device}, {threads} thread' + 's' * (threads > 1)


def _cpu() -> str:
    try:
        lines = CPU_INFO.read_text(encoding='utf-8').splitlines()
    except OSError:
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return next(filter(None, [*names, platform.processor(), platform.machine()]), 'CPU')
