"""Rows of a study, one per finished run: the data of a report, read from the runs' folders or from `runs.csv`."""
from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from ..train.build import build_model
from ..train.config import TrainConfig
from ..train.config.differences import fingerprint
from ..train.errors import TrainError, require
from ..train.metrics.metric import shortfall
from ..train.paths import write_text
from ..train.record.cost import FORWARDS_PER_STEP, forward_multiply_adds
from ..train.record.summary import RunSummary
from ..train.record.summary_parts import EpochScores, TeacherSummary
from .grid import Cell, Study
from .runner import RECIPES, summaries

RUNS_CSV = 'runs.csv'


@dataclass(frozen=True, kw_only=True)
class Row:
    """A finished run. The fields are the columns of `runs.csv`; None is an empty cell, for values of older runs.

    Args:
        setting: Name of the setting.
        method: Name of the method.
        seed: The seed.
        metric: Key of the metric; an error is 100 minus its value.
        error: Error of the kept head after the kept epoch, in percent, on `error_on`.
        error_last: Error of the best head by validation after the last epoch.
        error_oracle: The same after the epoch that validation labels before noise would have chosen, where the
            validation labels have noise.
        error_consensus: Error of the heads' consensus after the kept epoch.
        error_on: Data that they are measured on.
        worst_recall: Recall of the kept head's worst class, in percent.
        kept_epoch: The kept epoch, from 1.
        epochs: Number of epochs that were trained.
        train_images: Images per epoch.
        noise_rate: Fraction of wrong training labels.
        parameters_trained: Parameters of the tree.
        parameters_kept: Parameters of the kept head.
        kept_head: Index of the kept head.
        multiply_adds: Per image in a training step: three forward passes, and one of the teacher if there is one.
        train_seconds: Training time.
        teacher_multiply_adds: Multiply-adds of the whole training of the teacher, if known.
        teacher_seconds: Training time of the teacher, if known.
        peak_memory_mb: Peak memory in 2^20 bytes: of tensors on a GPU, of the whole process on a CPU.
        device: Device, with the number of processes.
        versions: Versions of the packages that results depend on.
        commit: Commit of the code; None outside a git checkout.
        recipe: Path of the recipe, relative to the study's folder.
        fingerprint: Fingerprint of the recipe.
    """

    setting: str
    method: str
    seed: int
    metric: str
    error: float
    error_last: float | None = None
    error_oracle: float | None = None
    error_consensus: float
    error_on: str
    worst_recall: float | None = None
    kept_epoch: int | None = None
    epochs: int
    train_images: int
    noise_rate: float
    parameters_trained: int
    parameters_kept: int
    kept_head: int
    multiply_adds: int | None = None
    train_seconds: float
    teacher_multiply_adds: int | None = None
    teacher_seconds: float | None = None
    peak_memory_mb: float | None = None
    device: str
    versions: str
    commit: str | None = None
    recipe: str
    fingerprint: str

    @property
    def cost_multiply_adds(self) -> int | None:
        """Multiply-adds of the whole training, including that of the teacher."""
        if self.multiply_adds is None:
            return None
        return self.multiply_adds * self.train_images * self.epochs + (self.teacher_multiply_adds or 0)

    @property
    def cost_seconds(self) -> float:
        """Training time, including that of the teacher."""
        return self.train_seconds + (self.teacher_seconds or 0)


def rows_of(study: Study, folder: Path) -> list[Row]:
    """Rows of the finished runs of a study, in the order of the study.

    Raises:
        TrainError: See `recorded_rows`.
    """
    known: dict[str, int | None] = {}
    finished = summaries(study, folder)
    found = {cell: _row(cell, summary, known) for cell, summary in finished.items()}
    found.update(_recorded(study, folder, finished))
    return [found[cell] for cell in study.cells if cell in found]


def recorded_rows(study: Study, folder: Path) -> dict[Cell, Row]:
    """Rows of a study's `runs.csv` whose run folders are missing: run on another machine, or deleted.

    Raises:
        TrainError: A row has another recipe than the study, or see `read_rows`.
    """
    return _recorded(study, folder, summaries(study, folder))


def _recorded(study: Study, folder: Path, finished: Collection[Cell]) -> dict[Cell, Row]:
    """Rows of `runs.csv` without those of the runs that finished in this folder."""
    path = folder / RUNS_CSV
    rows = _read(study, path) if path.is_file() else {}
    recorded = {cell: row for cell, row in rows.items() if cell not in finished}
    for cell, row in recorded.items():
        require(row.fingerprint == fingerprint(cell.config),
                f"'{path}' has a run '{cell.name}' of another recipe: remove its row to run it again")
    return recorded


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write rows as CSV, atomically."""
    text = io.StringIO(newline='')
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(Row)], lineterminator='\n')
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    write_text(path, text.getvalue())


def read_rows(study: Study, path: Path) -> list[Row]:
    """Read the rows that `write_rows` wrote, in the order of the study.

    Raises:
        TrainError: The file or a column is missing, a value is invalid, or a row is duplicate or no run of the study.
    """
    require(path.is_file(), f"no runs '{path}': timm-collab study GRID --report writes them")
    found = _read(study, path)
    return [found[cell] for cell in study.cells if cell in found]


def _read(study: Study, path: Path) -> dict[Cell, Row]:
    """Rows of a file, by cell."""
    cells = {(cell.setting, cell.method, cell.seed): cell for cell in study.cells}
    found: dict[Cell, Row] = {}
    try:
        text = path.read_text(encoding='utf-8')
        lines = list(csv.DictReader(io.StringIO(text, newline=''), strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise TrainError(f"'{path}' is damaged ({error}): restore it from a copy") from error
    for number, values in enumerate(lines, 2):
        where = f"'{path}', line {number}"
        row = _parsed(values, where)
        cell = cells.get((row.setting, row.method, row.seed))
        name = f"{where}: method '{row.method}', setting '{row.setting}', seed {row.seed}"
        if cell is None:
            raise TrainError(f'{name} is no run of the study: remove its row, or add the run to the grid again')
        require(cell not in found, f'{name} appears twice: remove one of the rows')
        found[cell] = row
    require(bool(found), f"'{path}' has no runs")
    return found


def _parsed(values: Mapping[str | None, Any], where: str) -> Row:
    """Parse a row."""
    given: dict[str, Any] = {}
    for name, hint in get_type_hints(Row).items():
        text = values.get(name)
        kinds = get_args(hint) or (hint,)
        if NoneType in kinds and not text:
            continue
        require(text is not None, f'{where}: no value for {name}')
        try:
            given[name] = kinds[0](text)
        except ValueError:
            raise TrainError(f"{where}: {name} must be {kinds[0].__name__}, got '{text}'") from None
    return Row(**given)


def _row(cell: Cell, summary: RunSummary, known: dict[str, int | None]) -> Row:
    teacher = summary.teacher or TeacherSummary(multiply_adds=0)
    forward, of_teacher = _forward(cell.config, summary, known), teacher.multiply_adds
    return Row(
        setting=cell.setting,
        method=cell.method,
        seed=cell.seed,
        metric=summary.metric.key,
        error=shortfall(summary.measured),
        error_last=shortfall(summary.measured) if summary.last is None else _measured_error(summary.last),
        error_oracle=_measured_error(summary.oracle),
        error_consensus=shortfall(summary.measured, 'consensus'),
        error_on=summary.error_on,
        worst_recall=summary.measured.get('worst_recall_kept'),
        kept_epoch=summary.kept_epoch,
        epochs=summary.epochs,
        train_images=summary.data.train,
        noise_rate=summary.noise.realised_rate,
        parameters_trained=summary.parameters.trained,
        parameters_kept=summary.parameters.kept,
        kept_head=summary.kept_head,
        multiply_adds=None if forward is None or of_teacher is None else FORWARDS_PER_STEP * forward + of_teacher,
        train_seconds=summary.train_seconds,
        teacher_multiply_adds=teacher.train_multiply_adds,
        teacher_seconds=teacher.train_seconds,
        peak_memory_mb=summary.peak_memory_mb,
        device=summary.computed_on,
        versions=', '.join(f'{name} {version}' for name, version in sorted(summary.versions.items())),
        commit=summary.commit,
        recipe=f'{RECIPES}/{cell.name}.yaml',
        fingerprint=fingerprint(cell.config),
    )


def _measured_error(epoch: EpochScores | None) -> float | None:
    if epoch is None:
        return None
    return shortfall(epoch.val if epoch.test is None else epoch.test)


def _forward(config: TrainConfig, summary: RunSummary, known: dict[str, int | None]) -> int | None:
    """Multiply-adds of one forward pass of one image, None if the network can't be created here."""
    num_classes, input_size = summary.data.num_classes, summary.data.preprocessing['input_size']
    name = repr((config.model, config.data.in_chans, config.data.img_size, num_classes, input_size))
    if name not in known:
        # Weights don't matter here, and may have to be downloaded.
        model = dataclasses.replace(config.model, pretrained=False, checkpoint_path=None)
        try:
            known[name] = forward_multiply_adds(build_model(model, config.data, num_classes), input_size)
        except TrainError:
            known[name] = None
    return known[name]
