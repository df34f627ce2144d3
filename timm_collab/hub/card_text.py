"""Parts of the model card with figures: results, training, limitations."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..train.metrics.metric import MAP
from ..train.record.summary import RunSummary


def results_table(summary: RunSummary) -> str:
    """Table of the error, or mean average precision, of heads, consensus and, if trained, the single network."""
    assert summary.export is not None
    metric, scores, head = summary.metric, summary.scores, summary.export.head
    what = 'Mean average precision' if metric is MAP else 'Error'
    rows = [
        (f'head {number}, **this model**' if number == head else f'head {number}', score)
        for number, score in enumerate(scores.heads)
    ]
    if len(rows) > 1:
        rows.append(("mean of all heads' logits", scores.consensus))
    else:
        rows = [('the network, **this model**', scores.kept)]
    single = summary.single
    if single is not None:
        name = 'the network trained alone, same recipe'
        if summary.export.baseline is not None:
            name = f'another run, {summary.export.baseline}, of the network alone'
            if single.teacher is not None:
                name += ' with a teacher'
        rows.append((name, single.scores.kept))
    if summary.plain is not None:
        rows.append(('the network trained alone, by cross-entropy', summary.plain.scores.kept))
    labels = ', clean labels' if summary.noise.realised_rate else ''
    if summary.test is None and summary.noise.val_rate:
        labels = f', {100 * summary.noise.val_rate:.1f} % of their labels wrong'
    lines = [
        f'{what} on {summary.error_on}, {summary.measured["count"]:,} images{labels}',
        '',
        f'| | {"mAP" if metric is MAP else "top-1 error"}, % |',
        '|---|---|',
        *(f'| {name} | {score:.2f} |' for name, score in rows),
        '',
    ]
    if summary.num_heads > 1:
        chosen = 'It was chosen' if head == summary.kept_head else f'Training chose head {summary.kept_head}'
        lines.append(f'{chosen} by the rule: {summary.kept_head_rule}.')
    lines.append(epochs_text(summary))
    if summary.export.dtype == 'float16':
        lines.append('The figures are those of the float32 weights; they were rounded to float16 afterwards.')
    return '\n'.join(lines)


def epochs_text(summary: RunSummary) -> str:
    """Which epoch was kept, and how the last and the best ones did on validation and test data."""
    metric, best, kept, last = summary.metric, summary.best_epoch, summary.kept, summary.last

    def score(row: Mapping[str, Any]) -> str:
        return f'{metric.in_final(metric.kept(row)):.2f} %'

    weights = 'the moving average of the weights after' if kept and kept.averaged else 'the weights of'
    text = (f'This is {weights} epoch {summary.kept_epoch} of {summary.epochs}: on the validation data'
            f' ({summary.data.val_origin}) head {summary.kept_head} had {score(summary.val)}.')
    if summary.kept_epoch != best.epoch + 1:
        highest = 'highest' if metric is MAP else 'lowest'
        text += f' The {highest} after any epoch was {score(best.val)} (epoch {best.epoch + 1}).'
    if kept and last and (last.epoch, last.averaged) != (kept.epoch, kept.averaged):
        text += f' After the last epoch the best head had {score(last.val)} there'
        text += '.' if last.test is None else f', and {score(last.test)} on {summary.error_on}.'
    if (oracle := summary.oracle) is not None and oracle.val_clean is not None:
        text += (' The validation labels have noise as well; by those before noise, epoch'
                 f' {oracle.epoch + 1} was the best')
        text += '.' if oracle.test is None else f', with {score(oracle.test)} on {summary.error_on}.'
    return text


def training_list(summary: RunSummary, recipe: Mapping[str, Any]) -> str:
    """List of data, noise, recipe, hardware and time."""
    data, noise, optim, sched = summary.data, summary.noise, recipe['optim'], recipe['sched']
    wrong = f', {100 * noise.val_rate:.1f} % of their labels wrong' if noise.val_rate else ''
    items = [f'{data.train:,} training images, {data.val:,} for validation ({data.val_origin}{wrong})']
    if noise.realised_rate:
        items.append(f'{100 * noise.realised_rate:.1f} % of the training labels were wrong: {noise.kind}')
    items.append(
        f'{summary.epochs} epochs, batches of {recipe["batch_size"]}, {optim["name"]} with learning rate'
        f' {optim["lr"]:g} ({sched["name"]}) and weight decay {optim["weight_decay"]:g}, seed {summary.seed}')
    ema = recipe.get('ema', {})
    if ema.get('decay') is not None:
        items.append(f'moving average of the weights, decay {ema["decay"]:g}')
    if ema.get('epochs') is not None:
        items.append(f'moving average of the weights over {ema["epochs"]:g} epochs')
    if recipe['model'].get('pretrained'):
        items.append(f'started from pretrained weights of `{str(recipe["model"]["name"]).removeprefix("collab_")}`')
    if recipe['model'].get('checkpoint_path'):
        items.append(f'started from the weights of a checkpoint, `{recipe["model"]["checkpoint_path"]}`')
    items.append(f'{summary.train_seconds / 60:.1f} minutes on {summary.computed_on}')
    items.append(', '.join(f'{name} {version}' for name, version in summary.versions.items()))
    return '\n'.join(f'- {item}' for item in items)


def limits_text(
    summary: RunSummary, recipe: Mapping[str, Any], license: str, note: str | None = None,
) -> str:
    """Paragraphs on what was not measured, the note, and the licences."""
    answers = '' if summary.metric is MAP else ' A classifier answers with one of its classes whatever it is shown.'
    lines = [
        f'Measured on {summary.error_on} of the data named above, in one run with one seed. Nothing else was'
        ' measured: not other data, not corrupted or shifted images, not calibration, not fairness between groups.'
        f'{answers}'
    ]
    if note:
        lines.append(note)
    if recipe['model'].get('pretrained'):
        lines.append('The weights it was fine-tuned from have a licence of their own, which is on their card.')
    if recipe['model'].get('checkpoint_path'):
        lines.append('The checkpoint that training started from may have a licence of its own.')
    if summary.data.path == 'builtin:digits':
        lines.append(
            'The digits are by E. Alpaydin and C. Kaynak, from the UCI Machine Learning Repository, under CC BY 4.0:'
            ' name them when you pass this model on.')
    lines.append(f'The weights are published under the licence {license}.')
    return '\n\n'.join(lines)
