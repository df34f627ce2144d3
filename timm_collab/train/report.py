"""What a run says on the screen."""
from __future__ import annotations

from typing import Any

from accelerate import Accelerator

from .config import ModelConfig, TrainConfig
from .data.splits import Splits


def network_name(config: ModelConfig) -> str:
    """How a result is headed: `single network` or, say, `4-head tree`."""
    return 'single network' if config.num_heads == 1 else f'{config.num_heads}-head tree'


def data_line(config: TrainConfig, splits: Splits) -> str:
    """What is trained on, chosen by and tested on."""
    kind = f"column '{config.noise.column}'" if config.noise.kind == 'column' else config.noise.kind
    noise = f', {100 * splits.noise_rate:.1f} % of their labels wrong ({kind})' * (splits.noise_rate > 0)
    test = 'no test split' if splits.test is None else f'{len(splits.test):,} for the test'
    skipped = f"; {splits.num_skipped:,} that can't be decoded left out" * (splits.num_skipped > 0)
    return (f'data: {config.data.path}, {splits.num_classes} classes: {len(splits.train):,} images to train on{noise},'
            f' {len(splits.val):,} to choose the head by ({splits.val_origin}), {test}{skipped}')


def model_lines(config: TrainConfig, model: Any) -> list[str]:
    """What is about to be trained; a head tree draws itself."""
    return ['', f'{network_name(config.model)}: {model}']


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    """One line for one epoch; accuracies in percent, on the validation data."""
    val = row['val']
    line = (
        f'epoch {row["epoch"] + 1:>{len(str(epochs))}}/{epochs}'
        f'  lr {row["lr"]:.2e}  loss {row["train_loss"]:7.4f}  {row["images_per_second"]:6,.0f} img/s'
        f'  val top-1 {" ".join(f"{top1:5.1f}" for top1 in val["top1_heads"])}'
    )
    if len(val['top1_heads']) > 1:
        line += f'  consensus {val["top1_consensus"]:5.1f}  kept head {row["kept_head"]}'
    if 'val_without_ema' in row:
        line += f'  (without EMA {row["val_without_ema"]["top1_kept"]:.1f})'
    return line


def _result(summary: dict[str, Any]) -> str:
    text = f'{summary["network"]} {summary["error_kept"]:.1f} %'
    if summary['num_heads'] > 1:
        text += (f' (kept head {summary["kept_head"]} of 0-{summary["num_heads"] - 1},'
                 f' consensus {summary["error_consensus"]:.1f} %)')
    return text


def final_lines(summary: dict[str, Any]) -> list[str]:
    """The errors side by side, and the line that loads the kept head."""
    results = [summary[key] for key in ('single',) if key in summary] + [summary]
    kind = 'validation' if summary['test'] is None else 'test'
    return [
        '',
        f'{kind} error: {"    ".join(map(_result, results))}',
        'The kept head is saved as a plain timm model, its logits checked bit for bit. To use it:',
        summary.get('load', ''),
    ]


def say(accelerator: Accelerator, *lines: str) -> None:
    """Print lines, once for all processes."""
    if accelerator.is_main_process:
        for line in lines:
            print(line, flush=True)
