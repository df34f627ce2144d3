"""A row for each finished run: all that a report is made of, read from the runs' folders or from `runs.csv`."""
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
from ..train.record.summary import RunSummary, TeacherSummary
from .compare import mean_and_std
from .grid import Cell, Study
from .runner import RECIPES, summaries

RUNS_CSV = 'runs.csv'


@dataclass(frozen=True, kw_only=True)
class Row:
    """A finished run. Its fields are the columns of `runs.csv`; None is an empty one, what an older run didn't record.

    Args:
        setting: Name of the setting.
        method: Name of the method.
        seed: The seed.
        metric: Key of what was measured; an error is 100 less that.
        error: Error of the kept head after the last epoch, in percent, on `error_on`.
        error_consensus: That of the heads' consensus.
        error_on: The data that both are measured on.
        val_error_last: Error of the kept head on the validation data after the last epoch.
        val_error_best: The lowest after any epoch.
        best_epoch: That epoch, from 1.
        epochs: Number of epochs.
        train_images: Images of an epoch.
        noise_rate: Share of wrong labels among them.
        parameters_trained: Parameters of all heads together.
        parameters_kept: Parameters of the kept head.
        kept_head: Index of the kept head.
        multiply_adds: Of one image in a training step: three forward passes, and one of the teacher if there is one.
        train_seconds: Time of the training.
        teacher_multiply_adds: Of the whole training of its teacher, if that is known.
        teacher_seconds: Time of the training of its teacher, if that is known.
        peak_memory_mb: Most memory used, in 2^20 bytes: by tensors on a GPU, by the whole process on a CPU.
        device: What it ran on.
        versions: Versions of the packages that results depend on.
        commit: The commit of the code; None where it wasn't a git checkout.
        recipe: Path of its recipe, in the folder of the study.
        fingerprint: That of its recipe.
    """

    setting: str
    method: str
    seed: int
    metric: str
    error: float
    error_consensus: float
    error_on: str
    val_error_last: float
    val_error_best: float
    best_epoch: int
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
        """Multiply-adds of the whole training, that of its teacher included."""
        if self.multiply_adds is None:
            return None
        return self.multiply_adds * self.train_images * self.epochs + (self.teacher_multiply_adds or 0)

    @property
    def cost_seconds(self) -> float:
        """Time of the training, that of its teacher included."""
        return self.train_seconds + (self.teacher_seconds or 0)


def rows_of(study: Study, folder: Path) -> list[Row]:
    """A row for each run of a study's folder that is finished, in the order of the study.

    Raises:
        TrainError: See `recorded_rows`.
    """
    known: dict[str, int | None] = {}
    there = summaries(study, folder)
    found = {cell: _row(cell, summary, known) for cell, summary in there.items()}
    found.update(_recorded(study, folder, there))
    return [found[cell] for cell in study.cells if cell in found]


def recorded_rows(study: Study, folder: Path) -> dict[Cell, Row]:
    """The runs that a study's `runs.csv` has and its folder no longer: run on another machine, or cleared away.

    Raises:
        TrainError: One of them was run by another recipe than the study has today, or see `read_rows`.
    """
    return _recorded(study, folder, summaries(study, folder))


def _recorded(study: Study, folder: Path, there: Collection[Cell]) -> dict[Cell, Row]:
    """`recorded_rows`, where it is known which runs are there."""
    path = folder / RUNS_CSV
    rows = _read(study, path) if path.is_file() else {}
    recorded = {cell: row for cell, row in rows.items() if cell not in there}
    for cell, row in recorded.items():
        require(row.fingerprint == fingerprint(cell.config),
                f"'{path}' has a run '{cell.name}' of another recipe: take its row out, to run it again")
    return recorded


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write rows as CSV, whole or not at all."""
    text = io.StringIO(newline='')
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(Row)], lineterminator='\n')
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    write_text(path, text.getvalue())


def read_rows(study: Study, path: Path) -> list[Row]:
    """Read back what `write_rows` wrote, in the order of the study.

    Raises:
        TrainError: There is no such file, a column is missing, a value is of the wrong kind, or a row is no run of the
            study or comes twice.
    """
    require(path.is_file(), f"no runs '{path}': timm-collab study GRID --report writes them")
    found = _read(study, path)
    return [found[cell] for cell in study.cells if cell in found]


def _read(study: Study, path: Path) -> dict[Cell, Row]:
    """The rows of a file, each with its cell."""
    cells = {(cell.setting, cell.method, cell.seed): cell for cell in study.cells}
    found: dict[Cell, Row] = {}
    try:
        text = path.read_text(encoding='utf-8')
        lines = list(csv.DictReader(io.StringIO(text, newline=''), strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise TrainError(f"'{path}' is damaged ({error}): bring it back from a copy") from error
    for number, values in enumerate(lines, 2):
        where = f"'{path}', line {number}"
        row = _parsed(values, where)
        cell = cells.get((row.setting, row.method, row.seed))
        name = f"{where}: method '{row.method}', setting '{row.setting}', seed {row.seed}"
        if cell is None:
            raise TrainError(f'{name} is no run of the study: take its row out, or put it into the grid again')
        require(cell not in found, f'{name} is there twice')
        found[cell] = row
    require(bool(found), f"'{path}' holds no run")
    return found


def by_seed(rows: Sequence[Row], setting: str, method: str, column: str = 'error') -> dict[int, float]:
    """A column of the runs of one method in one setting, by seed; without those that don't know it."""
    found = {row.seed: getattr(row, column) for row in rows if (row.setting, row.method) == (setting, method)}
    return {seed: value for seed, value in found.items() if value is not None}


def relative(study: Study, rows: Sequence[Row], setting: str, method: str, column: str) -> float | None:
    """Mean over the seeds of a column's ratio to the baseline's run with the same seed; None where there is none."""
    values, baseline = by_seed(rows, setting, method, column), by_seed(rows, setting, study.baseline, column)
    ratios = [values[seed] / baseline[seed] for seed in sorted(values.keys() & baseline.keys())]
    return mean_and_std(ratios)[0] if ratios else None


def _parsed(values: Mapping[str | None, Any], where: str) -> Row:
    """A row from its texts."""
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
        error_consensus=shortfall(summary.measured, 'consensus'),
        error_on=summary.error_on,
        val_error_last=shortfall(summary.val),
        val_error_best=shortfall(summary.best_epoch.val),
        best_epoch=summary.best_epoch.epoch + 1,
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


def _forward(config: TrainConfig, summary: RunSummary, known: dict[str, int | None]) -> int | None:
    """Multiply-adds of one image through the tree of a recipe; None where its network can't be made here."""
    num_classes, input_size = summary.data.num_classes, summary.data.preprocessing['input_size']
    name = repr((config.model, config.data.in_chans, config.data.img_size, num_classes, input_size))
    if name not in known:
        # Its weights don't matter, and may be far away.
        model = dataclasses.replace(config.model, pretrained=False, checkpoint_path=None)
        try:
            known[name] = forward_multiply_adds(build_model(model, config.data, num_classes), input_size)
        except TrainError:
            known[name] = None
    return known[name]
