"""The parts of a run's summary, `summary.json`: scores, data, noise, teacher."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class HeadScores:
    """Final scores in percent: top-1 error, or mean average precision where images have several labels.

    Args:
        kept: Score of the kept head.
        consensus: Score of the mean of all heads' logits.
        heads: Score of each head.
    """

    kept: float
    consensus: float
    heads: list[float]


@dataclass(frozen=True)
class BestEpoch:
    """The epoch with the best validation score of the kept head.

    Args:
        epoch: The epoch, from 0.
        val: Its validation scores, as in `metrics.jsonl`.
        averaged: Whether these are of the moving average of the weights; None in summaries of older versions.
        kept_head: The head; None in summaries of older versions.
    """

    epoch: int
    val: dict[str, Any]
    averaged: bool | None = None
    kept_head: int | None = None


@dataclass(frozen=True)
class EpochScores:
    """The scores of a model after an epoch.

    Args:
        epoch: The epoch, from 0.
        averaged: Whether the weights are the moving average.
        kept_head: The head with the best validation score.
        val: Its scores on the validation labels, as in `metrics.jsonl`.
        val_clean: The same on the validation labels before noise, where they have noise.
        test: The same on the test split, if there is one.
    """

    epoch: int
    averaged: bool
    kept_head: int
    val: dict[str, Any]
    val_clean: dict[str, Any] | None = None
    test: dict[str, Any] | None = None


@dataclass(frozen=True)
class TestedEpochs:
    """The epochs that a summary has the scores of.

    Args:
        kept: The epoch whose weights are kept.
        last: The last epoch.
        oracle: The best epoch by validation labels before noise, where they have noise.
        val_details: What `Scores.details` gives of the kept epoch's validation.
        test_details: The same of its test.
        compared: After which epochs heads were compared to choose the kept one, in words.
    """

    kept: EpochScores
    last: EpochScores
    oracle: EpochScores | None
    val_details: dict[str, Any]
    test_details: dict[str, Any]
    compared: str


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters.

    Args:
        trained: Parameters of the tree.
        kept: Parameters of the pruned model.
    """

    trained: int
    kept: int


@dataclass(frozen=True)
class DataSummary:
    """The data of a run.

    Args:
        path: `data.path` of the recipe.
        num_classes: Number of classes.
        label_names: Names of the classes, if the data has them.
        preprocessing: timm's data config of the evaluation, with lists for tuples.
        train: Number of training images.
        val: Number of validation images.
        val_origin: Where the validation images come from.
        test: Number of test images, if there is a test split.
        skipped: Number of images that were left out because they can't be decoded.
        replaced: Number of such images that another one replaced while training.
        turned: Number of images that were turned by their EXIF orientation, of those that were counted.
        sixteen_bit: Number of images with 16 bits per value, of those that were counted.
        classes: Names of the classes in order, or else their numbers.
        splits: For `train`, `val` and `test`, the split's `name`, its number of `images`, and that of each class,
            `per_class`, before noise; None for a stream.
        left_out: Number of files, rows and images that are in no split, by reason.
        duplicates: Images equal to another one, `within` and `across` splits; None if they were not all compared.
    """

    path: str
    num_classes: int
    label_names: list[str] | None
    preprocessing: dict[str, Any]
    train: int
    val: int
    val_origin: str
    test: int | None
    skipped: int = 0
    replaced: int = 0
    turned: int = 0
    sixteen_bit: int = 0
    classes: list[str] | None = None
    splits: dict[str, dict[str, Any]] | None = None
    left_out: dict[str, int] | None = None
    duplicates: dict[str, int] | None = None

    @property
    def data_config(self) -> dict[str, Any]:
        """timm's data config of the evaluation, as `timm.data.create_transform` takes it."""
        return {name: tuple(value) if isinstance(value, list) else value for name, value in self.preprocessing.items()}


@dataclass(frozen=True)
class NoiseSummary:
    """Label noise in the training data.

    Args:
        kind: `noise.kind` of the recipe.
        rate: `noise.rate` of the recipe.
        column: `noise.column` of the recipe.
        realised_rate: Fraction of wrong training labels.
        val_rate: Fraction of wrong validation labels, where they have noise.
        confusion: Counts by clean label (row) and noisy label (column); None of many classes or several labels.
    """

    kind: str
    rate: float
    column: str | None
    realised_rate: float
    confusion: list[list[int]] | None = None
    val_rate: float | None = None


@dataclass(frozen=True)
class TeacherSummary:
    """The teacher of a run, as far as it is known.

    Args:
        path: Folder of the run that trained it.
        name: Its name in timm or on the Hub.
        checkpoint: File of its weights.
        parameters: Number of parameters.
        multiply_adds: Multiply-adds of a forward pass of one image.
        sha256: Digest of its weights.
        architecture: timm's name of the architecture.
        error: Top-1 error in percent.
        error_on: The data that the error was measured on.
        train_seconds: Time of its training, its own teacher's included.
        train_multiply_adds: Multiply-adds of its training, its own teacher's included.
    """

    path: str | None = None
    name: str | None = None
    checkpoint: str | None = None
    parameters: int | None = None
    multiply_adds: int | None = None
    sha256: str | None = None
    architecture: str | None = None
    error: float | None = None
    error_on: str | None = None
    train_seconds: float | None = None
    train_multiply_adds: int | None = None


@dataclass(frozen=True)
class ExportSummary:
    """What was exported, in the summary of an exported folder.

    Args:
        head: The exported head.
        dtype: `float32` or `float16`.
        sha256: Digest of the weights file.
        timm_collab: Version that exported it.
        baseline: Folder name of the run that `single` is of, where its recipe is another.
    """

    head: int
    dtype: str
    sha256: str
    timm_collab: str
    baseline: str | None = None
