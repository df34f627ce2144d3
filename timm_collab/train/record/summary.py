"""The summary of a finished run, `summary.json`: the model, its scores, its data and its cost."""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

from ..errors import TrainError, one_line, require
from ..metrics.metric import Metric, metric_of
from ..paths import write_text
from .summary_parts import (
    BestEpoch,
    DataSummary,
    EpochScores,
    ExportSummary,
    HeadScores,
    NoiseSummary,
    ParameterCounts,
    TeacherSummary,
)

# Of the file, where they are None.
_LEFT_OUT = (
    'hardware', 'load', 'single', 'plain', 'export', 'baseline', 'kept', 'last', 'oracle', 'val_clean', 'val_rate',
    'averaged', 'kept_head',
)
T = TypeVar('T')


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The summary of a finished run.

    In JSON the keys are the names of the fields, except for `scores`. Its values are `error_kept`, `error_consensus`
    and `error_heads`, or `map_...` where images have several labels. The first key is `format`, the number of the
    format. Summaries of older versions have none; other fields that they lack have defaults here.

    Args:
        network: `single network` or, e.g., `4-head tree`.
        model: `model.name` of the recipe.
        tree: The head tree.
        num_heads: Number of heads.
        kept_head: Index of the head that was kept.
        kept_head_rule: How it was chosen.
        error_on: The data that `scores` were measured on.
        scores: Final scores of kept head, consensus and heads.
        test: Scores on the test split as in `metrics.jsonl`, if there is a test split. With one class per image also
            `recall_kept`, the kept head's recall of each class, and `confusion_kept`, counts by class (row) and
            predicted class (column), None of many classes.
        val: The same on the validation split.
        best_epoch: The best epoch by validation.
        kept: The epoch whose weights were kept, which `scores`, `test` and `val` are of; None in summaries of older
            versions, which kept the last.
        last: The last epoch.
        oracle: The best epoch by validation labels before noise, where the recipe adds noise to them. No choice of an
            epoch by those labels that are given could be expected to do better.
        parameters: Numbers of parameters.
        data: The data.
        noise: Label noise.
        teacher: The teacher, if there was one.
        seed: The seed.
        epochs: Number of epochs that were trained.
        versions: Versions of the packages that results depend on.
        num_processes: Number of processes.
        device: PyTorch's name of the device.
        hardware: Name of the hardware.
        commit: Commit of this code; None outside of a git checkout.
        peak_memory_mb: Peak memory in 2^20 bytes: of tensors on a GPU, of the process on a CPU.
        train_seconds: Time of the training.
        load: The line of Python that loads the pruned model.
        single: Summary of the network trained without a tree, for comparison.
        plain: The same by cross-entropy, where the recipe has another loss for the labels.
        export: What was exported, in an exported folder.
    """

    format: ClassVar[int] = 1

    network: str
    model: str
    tree: str
    num_heads: int
    kept_head: int
    kept_head_rule: str
    error_on: str
    scores: HeadScores
    test: dict[str, Any] | None
    val: dict[str, Any]
    best_epoch: BestEpoch
    kept: EpochScores | None = None
    last: EpochScores | None = None
    oracle: EpochScores | None = None
    parameters: ParameterCounts
    data: DataSummary
    noise: NoiseSummary
    teacher: TeacherSummary | None = None
    seed: int
    epochs: int
    versions: dict[str, str]
    num_processes: int
    device: str
    hardware: str | None = None
    commit: str | None = None
    peak_memory_mb: float | None = None
    train_seconds: float
    load: str | None = None
    single: RunSummary | None = None
    plain: RunSummary | None = None
    export: ExportSummary | None = None

    @property
    def metric(self) -> Metric:
        """The metric of all scores."""
        return metric_of(self.val)

    @property
    def measured(self) -> dict[str, Any]:
        """The scores that `scores` come from: on the test split, or on the validation split where there is none."""
        return self.val if self.test is None else self.test

    @property
    def kept_epoch(self) -> int:
        """The epoch whose weights were kept, from 1."""
        return self.epochs if self.kept is None else self.kept.epoch + 1

    @property
    def computed_on(self) -> str:
        """Hardware and number of processes, e.g. `2 processes on NVIDIA H100`."""
        name = self.hardware or self.device
        return f'{self.num_processes} processes on {name}' if self.num_processes > 1 else name

    @classmethod
    def read(cls, path: Path) -> RunSummary:
        """Read a summary from its file.

        Raises:
            TrainError: The file can't be read, or isn't a summary.
        """
        try:
            values = json.loads(path.read_text(encoding='utf-8'))
        except (OSError, ValueError) as error:
            raise TrainError(f"'{path}' is damaged: {one_line(error)}") from error
        return cls.from_dict(values, str(path))

    def write(self, path: Path) -> None:
        """Write the summary to its file, atomically.

        Raises:
            TrainError: The file can't be written.
        """
        write_text(path, json.dumps(self.to_dict(), indent=2) + '\n')

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], origin: str) -> RunSummary:
        """Make a summary from plain data; keys that this version doesn't know are ignored.

        Args:
            values: The data, as in JSON.
            origin: Where it is from, for errors.

        Raises:
            TrainError: Keys are missing, or don't fit each other.
        """
        missing: list[str] = []
        newer = ''
        try:
            if values.get('format', 0) > cls.format:
                newer = f' (its format is {values["format"]}, this version of timm-collab reads up to {cls.format})'
            summary = _build(cls, values, missing)
            count = None if summary is None else len(summary.scores.heads)
            consistent = summary is None or count == summary.num_heads > summary.kept_head >= 0
        except (TypeError, AttributeError):
            raise TrainError(f"'{origin}' is damaged: it is not the summary of a run") from None
        if summary is None:
            raise TrainError(f"'{origin}' lacks {', '.join(missing)}: it is damaged, or from another version{newer}")
        require(consistent, f"'{origin}' contradicts itself: scores of {count} heads, {summary.num_heads} heads, head"
                            f' {summary.kept_head} kept')
        return summary

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain data, as in JSON."""
        return {'format': self.format, **_plain(self)}


def _build(kind: type[T], values: Mapping[str, Any], missing: list[str], prefix: str = '') -> T | None:
    """Make a dataclass from plain data; None where keys are missing, which are added to `missing`."""
    final = ''
    if kind is RunSummary:
        final = f'{metric_of(values).final}_'
        scores = {name.removeprefix(final): value for name, value in values.items() if name.startswith(final)}
        values = {**values, 'scores': scores}
    hints, arguments, before = get_type_hints(kind), {}, len(missing)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        hint = hints[field.name]
        nested: Any = next((each for each in (hint, *get_args(hint)) if dataclasses.is_dataclass(each)), None)
        if field.name not in values:
            if field.default is dataclasses.MISSING:
                missing.append(prefix + field.name)
        elif nested is not None and values[field.name] is not None:
            inner = f'{prefix}{final}' if nested is HeadScores else f'{prefix}{field.name}.'
            arguments[field.name] = _build(nested, values[field.name], missing, inner)
        else:
            arguments[field.name] = values[field.name]
    return kind(**arguments) if len(missing) == before else None


def _plain(value: Any) -> Any:
    """A dataclass of this file as plain data, as in JSON."""
    if not dataclasses.is_dataclass(value):
        return value
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if isinstance(value, RunSummary) and isinstance(item, HeadScores):
            plain |= {f'{value.metric.final}_{name}': score for name, score in _plain(item).items()}
        elif isinstance(item, RunSummary):
            plain[field.name] = item.to_dict()
        elif item is not None or field.name not in _LEFT_OUT:
            plain[field.name] = _plain(item)
    return plain
