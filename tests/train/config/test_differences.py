from __future__ import annotations

import yaml

from timm_collab.train.config.differences import differences, fingerprint


def saved(config) -> dict:
    return yaml.safe_load(yaml.safe_dump(config.to_dict()))


def test_the_same_recipe_has_none(recipe):
    config = recipe('--optim.lr=1e-5', '--model.kwargs={drop_rate: 0.1}')
    assert differences(saved(config), config) == []


def test_each_key_that_matters_is_named(recipe):
    was = saved(recipe('--optim.lr=0.1', '--model.kwargs={drop_rate: 0.1}'))
    asked = recipe('--optim.lr=0.2', '--ema.decay=0.9', '--model.kwargs={drop_rate: 0.2}')
    assert differences(was, asked) == [
        "model.kwargs {'drop_rate': 0.1} -> {'drop_rate': 0.2}",
        'optim.lr 0.1 -> 0.2',
        'ema.decay null -> 0.9',
    ]


def test_what_does_not_change_the_result_may_change(recipe):
    was = saved(recipe())
    asked = recipe('--output=elsewhere', '--data.workers=3', '--data.cache_dir=/cache', '--checkpoint.keep_last=5',
                   '--cpu_threads=1', '--compare_single=true', '--resume=false')
    assert differences(was, asked) == []
    assert fingerprint(asked) == fingerprint(recipe())


def test_what_to_do_with_a_bad_image_may_be_decided_when_one_is_found(recipe):
    """Found at the end of training, in the test data, its advice is to resume with another key."""
    asked = recipe('--data.on_bad_image=skip')
    assert differences(saved(recipe()), asked) == []
    assert fingerprint(asked) != fingerprint(recipe())


def test_a_key_that_was_added_since_had_its_default(recipe):
    was = saved(recipe())
    del was['ema'], was['optim']['clip_mode']
    assert differences(was, recipe()) == []
    assert differences(was, recipe('--ema.decay=0.9')) == ['ema.decay null -> 0.9']


def test_a_key_that_is_no_more_is_named(recipe):
    was = saved(recipe())
    was['optim']['nesterov'] = True
    assert differences(was, recipe()) == ['optim.nesterov True -> (no such key)']
