"""What differs between the recipe of a run and one that wants to go on with it."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from . import TrainConfig

FREE = (
    'output', 'resume', 'compare_single', 'cpu_threads', 'grad_checkpointing', 'data.workers', 'data.cache_dir',
    'checkpoint.', 'track', 'project', 'plots',
)
"""Keys, and groups of keys, that may change from one start of a run to the next."""
NOT_YET = ('data.on_bad_image',)
"""Keys that may change as well, because nothing has come of them in a run that can go on."""
_MISSING = object()


def differences(saved: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """Compare a saved recipe with one that is asked for.

    Args:
        saved: `TrainConfig.to_dict()` of then, read from YAML; keys that a version since has added are taken to have
            had their defaults.
        config: What is asked for now.

    Returns:
        A text such as `optim.lr 0.1 -> 0.2` for each key that differs and matters.
    """
    was, asked = dict(_flat(saved)), dict(_flat(config.to_dict()))
    defaults = dict(_flat(TrainConfig.defaults()))
    texts = []
    for name in [*asked, *(was.keys() - asked.keys())]:
        old = was.get(name, defaults.get(name, _MISSING))
        new = asked.get(name, _MISSING)
        if old != new and not name.startswith(FREE + NOT_YET):
            texts.append(f'{name} {_text(old)} -> {_text(new)}')
    return texts


def fingerprint(config: TrainConfig) -> str:
    """Twelve hexadecimal digits that recipes share which ask for the same, wherever their data lie.

    Keys that have their defaults don't count, so that a version which adds some changes nothing.
    """
    defaults = dict(_flat(TrainConfig.defaults()))
    asked = {name: value for name, value in _flat(config.to_dict())
             if value != defaults.get(name, _MISSING) and name != 'data.path' and not name.startswith(FREE)}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]


def _flat(keys: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    groups = TrainConfig.groups()
    for name, value in keys.items():
        if not prefix and name in groups and isinstance(value, Mapping):
            yield from _flat(value, f'{name}.')
        else:
            yield f'{prefix}{name}', value


def _text(value: Any) -> str:
    return '(no such key)' if value is _MISSING else 'null' if value is None else f'{value}'
