"""The lines that a run prints."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from ..config import ModelConfig, TrainConfig
from ..data.counts import SplitCounts, all_left_out, count_splits
from ..data.labels.noise import realised_rate
from ..data.loading.images import BatchedImages, TransformedImages
from ..data.loading.streaming import StreamedImages
from ..data.training_data import TrainingData
from ..metrics.by_class import balanced
from ..metrics.metric import metric_of
from .summary import RunSummary

WAITED = 0.2
"""Part of an epoch from which the time that the device waits for batches is reported."""

VANISHED = 0.15
"""Part of the mean recall under which a class counts as lost."""
LEARNED = 3
"""Times the accuracy of guessing from which a class may count as lost: before, all classes are."""


def network_name(config: ModelConfig) -> str:
    """Name of the network in results: `single network` or, e.g., `4-head tree`."""
    return 'single network' if config.num_heads == 1 else f'{config.num_heads}-head tree'


def data_lines(config: TrainConfig, data: TrainingData) -> list[str]:
    """Describe the training, validation and test data: a line, and others if classes differ or images are left out."""
    splits = data.splits
    noise = val_noise = several = ''
    if splits.val_clean is not None:
        val_noise = f', {100 * realised_rate(splits.val_clean, splits.val.labels):.1f} % of their labels wrong as well'
    if splits.noise_rate > 0:
        kind = f"column '{config.noise.column}'" if config.noise.kind == 'column' else config.noise.kind
        noise = f', {100 * splits.noise_rate:.1f} % of their labels wrong ({kind})'
    if config.data.multi_label:
        several = ' of which an image has several'
    test = 'no test split' if splits.test is None else f'{len(splits.test):,} for the test'
    lines = [f'data: {config.data.path}, {splits.num_classes} classes{several}: {len(splits.train):,} images to train'
             f' on{noise}, {len(splits.val):,} to choose the head by ({splits.val_origin}{val_noise}), {test}']
    sizes = imbalance(count_splits(splits)['train'])
    if sizes:
        lines.append(f'classes: {sizes}')
    counted, left_out = [], all_left_out(splits.left_out, splits.num_skipped)
    if left_out:
        counted.append(f'left out: {left_out_line(left_out, 3)}')
    same = data.duplicates
    if same is not None and (same.within or same.across):
        counted.append(f'exact duplicates: {same.within:,} within splits, {same.across:,} across splits')
    return lines + (['; '.join(counted)] if counted else [])


def imbalance(counts: SplitCounts, least: float = 1.5) -> str:
    """Name the smallest and the largest class; empty unless that has over `least` times as many images."""
    if counts.extremes is None or counts.per_class is None:
        return ''
    smallest, largest = counts.extremes
    low, high = counts.per_class[smallest], counts.per_class[largest]
    if high <= least * low:
        return ''
    ratio = f', {high / low:.1f} times as many' if low else ''
    images = 'image' if low == 1 else 'images'
    return f"smallest '{smallest}' with {low:,} training {images}, largest '{largest}' with {high:,}{ratio}"


def left_out_line(left_out: Mapping[str, int], most: int | None = None) -> str:
    """Number of what was left out, and the most frequent reasons, each with its number if there are several."""
    if len(left_out) == 1:
        [(reason, count)] = left_out.items()
        return f'{count:,} ({reason})'
    reasons = [f'{reason}: {count:,}' for reason, count in left_out.items()]
    rest = 0 if most is None else max(len(reasons) - most, 0)
    more = [f'{rest} other reason{"" if rest == 1 else "s"}'] if rest else []
    return f'{sum(left_out.values()):,} ({", ".join(reasons[:most] + more)})'


def model_lines(config: TrainConfig, model: Any) -> list[str]:
    """Describe the model that is about to be trained; a head tree prints as a drawing."""
    return ['', f'{network_name(config.model)}: {model}']


def against_waiting(train: BatchedImages | TransformedImages | StreamedImages) -> str:
    """What can make the loader of the training images faster."""
    if isinstance(train, StreamedImages):
        return 'raise data.workers'
    if train.contents is not None:  # decoded, in memory
        return 'raise data.workers, or try data.pipeline batch'
    return 'raise data.workers or data.cache_mb'


class EpochTable:
    """A table with a row per epoch, its header repeated every 25 rows; the same on a terminal and in a log file.

    Scores are in percent, on the validation data; a star marks the kept head. With EMA they are those of the averaged
    weights, and the last column has the kept head's score without EMA.

    Args:
        epochs: Number of epochs of the run.
        balanced: Add a column with the balanced accuracy of the kept head.
        loaded: Number of images per epoch that loaders prepare one by one; None if they are batched in memory. Once, a
            line then says that the device has to wait for them.
        remedy: What the user can do about it.
    """

    HEADER_EVERY = 25

    def __init__(self, epochs: int, balanced: bool = False, loaded: int | None = None, remedy: str = '') -> None:
        self.epochs = epochs
        self.balanced = balanced
        self.loaded = loaded
        self.remedy = remedy
        self.printed = 0

    def lines(self, row: dict[str, Any]) -> list[str]:
        """The lines to print for an epoch."""
        columns = self._columns(row)
        width = 2 * len(str(self.epochs)) + 1
        head = '  '.join(['epoch'.rjust(max(width, 5)), *(title.rjust(size) for title, size, _ in columns)])
        line = '  '.join([
            f'{row["epoch"] + 1}/{self.epochs}'.rjust(max(width, 5)),
            *(text.rjust(size) for _, size, text in columns),
        ])
        self.printed += 1
        lines = [head, line] if self.printed % self.HEADER_EVERY == 1 else [line]
        if self.loaded and (waited := row['wait_seconds'] * row['images_per_second'] / self.loaded) > WAITED:
            lines.append(f'the loader kept the device waiting {100 * waited:.0f} % of the epoch: {self.remedy}')
            self.loaded = None
        return lines

    def _columns(self, row: dict[str, Any]) -> list[tuple[str, int, str]]:
        """Title, width and text of each column."""
        val, metric = row['val'], metric_of(row['val'])
        scores = metric.heads(val)
        heads = len(scores)
        columns = [
            ('lr', 8, f'{row["lr"]:.2e}'),
            ('loss', 8, f'{row["train_loss"]:.4f}'),
            ('img/s', 7, f'{row["images_per_second"]:,.0f}'),
        ]
        for head, score in enumerate(scores):
            if heads == 1:
                columns.append((f'val {metric.name}', 9, f'{score:.1f}'))
            else:
                star = '*' if head == row['kept_head'] else ' '
                columns.append((f'head {head}', 7, f'{score:.1f}{star}'))
        if heads > 1:
            columns.append(('consensus', 9, f'{metric.consensus(val):.1f}'))
        if self.balanced:
            columns.append(('balanced', 8, f'{val["balanced_kept"]:.1f}'))
        if val.get('disagreement') is not None:
            columns.append(('disagree', 8, f'{val["disagreement"]:.1f}'))
        if 'val_without_ema' in row:
            columns.append(('no EMA', 6, f'{metric.kept(row["val_without_ema"]):.1f}'))
        return columns


def _result(summary: RunSummary) -> str:
    text = f'{summary.network} {summary.scores.kept:.1f} %'
    if summary.num_heads > 1:
        text += (f' (kept head {summary.kept_head} of 0-{summary.num_heads - 1},'
                 f' consensus {summary.scores.consensus:.1f} %)')
    return text


def _kept_epoch(summary: RunSummary) -> str:
    """Which epoch was kept, and what the last one has in its place."""
    name, last = summary.metric.final_name, summary.last
    text = f'{summary.network}: epoch {summary.kept_epoch} of {summary.epochs} was kept'
    if last is None:
        return text
    row = last.val if last.test is None else last.test
    return f'{text}; {name} after the last epoch: {summary.metric.in_final(summary.metric.kept(row)):.1f} %'


def _vanished(summary: RunSummary) -> list[str]:
    """A warning about classes that the kept head hardly ever recognizes, although it does others."""
    recall_C, names = summary.measured.get('recall_kept') or [], summary.data.classes or []
    mean = balanced(recall_C) if recall_C else 0.0
    limit = VANISHED * mean if mean > LEARNED * 100 / summary.data.num_classes else 0.0
    lost = [f"'{name}' ({recall:.1f} %)" for name, recall in zip(names, recall_C, strict=False)
            if recall is not None and recall < limit]
    if not lost:
        return []
    more = f' and {len(lost) - 5} more' if len(lost) > 5 else ''
    return [f'warning: the kept head recognizes hardly any image of {", ".join(lost[:5])}{more}: look at the confusion'
            ' matrix; with objective.hard elr, more objective.balance or less objective.elr_weight keeps classes']


def final_lines(summary: RunSummary) -> list[str]:
    """The final scores side by side, and the line that loads the kept head."""
    results = [each for each in (summary.single, summary) if each is not None]
    epochs = [_kept_epoch(each) for each in results if each.kept_epoch != each.epochs]
    if summary.plain is None:
        plain = []
    else:
        plain = [f'{summary.plain.network}, cross-entropy {summary.plain.scores.kept:.1f} %']
    split = 'validation' if summary.test is None else 'test'
    return [
        '',
        f'{split} {summary.metric.final_name}: {"    ".join([*plain, *map(_result, results)])}',
        *epochs,
        *_vanished(summary),
        'The kept head is saved as a plain timm model, its logits checked bit for bit. To use it:',
        summary.load or '',
    ]


def print_on_main(accelerator: Accelerator, *lines: str) -> None:
    """Print lines, once for all processes."""
    if accelerator.is_main_process:
        for line in lines:
            print(line, flush=True)
