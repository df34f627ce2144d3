"""The model card of an exported run, made of what the run recorded.

The prose is the template `hub/card.md`. huggingface_hub renders it with jinja2, which torch requires.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..pretrained.catalogue import shipped_folder
from ..train.metrics.metric import MAP
from ..train.paths import CARD, PLOTS
from ..train.record.finished_run import Run
from ..train.record.summary import RunSummary
from ..train.record.summary_parts import DataSummary, TeacherSummary
from ..tree import PREFIX, HeadTree
from .card_text import limits_text, results_table, training_list
from .errors import require
from .options import ExportOptions

TEMPLATE = 'card.md'
DIGITS = 'builtin:digits'
METRICS = {'top1': ('accuracy', 'Top-1 accuracy (%)'), 'map': ('mean_average_precision', 'mAP (%)')}
HUB_ID = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')

# Tag and name of each objective.kind.
METHODS = {
    'collaborative': (
        'collaborative-learning', 'collaborative learning ([Song & Chai, 2018](https://arxiv.org/abs/1805.11761))'),
    'mutual': (
        'deep-mutual-learning', 'Deep Mutual Learning ([Zhang et al., 2018](https://arxiv.org/abs/1706.00384))'),
    'gated': (
        'on-the-fly-native-ensemble',
        'a gated ensemble, On-the-Fly Native Ensemble ([Lan et al., 2018](https://arxiv.org/abs/1806.04606))'),
}

# Full names of the embedded data.
DATASET_NAMES = {DIGITS: 'Optical Recognition of Handwritten Digits (UCI)'}


def write_card(
        folder: Path,
        run: Run,
        summary: RunSummary,
        recipe: Mapping[str, Any],
        config: Mapping[str, Any],
        options: ExportOptions,
) -> None:
    """Write the `README.md` of an exported folder.

    Args:
        folder: The folder.
        run: The run.
        summary: The published summary.
        recipe: The published recipe.
        config: The published `config.json` of timm.
        options: Options of the export.

    Raises:
        HubError: The metadata reads back differently from how it was written.
    """
    shipped = shipped_folder()
    assert shipped is not None  # part of the package
    data = card_data(run, summary, recipe, options)
    card = ModelCard.from_template(
        data,
        template_path=str(shipped / TEMPLATE),
        name=data.model_name,
        what=_what(run, summary, config),
        method=_method(summary, recipe),
        trained=_trained(summary, recipe),
        how=_how(summary, recipe),
        picture=HeadTree.parse(summary.tree).draw() if summary.num_heads > 1 else '',
        usage=_usage(run, summary, recipe),
        opened=_opened(summary.data),
        plugin=run.needs_plugin,
        transformers=not run.needs_plugin,
        tree=_tree_cost(summary) if options.tree else '',
        results=results_table(summary),
        plots=[{'title': plot.stem, 'path': f'{PLOTS}/{plot.name}'} for plot in run.plots()],
        training=training_list(summary, recipe),
        limits=limits_text(summary, recipe, _license(options), options.note),
    )
    text = re.sub(r'\n{3,}', '\n\n', card.content).rstrip() + '\n'
    (folder / CARD).write_text(text, encoding='utf-8')
    read = ModelCard.load(folder / CARD)
    require(read.data.to_dict() == data.to_dict(), f'{CARD} does not read back as it was written')


def card_data(
        run: Run,
        summary: RunSummary,
        recipe: Mapping[str, Any],
        options: ExportOptions,
) -> ModelCardData:
    """The metadata that the Hub shows and searches."""
    assert summary.export is not None
    path, metric = summary.data.path, summary.metric
    split = re.search(r"split '(.+?)'", summary.error_on)
    result = EvalResult(
        task_type='image-classification',
        task_name='Image classification',
        dataset_type=path.removeprefix('builtin:'),
        dataset_name=DATASET_NAMES.get(path, path),
        metric_type=METRICS[metric.key][0],
        metric_name=METRICS[metric.key][1],
        metric_value=metric.in_final(summary.scores.heads[summary.export.head]),
        dataset_split=split[1] if split else None,
    )
    method = _method(summary, recipe)
    tags = ['image-classification', 'timm']
    if method is not None:
        tags.append(METHODS[method][0])
    if not run.needs_plugin:
        tags.append('transformers')
    if summary.noise.realised_rate:
        tags.append('noisy-labels')
    if metric is MAP:
        tags.append('multi-label')
    base = _base_model(recipe)
    return ModelCardData(
        license=options.license,
        license_name=options.license_name,
        license_link=options.license_link,
        library_name='timm',
        pipeline_tag='image-classification',
        tags=tags,
        datasets=[path] if HUB_ID.fullmatch(path) else None,
        base_model=base,
        metrics=[METRICS[metric.key][0]],
        model_name=_name(run, summary),
        eval_results=[result],
    )


def _name(run: Run, summary: RunSummary) -> str:
    data = summary.data.path.removeprefix('builtin:').split('/')[-1]
    return f'{run.architecture} trained on {data}'


def _base_model(recipe: Mapping[str, Any]) -> str | None:
    """Id on the Hub of the pretrained weights that training started from."""
    model = recipe['model']
    if not model.get('pretrained'):
        return None
    cfg = timm.get_pretrained_cfg(str(model['name']).removeprefix(PREFIX), allow_unregistered=True)
    return None if cfg is None or not cfg.hf_hub_id else str(cfg.hf_hub_id).split('@')[0]


def _what(run: Run, summary: RunSummary, config: Mapping[str, Any]) -> str:
    in_chans, height, width = config['pretrained_cfg']['input_size']
    size = f'{height}x{width} pixels' if height == width else f'{height}x{width} pixels (height x width)'
    channels = {1: 'grey', 3: 'colour'}.get(in_chans, 'multi-channel')
    path = summary.data.path
    what, may_have = 'classes of', ''
    if summary.metric is MAP:
        what, may_have = 'labels, any number of which', ' may have'
    text = (f'`{run.architecture}` with {summary.parameters.kept / 1e6:.2f} M parameters, for'
            f' {summary.data.num_classes} {what}'
            f' {channels} images of {size}{may_have}, trained on'
            f' {DATASET_NAMES.get(path, path)}.')
    names = config.get('label_names')
    if names and len(names) <= 20:
        text += f' The {"labels" if summary.metric is MAP else "classes"} are {", ".join(names)}.'
    return text


def _method(summary: RunSummary, recipe: Mapping[str, Any]) -> str | None:
    """The `objective.kind` by which heads learnt from each other; None if they didn't."""
    objective = recipe['objective']
    kind = str(objective.get('kind', 'collaborative'))
    # With beta 1 the heads learn from labels alone, except those of a gated ensemble, which learn through the gate.
    return None if summary.num_heads == 1 or (objective['beta'] == 1 and kind != 'gated') else kind


def _trained(summary: RunSummary, recipe: Mapping[str, Any]) -> str:
    method = _method(summary, recipe)
    if method is not None:
        return f'by {METHODS[method][1]}'
    return 'alone' if summary.num_heads == 1 else 'as one of several heads'


def _how(summary: RunSummary, recipe: Mapping[str, Any]) -> str:
    if summary.num_heads == 1:
        return (f'this is the network without a tree of heads, which learnt from the labels{_loss(recipe)}'
                f'{_taught(summary, recipe)}.')
    objective = recipe['objective']
    soft = 1 - objective['beta']
    if objective.get('full_labels'):
        soft = round(soft / objective['beta'], 4)
    source = {
        'collaborative': 'what the others agree on',
        'mutual': 'the prediction of each other head',
        'gated': 'the ensemble of all heads, weighted by a gate',
    }[objective.get('kind', 'collaborative')]
    labels = f'the labels{_loss(recipe)}'
    learn = (f'from {labels} alone' if objective['beta'] == 1 else
             f'from {labels} and, with a weight of {soft:g}, from {source}'
             f' (temperature {objective["temperature"]:g})')
    return (f'{summary.num_heads} heads grew on a tree (`{summary.tree}`), each learning {learn}; one of them was'
            ' kept, which is this network.')


def _loss(recipe: Mapping[str, Any]) -> str:
    """Name the loss for the labels; empty for cross-entropy."""
    name = {
        'gce': 'generalised cross-entropy',
        'sce': 'symmetric cross-entropy',
        'nce_rce': 'normalised and reverse cross-entropy',
        'elr': 'early-learning regularisation',
        'selc': 'self-ensemble label correction',
        'small_loss': 'the labels of small loss',
    }.get(recipe['objective'].get('hard', 'ce'))
    if recipe['objective'].get('select') == 'joint':
        name = 'the labels of small loss, and agreement of the heads on these images'
    return '' if name is None else f' ({name})'


def _taught(summary: RunSummary, recipe: Mapping[str, Any]) -> str:
    """Describe the teacher of a single network; empty without one."""
    asked, teacher = recipe.get('teacher') or {}, summary.teacher or TeacherSummary()
    name = teacher.architecture or asked.get('name') or asked.get('path')
    if name is None:
        return ''
    size = '' if teacher.parameters is None else f' with {teacher.parameters / 1e6:.2f} M parameters'
    temperature = f' (temperature {asked["temperature"]:g})' if 'temperature' in asked else ''
    return f' and from the predictions of a teacher, `{name}`{size}{temperature}'


def _license(options: ExportOptions) -> str:
    """The licence in Markdown."""
    if options.license == 'other':
        return f'[{options.license_name}]({options.license_link})'
    return f'`{options.license}`'


def _usage(run: Run, summary: RunSummary, recipe: Mapping[str, Any]) -> str:
    plugin = ', timm_collab  # registers the architecture' if run.needs_plugin else ''
    numpy = ['import numpy'] if summary.data.sixteen_bit else []
    activation = 'sigmoid()' if summary.metric is MAP else 'softmax(dim=-1)'
    return '\n'.join([
        *numpy,
        f'import timm{plugin}',
        'from PIL import Image, ImageOps',
        "model = timm.create_model('hf-hub:user/name', pretrained=True).eval()",
        'transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))',
        *opening(summary.data, recipe['data'].get('bit_depth', 16)),
        f'probabilities = model(transform(image).unsqueeze(0)).{activation}',
    ])


def opening(data: DataSummary, bit_depth: int) -> list[str]:
    """Lines of Python that open a file as training did: turned upright, with 8 bits per value, in grey or colour.

    Args:
        data: The data of the run.
        bit_depth: `data.bit_depth` of the recipe.
    """
    upright = "image = ImageOps.exif_transpose(Image.open('image.jpg'))"
    convert = f".convert('{'L' if data.data_config['input_size'][0] == 1 else 'RGB'}')"
    if not data.sixteen_bit:
        return [upright + convert]
    return [
        upright,
        "if image.mode.startswith('I'):  # 16 bits per value, here scaled to 8",
        f"    image = Image.fromarray((numpy.asarray(image) >> {bit_depth - 8}).astype('uint8'))",
        f'image = image{convert}',
    ]


def _opened(data: DataSummary) -> str:
    """Two sentences on how the images of a run were opened, if that is more than decoding them; else empty."""
    whose = 'its' if data.turned == 1 else 'their'
    facts = [(data.turned, f'turned upright by {whose} EXIF orientation'),
             (data.sixteen_bit, 'scaled from 16 bits per value to 8')]
    counted = ' and '.join(f'{count:,} {"was" if count == 1 else "were"} {what}' for count, what in facts if count)
    return f'Of the images examined in training, {counted}. The lines above do it; timm does not.' if counted else ''


def _tree_cost(summary: RunSummary) -> str:
    trained, kept = summary.parameters.trained, summary.parameters.kept
    sigmoid = ' `HeadEnsemble` takes `multi_label=True` here.' if summary.metric is MAP else ''
    return (f'All heads together have {trained / 1e6:.2f} M parameters,'
            f' {trained / kept:.1f} times those of one.{sigmoid}')
