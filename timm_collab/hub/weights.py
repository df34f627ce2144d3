"""Copy the tensors of a head from a run's files one by one, without a second copy of the network."""
from __future__ import annotations

import json
import shutil
import struct
from collections import Counter
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..split.meta import named_tensors
from ..split.points import create_without_weights
from ..train.paths import SUMMARY
from ..train.record.finished_run import Run
from ..tree import HeadTree, node_name
from .errors import HubError, require


def write_head(run: Run, head: int, file: Path, half: bool, metadata: dict[str, str]) -> None:
    """Write the weights of a head under their names in the plain network.

    Args:
        run: The run.
        head: Index of the head.
        file: File to write.
        half: Round floating-point tensors to float16.
        metadata: Metadata for the file's header.

    Raises:
        HubError: The tree lacks a tensor of the head, or a tensor has values outside of float16's range.
    """
    source, names = run.weights_file, {name: name for name in tensor_names(run.weights_file)}
    if head != run.summary.kept_head:
        assert run.tree_file is not None  # checked by `Run.find_head`
        source, names = run.tree_file, _names_in_tree(run, head, list(names))
    with safe_open(source, framework='pt') as tensors:
        saved = {name: _rounded(name, tensors.get_tensor(key), half) for name, key in names.items()}
    users = Counter(names.values())
    for name, key in names.items():
        if users[key] > 1:  # the same memory, perhaps, which safetensors doesn't write
            saved[name] = saved[name].clone()
    save_file(saved, file, metadata)
    sort_metadata(file)
    # safetensors makes files that only their owner can read; a model folder is there to be shared.
    shutil.copymode(run.path / SUMMARY, file)


def _names_in_tree(run: Run, head: int, names: list[str]) -> dict[str, str]:
    """For each tensor of the plain network, its name in the tree, under one of the nodes on the head's path."""
    assert run.tree_file is not None
    present = set(tensor_names(run.tree_file))
    leaf = HeadTree.parse(run.summary.tree).leaves[head]
    nodes = [node_name(leaf[:depth]) for depth in range(len(leaf) + 1)]

    def find(names: list[str]) -> dict[str, str]:
        return {name: key for name in names for node in nodes if (key := f'nodes.{node}.{name}') in present}

    found = find(names)
    if len(found) < len(names):
        for tied in _tied_names(run):
            known = find(tied)
            if known:
                found = dict.fromkeys(tied, next(iter(known.values()))) | found
    missing = [name for name in names if name not in found]
    require(not missing,
            f"'{run.tree_file}' has no {', '.join(missing[:3])} of head {head}: it belongs to another tree")
    return {name: found[name] for name in names}


def _tied_names(run: Run) -> list[list[str]]:
    """The names of each tied tensor of the plain network. A tree may store a tied tensor under one of its names."""
    network = create_without_weights(run.architecture, {**run.model_args, 'num_classes': run.summary.data.num_classes})
    names: dict[int, list[str]] = {}
    for name, tensor in named_tensors(network):
        names.setdefault(id(tensor), []).append(name)
    return [tied for tied in names.values() if len(tied) > 1]


def _rounded(name: str, tensor: Tensor, half: bool) -> Tensor:
    if not half or not tensor.is_floating_point():
        return tensor
    rounded = tensor.half()
    if not torch.isfinite(rounded).all():
        raise HubError(f'--half: {name} has values that float16 cannot hold; leave --half out')
    return rounded


def tensor_names(file: Path) -> list[str]:
    """Names of the tensors in a file.

    Raises:
        HubError: The file is missing or truncated.
    """
    try:
        with safe_open(file, framework='pt') as tensors:
            return list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise HubError(f"'{file}' is missing or damaged: {error}") from None


def sort_metadata(file: Path) -> None:
    """Sort the metadata of a safetensors file, which the library writes in random order.

    An unchanged file then keeps its checksum, and pushing it again makes no commit.
    """
    with open(file, 'r+b') as stream:
        [length] = struct.unpack('<Q', stream.read(8))
        header = json.loads(stream.read(length))
        header['__metadata__'] = dict(sorted(header['__metadata__'].items()))
        text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
        if len(text) > length:
            raise HubError(f"'{file}': the header that this safetensors release wrote can't be sorted")
        stream.seek(8)
        stream.write(text.ljust(length))
