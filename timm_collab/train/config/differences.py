"""Differences between the recipe of a run and the recipe that is to resume it."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from . import TrainConfig

FREE = (
    'output', 'resume', 'compare_single', 'compare_plain', 'cpu_threads', 'grad_checkpointing', 'data.workers',
    'data.cache_dir', 'checkpoint.', 'track', 'project', 'plots',
)
"""Keys and groups of keys that may change when a run is resumed."""
NOT_YET = ('data.on_bad_image',)
"""Keys that may change too, because they have had no effect in a run that can be resumed."""
_MISSING = object()


def differences(saved: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """Compare a saved recipe with the one that is to resume its run.

    Args:
        saved: `TrainConfig.to_dict()` as it was saved, read from YAML. Keys that a later version added count as having
            had their defaults.
        config: The recipe that is to resume.

    Returns:
        A text such as `optim.lr 0.1 -> 0.2` for each difference that matters.
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
    """Twelve hexadecimal digits that are equal for equivalent recipes, wherever their data is stored.

    Keys with their defaults don't count, so that new keys of a later version change nothing.
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
