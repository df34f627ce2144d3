"""Nested state as JSON and named tensors, in place of a pickle, which can run any code.

Tensors are replaced by references. What JSON lacks (dtypes, tuples, dictionaries whose keys aren't strings) is written
in a marked form. Unpacking restores the state exactly: floats bit for bit, shared tensors as shared, and the
channels-last memory format.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_TENSOR, _TUPLE, _ITEMS, _DTYPE = '__tensor__', '__tuple__', '__items__', '__dtype__'
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def pack(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """Separate nested state into plain data and tensors.

    Args:
        state: Dictionaries, lists and tuples of tensors, dtypes, strings, numbers, booleans and None.

    Returns:
        Plain data for `json.dumps`, and the tensors that it refers to: contiguous, on the CPU, without shared memory.

    Raises:
        TypeError: The state contains something else; the message says where.
    """
    tensors: dict[str, Tensor] = {}
    return _pack(state, '', tensors, {}), tensors


def _pack(value: Any, path: str, tensors: dict[str, Tensor], packed: dict[tuple[Any, ...], dict[str, Any]]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return _pack_tensor(value, path or 'tensor', tensors, packed)
    if isinstance(value, torch.dtype):
        return {_DTYPE: str(value).removeprefix('torch.')}
    if isinstance(value, (list, tuple)):
        items = [_pack(item, _join(path, index), tensors, packed) for index, item in enumerate(value)]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    if isinstance(value, dict):
        items = [(name, _pack(item, _join(path, name), tensors, packed)) for name, item in value.items()]
        if all(isinstance(name, str) and name not in (_TENSOR, _TUPLE, _ITEMS, _DTYPE) for name in value):
            return dict(items)
        return {_ITEMS: [list(item) for item in items]}
    raise TypeError(f"a checkpoint can't hold '{path}': a {type(value).__name__} is neither a tensor nor plain data")


def _pack_tensor(
        tensor: Tensor,
        name: str,
        tensors: dict[str, Tensor],
        packed: dict[tuple[Any, ...], dict[str, Any]],
) -> dict[str, Any]:
    tensor = tensor.detach()
    same = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
    if tensor.numel() and same in packed:
        return packed[same]
    reference: dict[str, Any] = {_TENSOR: name}
    if not tensor.is_contiguous() and _is_channels_last(tensor):
        reference['channels_last'] = True
    data = tensor.cpu().contiguous()
    if data.untyped_storage().nbytes() != data.nbytes:
        data = data.clone()  # a view: don't keep the rest of the memory it belongs to
    tensors[name] = data
    packed[same] = reference
    return reference


def unpack(plain: Any, tensors: dict[str, Tensor]) -> Any:
    """Rebuild the state that `pack` separated.

    Raises:
        KeyError: A tensor is missing.
    """
    return _unpack(plain, tensors, {})


def _unpack(plain: Any, tensors: dict[str, Tensor], unpacked: dict[str, Tensor]) -> Any:
    if isinstance(plain, list):
        return [_unpack(item, tensors, unpacked) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if _TENSOR in plain:
        name = plain[_TENSOR]
        if name not in unpacked:
            tensor = tensors[name]
            format_ = _CHANNELS_LAST[tensor.ndim] if plain.get('channels_last') else torch.contiguous_format
            unpacked[name] = tensor.contiguous(memory_format=format_)
        return unpacked[name]
    if _DTYPE in plain:
        return getattr(torch, plain[_DTYPE])
    if _TUPLE in plain:
        return tuple(_unpack(item, tensors, unpacked) for item in plain[_TUPLE])
    if _ITEMS in plain:
        return {name: _unpack(item, tensors, unpacked) for name, item in plain[_ITEMS]}
    return {name: _unpack(item, tensors, unpacked) for name, item in plain.items()}


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.ndim in _CHANNELS_LAST and tensor.is_contiguous(memory_format=_CHANNELS_LAST[tensor.ndim])


def _join(path: str, name: Any) -> str:
    return f'{path}.{name}' if path else str(name)
