"""The teacher of a run: find it, load it, and check that it fits the data."""
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
import timm.data
import torch
from torch import nn

from ...tree import PREFIX
from ..config import TeacherConfig
from ..errors import TrainError, one_line, require, unknown_architecture
from ..record.cost import FORWARDS_PER_STEP, forward_multiply_adds
from ..record.finished_run import Run, load_run
from ..record.summary_parts import TeacherSummary


@dataclass(frozen=True)
class Teacher:
    """A trained network that stays as it is.

    Args:
        network: A plain network on the CPU, in eval mode, frozen.
        mean: Mean per channel that its own training normalised images with.
        std: Standard deviation of the same.
        given_mean: Mean per channel that the images of this run are normalised with.
        given_std: Standard deviation of the same.
        facts: What the run's summary records of it.
    """

    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    given_mean: tuple[float, ...]
    given_std: tuple[float, ...]
    facts: TeacherSummary


def check_teacher(config: TeacherConfig) -> None:
    """Check that there is such a teacher, as far as that is cheap.

    Raises:
        TrainError: The folder holds no finished run, or the name is none that timm knows.
    """
    if config.path is not None:
        _read(config.path)
    if config.name is not None:
        require(not config.name.startswith(PREFIX),
                f"teacher.name '{config.name}' is a head tree: name a plain network, or the folder of a finished run as"
                ' teacher.path')
        if ':' not in config.name and not timm.is_model(config.name):
            raise TrainError(f'teacher.name: {unknown_architecture(config.name)}')


def load_teacher(
    config: TeacherConfig, num_classes: int, label_names: Sequence[str] | None, data_config: dict[str, Any],
) -> Teacher:
    """Load the teacher, and check that it fits the data.

    Args:
        config: Which teacher.
        num_classes: Number of classes of the data.
        label_names: Names of the classes, if the data has any.
        data_config: timm's data configuration of this run's images.

    Raises:
        TrainError: It can't be loaded, was trained on other classes, or can't take such images.
    """
    input_size = tuple(data_config['input_size'])
    if config.path is not None:
        network, labels, own, facts = _of_run(_read(config.path))
    else:
        network, labels, own, facts = _of_name(config, num_classes, input_size[0])
    who = f"teacher '{config.path or config.name}'"
    network = network.eval().requires_grad_(False)
    try:
        with torch.inference_mode():
            shape = tuple(network(torch.zeros(2, *input_size)).shape)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise TrainError(f"{who} can't take images of {input_size} (channels, height, width):"
                         f" {one_line(error)}") from error
    require(shape == (2, num_classes),
            f'{who} has {shape[-1]} classes, the data have {num_classes}: choose one that was trained on these classes')
    if labels is not None and label_names is not None and list(labels) != list(label_names):
        place = next(index for index, pair in enumerate(zip(labels, label_names, strict=True)) if pair[0] != pair[1])
        raise TrainError(f"{who} knows class {place} as '{labels[place]}', the data as '{label_names[place]}': choose"
                         ' one that was trained on the same classes in the same order')
    summary = TeacherSummary(
        path=config.path,
        name=config.name,
        checkpoint=config.checkpoint,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        multiply_adds=forward_multiply_adds(network, input_size),
        sha256=_fingerprint(network),
        **facts,
    )
    mean, std, given_mean, given_std = (
        _by_channel(each[name], input_size[0]) for each in (own, data_config) for name in ('mean', 'std'))
    return Teacher(network, mean, std, given_mean, given_std, summary)


def teacher_line(teacher: Teacher) -> str:
    """The line that a run prints about its teacher."""
    facts = teacher.facts
    error = '' if facts.error is None else f', error {facts.error:.1f} % on {facts.error_on}'
    return (f'teacher: {facts.path or facts.name}, {facts.architecture},'
            f' {(facts.parameters or 0) / 1e6:.2f} M parameters{error}')


def _read(path: str) -> Run:
    try:
        return load_run(path)
    except TrainError as error:
        raise TrainError(f'teacher.path: {error}') from None


def _of_run(run: Run) -> tuple[nn.Module, Sequence[str] | None, dict[str, Any], dict[str, Any]]:
    """The kept head of a run."""
    require(not run.config.data.multi_label, f"teacher.path: run '{run.path}' learnt several labels of an image, and"
                                             ' predicts no distribution over classes')
    tree: Any = run.load_tree()
    summary, earlier = run.summary, run.summary.teacher or TeacherSummary()
    step = FORWARDS_PER_STEP * forward_multiply_adds(tree, run.data_config['input_size'])
    step += earlier.multiply_adds or 0
    facts = {
        'architecture': run.config.model.architecture,
        'error': summary.scores.kept,
        'error_on': summary.error_on,
        'train_seconds': summary.train_seconds + (earlier.train_seconds or 0),
        'train_multiply_adds': step * summary.data.train * summary.epochs + (earlier.train_multiply_adds or 0),
    }
    return tree.prune(), run.class_names, run.data_config, facts


def _of_name(
    config: TeacherConfig, num_classes: int, in_chans: int,
) -> tuple[nn.Module, Sequence[str] | None, dict[str, Any], dict[str, Any]]:
    """A network of timm, the Hub or a folder; what its training cost is unknown."""
    weights: dict[str, Any] = {'pretrained': True}
    if config.checkpoint is not None:
        weights = {'checkpoint_path': config.checkpoint, 'num_classes': num_classes}
    try:
        network = timm.create_model(config.name, in_chans=in_chans, **weights)
    except (ValueError, TypeError, RuntimeError, OSError, AssertionError) as error:
        raise TrainError(f"teacher '{config.name}' can't be loaded: {one_line(error)}") from error
    known = network.pretrained_cfg
    require(config.checkpoint is not None or any(known.get(name) for name in ('url', 'file', 'hf_hub_id', 'source')),
            f"teacher.name '{config.name}' has no pretrained weights: write teacher.checkpoint, or teacher.path, the"
            ' folder of a finished run')
    facts = {
        'architecture': known.get('architecture'), 'error': None, 'error_on': None, 'train_seconds': None,
        'train_multiply_adds': None}
    return network, known.get('label_names'), timm.data.resolve_model_data_config(network), facts


def _by_channel(values: Sequence[float], in_chans: int) -> tuple[float, ...]:
    """As the data's preprocessing does it where a network was made for another number of channels."""
    if len(values) == in_chans:
        return tuple(values)
    return (sum(values) / len(values),) * in_chans


def _fingerprint(network: nn.Module) -> str:
    """SHA-256 of all weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy() if tensor.numel() else b'')
    return digest.hexdigest()
