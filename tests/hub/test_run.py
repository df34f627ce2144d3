from __future__ import annotations

import json
import re

import pytest

from timm_collab.hub import FinishedRun, HubError


def test_a_finished_run_is_read(make_run) -> None:
    run = FinishedRun.read(make_run(labels=list('abcdefghij'), kept_head=2))
    assert (run.architecture, run.num_heads, run.kept_head, run.num_classes) == ('test_resnet', 4, 2, 10)
    assert run.model_args['in_chans'] == 1 and run.label_names == list('abcdefghij') and not run.needs_plugin
    assert run.head('best') == 2 and run.head('0') == 0 and run.head(3) == 3


def test_an_architecture_of_ours_needs_the_plugin(make_run) -> None:
    assert FinishedRun.read(make_run(arch='cifar_resnet20', in_chans=3)).needs_plugin


def edit(file, **changes) -> None:
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


@pytest.mark.parametrize(('damage', 'message'), [
    (lambda run: (run / 'summary.json').unlink(), 'has not finished: it has no summary.json'),
    (lambda run: [(run / name).unlink() for name in ('summary.json', 'config.yaml')], 'no run in .* no config.yaml'),
    (lambda run: (run / 'summary.json').write_text('{"network": '), r"summary.json' is damaged: .*"),
    (lambda run: (run / 'summary.json').write_text('[]'), r"summary.json' is damaged: it holds no mapping"),
    (lambda run: edit(run / 'summary.json', tree=..., noise=...), "summary.json' lacks tree, noise"),
    (lambda run: edit(run / 'summary.json', kept_head=4), '4 heads, head 4 kept'),
    (lambda run: edit(run / 'pruned' / 'config.json', architecture=...), 'lacks architecture'),
    (lambda run: (run / 'pruned' / 'config.json').unlink(), r"config.json' is missing: the run is damaged"),
    (lambda run: (run / 'pruned' / 'model.safetensors').unlink(), r"model.safetensors' is missing or damaged"),
    (lambda run: (run / 'pruned' / 'model.safetensors').write_bytes(
        (run / 'pruned' / 'model.safetensors').read_bytes()[:-100]), r"model.safetensors' is missing or damaged"),
    (lambda run: edit(run / 'pruned' / 'config.json', label_names=['a', 'b']), '2 names for 10 classes'),
    (lambda run: edit(run / 'pruned' / 'config.json', label_names=['a'] * 9 + ['']), 'a name is empty'),
])
def test_an_unfinished_or_damaged_run_is_one_clear_error(make_run, damage, message) -> None:
    path = make_run()
    damage(path)
    with pytest.raises(HubError) as error:
        FinishedRun.read(path)
    assert re.search(message, str(error.value)) and str(path) in str(error.value) and '\n' not in str(error.value)


def test_a_folder_that_is_not_there(tmp_path) -> None:
    with pytest.raises(HubError, match=r"no run in '.*nowhere': there is no such folder"):
        FinishedRun.read(tmp_path / 'nowhere')


@pytest.mark.parametrize('head', ['4', '-1', 'worst', 17])
def test_a_head_that_is_not_there(make_run, head) -> None:
    with pytest.raises(HubError, match=f'--head {head}: this tree has heads 0 to 3; write one of them, or best'):
        FinishedRun.read(make_run()).head(head)


def test_another_head_needs_the_tree(make_run) -> None:
    run = FinishedRun.read(make_run(with_tree=False))
    assert run.head('1') == 1
    with pytest.raises(HubError, match=r'--head 2: .* has no tree.safetensors, only the weights of head 1'):
        run.head('2')
