"""The model card: what the run recorded, and nothing that it did not.

The prose is the template `hub/card.md`; jinja2, which renders it for huggingface_hub, comes with torch.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..catalogue import shipped_folder
from ..train.metrics import MAP
from ..tree import HeadTree
from .card_text import limits_text, results_table, training_list
from .errors import require
from .run import PLOTS, FinishedRun

if TYPE_CHECKING:
    from .export import ExportOptions

CARD, TEMPLATE = 'README.md', 'card.md'
METHOD = 'collaborative-learning'
DIGITS = 'builtin:digits'
METRICS = {'top1': ('accuracy', 'Top-1 accuracy (%)'), 'map': ('mean_average_precision', 'mAP (%)')}
HUB_ID = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')

# What the recipe's names of embedded data stand for.
DATASET_NAMES = {DIGITS: 'Optical Recognition of Handwritten Digits (UCI)'}


def write_card(
        folder: Path,
        run: FinishedRun,
        summary: Mapping[str, Any],
        recipe: Mapping[str, Any],
        config: Mapping[str, Any],
        options: ExportOptions,
) -> None:
    """Write a folder's `README.md`.

    Args:
        folder: The folder, all else of which is there.
        run: The run it is of.
        summary: Its summary, as published.
        recipe: Its recipe, as published.
        config: timm's config, as published.
        options: What was asked for.

    Raises:
        HubError: The card does not say, read again, what it was given to say.
    """
    shipped = shipped_folder()
    assert shipped is not None  # the package carries it
    data = card_data(run, summary, recipe, options)
    card = ModelCard.from_template(
        data,
        template_path=str(shipped / TEMPLATE),
        name=data.model_name,
        what=_what(run, summary, config),
        how=_how(run, recipe),
        picture=HeadTree.parse(run.summary['tree']).draw() if run.num_heads > 1 else '',
        usage=_usage(run),
        plugin=run.needs_plugin,
        transformers=not run.needs_plugin,
        tree=_tree_cost(run) if options.tree else '',
        results=results_table(summary, head=summary['export']['head'], dtype=summary['export']['dtype']),
        plots=[{'title': plot.stem, 'path': f'{PLOTS}/{plot.name}'} for plot in run.plots()],
        training=training_list(summary, recipe),
        limits=limits_text(summary, recipe, options.license, options.note),
    )
    text = re.sub(r'\n{3,}', '\n\n', card.content).rstrip() + '\n'
    (folder / CARD).write_text(text, encoding='utf-8')
    read = ModelCard.load(folder / CARD)
    require(read.data.to_dict() == data.to_dict(), f'{CARD} does not read back as it was written')


def card_data(
        run: FinishedRun,
        summary: Mapping[str, Any],
        recipe: Mapping[str, Any],
        options: ExportOptions,
) -> ModelCardData:
    """The metadata that the Hub shows and searches."""
    path = str(summary['data']['path'])
    split = re.search(r"split '(.+?)'", summary['error_on'])
    metric = run.metric
    final = summary[f'{metric.final}_heads'][summary['export']['head']]
    result = EvalResult(
        task_type='image-classification',
        task_name='Image classification',
        dataset_type=path.removeprefix('builtin:'),
        dataset_name=DATASET_NAMES.get(path, path),
        metric_type=METRICS[metric.key][0],
        metric_name=METRICS[metric.key][1],
        metric_value=metric.in_final(final),
        dataset_split=split[1] if split else None,
    )
    tags = ['image-classification', 'timm', METHOD] + ([] if run.needs_plugin else ['transformers'])
    base = _base_model(recipe)
    return ModelCardData(
        license=options.license,
        license_name=options.license_name,
        license_link=options.license_link,
        library_name='timm',
        pipeline_tag='image-classification',
        tags=tags + ['noisy-labels'] * bool(summary['noise']['realised_rate']) + ['multi-label'] * (metric is MAP),
        datasets=[path] if HUB_ID.fullmatch(path) else None,
        base_model=base,
        metrics=[METRICS[metric.key][0]],
        model_name=_name(run, summary),
        eval_results=[result],
    )


def _name(run: FinishedRun, summary: Mapping[str, Any]) -> str:
    data = str(summary['data']['path']).removeprefix('builtin:').split('/')[-1]
    return f'{run.architecture} trained on {data}'


def _base_model(recipe: Mapping[str, Any]) -> str | None:
    """The Hub's id of the weights that training began with."""
    model = recipe['model']
    if not model.get('pretrained'):
        return None
    cfg = timm.get_pretrained_cfg(str(model['name']).removeprefix('collab_'), allow_unregistered=True)
    return None if cfg is None or not cfg.hf_hub_id else str(cfg.hf_hub_id).split('@')[0]


def _what(run: FinishedRun, summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    size = 'x'.join(map(str, config['pretrained_cfg']['input_size'][1:]))
    channels = {1: 'grey', 3: 'colour'}.get(config['pretrained_cfg']['input_size'][0], 'multi-channel')
    path, several = str(summary['data']['path']), run.metric is MAP
    text = (f'`{run.architecture}` with {summary["parameters"]["kept"] / 1e6:.2f} M parameters, for'
            f' {run.num_classes} {"labels, any number of which" if several else "classes of"}'
            f' {channels} images of {size} pixels{" may have" * several}, trained on'
            f' {DATASET_NAMES.get(path, path)}.')
    names = config.get('label_names')
    if names and len(names) <= 20:
        text += f' The {"labels" if several else "classes"} are {", ".join(names)}.'
    return text


def _how(run: FinishedRun, recipe: Mapping[str, Any]) -> str:
    if run.num_heads == 1:
        return 'this is the network alone, without a tree of heads.'
    objective = recipe['objective']
    soft = 1 - objective['beta']
    if objective.get('full_labels'):
        soft = round(soft / objective['beta'], 4)
    learn = ('from the labels alone' if objective['beta'] == 1 else
             f'from the labels and, with a weight of {soft:g}, from what the others agree on'
             f' (temperature {objective["temperature"]:g})')
    return (f'{run.num_heads} heads grew on a tree (`{run.summary["tree"]}`), each learning {learn}; one of them was'
            ' kept, which is this network.')


def _usage(run: FinishedRun) -> str:
    plugin = '  # registers the architecture' if run.needs_plugin else ''
    activation = 'sigmoid()' if run.metric is MAP else 'softmax(dim=-1)'
    return '\n'.join([
        f'import timm, timm_collab{plugin}' if run.needs_plugin else 'import timm',
        "model = timm.create_model('hf-hub:user/name', pretrained=True).eval()",
        'transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))',
        f'probabilities = model(transform(image).unsqueeze(0)).{activation}  # of a PIL image',
    ])


def _tree_cost(run: FinishedRun) -> str:
    parameters = run.summary['parameters']
    sigmoid = ' `HeadEnsemble` takes `multi_label=True` here.' * (run.metric is MAP)
    return (f'All heads together have {parameters["trained"] / 1e6:.2f} M parameters,'
            f' {parameters["trained"] / parameters["kept"]:.1f} times those of one.{sigmoid}')
