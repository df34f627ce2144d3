from __future__ import annotations

import json

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard

from timm_collab import load_run
from timm_collab.hub import ExportOptions
from timm_collab.hub.export import write_folder


def card_of(make_run, tmp_path, edit=None, **options) -> ModelCard:
    path = make_run()
    if edit is not None:
        summary = json.loads((path / 'summary.json').read_text())
        edit(summary)
        (path / 'summary.json').write_text(json.dumps(summary))
    write_folder(load_run(path), tmp_path / 'out', ExportOptions(**{'license': 'cc-by-4.0', **options}))
    return ModelCard.load(tmp_path / 'out' / 'README.md')


def edit_recipe(path, **groups) -> None:
    recipe = yaml.safe_load((path / 'config.yaml').read_text())
    for group, keys in groups.items():
        recipe[group].update(keys)
    (path / 'config.yaml').write_text(yaml.safe_dump(recipe))


def card_of_run(path, folder, **options) -> ModelCard:
    write_folder(load_run(path), folder, ExportOptions(license='mit', **options))
    return ModelCard.load(folder / 'README.md')


@pytest.mark.parametrize(('objective', 'tag', 'said', 'cites'), [
    ({'kind': 'collaborative'}, 'collaborative-learning', ('by collaborative learning', 'what the others agree on'),
     'song2018collaborative'),
    ({'kind': 'mutual'}, 'deep-mutual-learning', ('by Deep Mutual Learning', 'the prediction of each other head'),
     'zhang2018mutual'),
    ({'kind': 'gated'}, 'on-the-fly-native-ensemble',
     ('On-the-Fly Native Ensemble', 'the ensemble of all heads, weighted by a gate'), 'lan2018ensemble'),
    ({'beta': 1.0}, None, ('as one of several heads', 'from the labels alone'), None),
    ({'hard': 'elr'}, 'collaborative-learning', ('from the labels (early-learning regularisation) and, with a weight',),
     'song2018collaborative'),
])
def test_the_card_names_the_method(make_run, tmp_path, objective, tag, said, cites) -> None:
    path = make_run()
    edit_recipe(path, objective=objective)
    card = card_of_run(path, tmp_path / 'out')
    for words in said:
        assert words in card.text, words
    tags = {'collaborative-learning', 'deep-mutual-learning', 'on-the-fly-native-ensemble'}
    assert tags & set(card.data.tags) == ({tag} if tag else set())
    assert card.text.count('@inproceedings{') == bool(cites) and (cites or '') in card.text
    assert ('the others agree' in card.text) == (tag == 'collaborative-learning')


@pytest.mark.parametrize('teacher', [None, '/home/somebody/teacher'])
def test_a_single_network_is_not_called_collaborative(make_run, tmp_path, teacher) -> None:
    path = make_run(tree='head', kept_head=0)
    if teacher is not None:
        edit_recipe(path, teacher={'path': teacher}, model={'tree': None, 'heads': 1})
        summary = json.loads((path / 'summary.json').read_text())
        facts = {'path': teacher, 'architecture': 'resnet18', 'parameters': 11_700_000}
        (path / 'summary.json').write_text(json.dumps({**summary, 'teacher': facts}))
    card = card_of_run(path, tmp_path / 'out')
    assert 'It was trained alone with' in card.text and 'ollaborative' not in card.text
    assert 'collaborative-learning' not in card.data.tags and '## Citation' not in card.text
    taught = 'from the predictions of a teacher, `resnet18` with 11.70 M parameters (temperature 4)'
    assert (taught in card.text) == (teacher is not None)


@pytest.mark.parametrize(('changes', 'same'), [
    ({}, True),
    ({'model': {'name': 'test_resnet'}}, True),
    ({'optim': {'lr': 0.3}}, False),
    ({'data': {'path': 'ann/digits'}}, False),
])
def test_a_baseline_with_another_recipe_is_named(make_run, tmp_path, changes, same) -> None:
    alone = make_run('alone', tree='head', kept_head=0)
    recipe = yaml.safe_load((alone / 'config.yaml').read_text())
    recipe['model'].update(heads=1, tree=None)
    (alone / 'config.yaml').write_text(yaml.safe_dump({**recipe, 'seed': 7}))
    edit_recipe(alone, **changes)
    card = card_of_run(make_run(), tmp_path / 'out', baseline=alone)
    assert ('| the network trained alone, same recipe | 10.00 |' in card.text) == same
    assert ('| another run, alone, of the network alone | 10.00 |' in card.text) == (not same)


def test_the_metadata_reads_back_with_its_results(make_run, tmp_path) -> None:
    data = card_of(make_run, tmp_path).data
    assert (data.license, data.library_name, data.pipeline_tag) == ('cc-by-4.0', 'timm', 'image-classification')
    assert {'collaborative-learning', 'noisy-labels', 'timm', 'transformers'} <= set(data.tags)
    [result] = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ('accuracy', 91.0, 'test')
    assert data.get('datasets') is None and data.get('base_model') is None
    again = ModelCard.from_template(data, template_str='---\n{{ card_data }}\n---\n').data
    assert again.to_dict() == data.to_dict()


@pytest.mark.skipif(int(huggingface_hub.__version__.split('.')[0]) < 1, reason='this client asks huggingface.co alone')
def test_the_hub_validates_it(hub, make_run, tmp_path) -> None:
    card_of(make_run, tmp_path).validate()
    assert 'validate' in hub.kinds(200)


def test_results_of_every_head_the_consensus_and_the_single_network(make_run, tmp_path) -> None:
    def with_single(summary) -> None:
        summary['single'] = {
            **summary, 'error_kept': 12.25, 'num_heads': 1, 'kept_head': 0, 'error_heads': [12.25]}

    text = card_of(make_run, tmp_path, with_single, head=3).text
    for row in ('| head 0 | 10.00 |', '| head 3, **this model** | 7.00 |', "| mean of all heads' logits | 4.50 |",
                '| the network trained alone, same recipe | 12.25 |'):
        assert row in text, row
    assert 'Training chose head 1 by the rule: highest validation accuracy.' in text
    assert json.loads((tmp_path / 'out' / 'summary.json').read_text())['single']['error_kept'] == 12.25


def test_a_note_is_among_the_limits(make_run, tmp_path) -> None:
    text = card_of(make_run, tmp_path, note='The images were JPEGs.').text
    assert text.index('## Limits') < text.index('The images were JPEGs.') < text.index('## Citation')


def test_missing_results_are_left_out(make_run, tmp_path) -> None:
    def without(summary) -> None:
        summary['noise']['realised_rate'] = 0.0

    card = card_of(make_run, tmp_path, without)
    assert 'noisy-labels' not in card.data.tags
    for absent in ('trained alone', 'were wrong', 'float16', 'None', '{{', 'whole tree is'):
        assert absent not in card.text, absent


def test_other_licences_and_data_of_the_hub(make_run, tmp_path) -> None:
    card = card_of(make_run, tmp_path, license='other', license_name='mine', license_link='https://example.org/mine',
                   dataset='ann/digits')
    assert (card.data.license_name, card.data.datasets) == ('mine', ['ann/digits'])
    assert card.data.eval_results[0].dataset_type == 'ann/digits'
    assert 'The weights are published under the licence [mine](https://example.org/mine).' in card.text


def code_of(text: str) -> str:
    return text.split('```python\n')[1].split('```')[0]


def test_the_usage_example_has_six_lines_and_imports_the_plugin_if_needed(make_run, tmp_path) -> None:
    text = card_of(make_run, tmp_path).text
    code = code_of(text).splitlines()
    assert code[0] == 'import timm' and len(code) == 6 and 'Of the images' not in text
    assert code[4] == "image = ImageOps.exif_transpose(Image.open('image.jpg')).convert('L')"
    run = load_run(make_run('cifar', arch='cifar_resnet20', in_chans=3))
    write_folder(run, tmp_path / 'cifar-out', ExportOptions(license='mit'))
    card = ModelCard.load(tmp_path / 'cifar-out' / 'README.md')
    assert 'import timm, timm_collab  # registers the architecture' in card.text
    assert code_of(card.text).splitlines()[4].endswith(".convert('RGB')")
    assert 'one that timm alone does not have' in card.text and 'transformers' not in card.data.tags


@pytest.mark.parametrize(('counts', 'said'), [
    (dict(turned=1200), '1,200 were turned upright by their EXIF orientation.'),
    (dict(turned=1), '1 was turned upright by its EXIF orientation.'),
    (dict(sixteen_bit=7), '7 were scaled from 16 bits per value to 8.'),
    (dict(turned=3, sixteen_bit=7), '3 were turned upright by their EXIF orientation and 7 were scaled from 16 bits per'
                                    ' value to 8.'),
])
def test_images_that_training_turned_or_scaled_are_counted(make_run, tmp_path, counts, said) -> None:
    text = card_of(make_run, tmp_path, lambda summary: summary['data'].update(counts)).text
    assert f'Of the images examined in training, {said} The lines above do it; timm does not.' in text
    assert ('numpy' in text) == ('sixteen_bit' in counts)


def test_images_of_16_bits_are_opened_with_the_bits_of_the_recipe(make_run, tmp_path) -> None:
    path = make_run()
    edit_recipe(path, data={'bit_depth': 12})
    summary = json.loads((path / 'summary.json').read_text())
    summary['data']['sixteen_bit'] = 1
    (path / 'summary.json').write_text(json.dumps(summary))
    code = code_of(card_of_run(path, tmp_path / 'out').text)
    assert code.startswith('import numpy\nimport timm\n') and '(numpy.asarray(image) >> 4)' in code


def test_the_initial_checkpoint_is_named_without_its_folder(make_run, tmp_path) -> None:
    path = make_run()
    edit_recipe(path, model={'checkpoint_path': '/home/somebody/weights.pth'})
    text = card_of_run(path, tmp_path / 'out').text
    assert 'started from the weights of a checkpoint, `weights.pth`' in text and 'somebody' not in text


@pytest.mark.parametrize('tag', ['test_resnet.r160_in1k'])
def test_a_fine_tuned_head_names_its_base_model(make_run, tmp_path, tag) -> None:
    path = make_run()
    recipe = (path / 'config.yaml').read_text()
    recipe = recipe.replace('name: collab_test_resnet', f'name: collab_{tag}').replace('pretrained: false',
                                                                                     'pretrained: true')
    (path / 'config.yaml').write_text(recipe)
    write_folder(load_run(path), tmp_path / 'out', ExportOptions(license='mit'))
    card = ModelCard.load(tmp_path / 'out' / 'README.md')
    assert card.data.base_model == f'timm/{tag}'
    assert 'have a licence of their own' in card.text and f'started from pretrained weights of `{tag}`' in card.text
