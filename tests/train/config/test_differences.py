from __future__ import annotations

import yaml

from timm_collab.train.config.differences import differences, fingerprint


def saved(config) -> dict:
    return yaml.safe_load(yaml.safe_dump(config.to_dict()))


def test_equal_recipes_have_no_differences(recipe):
    config = recipe('--optim.lr=1e-5', '--model.kwargs={drop_rate: 0.1}')
    assert differences(saved(config), config) == []


def test_each_difference_names_its_key(recipe):
    was = saved(recipe('--optim.lr=0.1', '--model.kwargs={drop_rate: 0.1}'))
    asked = recipe('--optim.lr=0.2', '--ema.decay=0.9', '--model.kwargs={drop_rate: 0.2}')
    assert differences(was, asked) == [
        "model.kwargs {'drop_rate': 0.1} -> {'drop_rate': 0.2}",
        'optim.lr 0.1 -> 0.2',
        'ema.decay null -> 0.9',
    ]


def test_keys_without_effect_on_the_result_may_change(recipe):
    was = saved(recipe())
    asked = recipe('--output=elsewhere', '--data.workers=3', '--data.cache_dir=/cache', '--checkpoint.keep_last=5',
                   '--cpu_threads=1', '--compare_single=true', '--resume=false')
    assert differences(was, asked) == []
    assert fingerprint(asked) == fingerprint(recipe())


def test_handling_of_bad_images_may_change_on_resume(recipe):
    """The error for a bad test image, found after training, advises to resume with another value."""
    asked = recipe('--data.on_bad_image=skip')
    assert differences(saved(recipe()), asked) == []
    assert fingerprint(asked) != fingerprint(recipe())


def test_missing_key_of_an_older_version_counts_as_default(recipe):
    was = saved(recipe())
    del was['ema'], was['optim']['clip_mode']
    assert differences(was, recipe()) == []
    assert differences(was, recipe('--ema.decay=0.9')) == ['ema.decay null -> 0.9']


def test_removed_key_is_named(recipe):
    was = saved(recipe())
    was['optim']['nesterov'] = True
    assert differences(was, recipe()) == ['optim.nesterov True -> (no such key)']
