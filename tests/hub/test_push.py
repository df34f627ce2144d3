from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from tests.hub.conftest import TOKEN
from tests.hub_server import User
from timm_collab.hub import HubError, PushOptions, push_folder
from timm_collab.hub import folder as folder_module

FILES = {'README.md', 'config.json', 'model.safetensors', 'recipe.yaml', 'summary.json'}
DIGITS = PushOptions(repo='ann/digits')


def change(exported, by: float = 1.0) -> None:
    """Replace the weights, as the export of another run would."""
    weights = exported / 'model.safetensors'
    tensors = load_file(weights)
    save_file({**tensors, 'fc.bias': tensors['fc.bias'] + by}, weights, {'format': 'pt'})
    summary = json.loads((exported / 'summary.json').read_text())
    summary['export']['sha256'] = folder_module.sha256_of(weights)
    (exported / 'summary.json').write_text(json.dumps(summary))


def test_push_is_one_commit_in_a_private_repository(hub, exported) -> None:
    pushed = push_folder(exported, DIGITS)
    repo = hub.repos['ann/digits']
    assert repo.private and len(repo.history()) == 2 and repo.history()[0] == pushed.commit and pushed.new
    content = hub.content('ann/digits')
    assert content.keys() - {'.gitattributes'} == FILES
    for name in FILES - {'README.md'}:
        assert content[name] == (exported / name).read_bytes(), name
    assert b"'hf-hub:ann/digits'" in content['README.md'] and b'user/name' not in content['README.md']
    assert hub.kinds().count('commit') == 1 and 'validate' in hub.kinds(200)


def test_unchanged_folder_makes_no_commit(hub, exported) -> None:
    first = push_folder(exported, DIGITS)
    hub.requests.clear()
    again = push_folder(exported, PushOptions(repo='ann/digits', tag='v1'))
    assert (again.new, again.commit) == (False, first.commit) and len(hub.repos['ann/digits'].history()) == 2
    assert not {'preupload', 'batch', 'upload', 'commit'} & set(hub.kinds())
    assert hub.repos['ann/digits'].refs('tags') == {'v1': first.commit}
    push_folder(exported, PushOptions(repo='ann/digits', tag='v1'))


def test_other_files_are_replaced_only_with_update(hub, exported) -> None:
    repo = hub.create('ann/digits')
    theirs = repo.commit({'pytorch_model.bin': b'\x80\x04', 'notes/a.txt': b'a'}, 'theirs', repo.resolve('main'))
    with pytest.raises(HubError, match=r'holds other files \(notes/a.txt, pytorch_model.bin\): write --update'):
        push_folder(exported, DIGITS)
    assert repo.history()[0] == theirs
    pushed = push_folder(exported, PushOptions(repo='ann/digits', update=True))
    # The same commit deletes stale files: timm would load an old pickle if the new weights have another name.
    assert hub.content('ann/digits').keys() - {'.gitattributes'} == FILES and repo.history()[1] == theirs
    change(exported)
    second = push_folder(exported, PushOptions(repo='ann/digits', update=True))
    assert repo.history()[:2] == [second.commit, pushed.commit]


def test_pull_request_leaves_the_branch_unchanged(hub, exported) -> None:
    hub.tokens[TOKEN] = User('bob')
    repo = hub.create('ann/digits', private=False)
    before = repo.history()
    pushed = push_folder(exported, PushOptions(repo='ann/digits', create_pr=True))
    assert repo.history() == before and pushed.url.endswith('/ann/digits/discussions/1')
    assert hub.content('ann/digits', 'refs/pr/1').keys() - {'.gitattributes'} == FILES


def test_push_to_another_branch(hub, exported) -> None:
    repo = hub.create('ann/digits')
    main = repo.history()
    with pytest.raises(HubError, match="has no branch 'dev': create it there first"):
        push_folder(exported, PushOptions(repo='ann/digits', revision='dev'))
    repo.git('update-ref', 'refs/heads/dev', main[0])
    pushed = push_folder(exported, PushOptions(repo='ann/digits', revision='dev', tag='v2'))
    assert repo.history() == main and repo.resolve('refs/heads/dev') == repo.resolve('v2') == pushed.commit


def test_tag_is_not_moved(hub, exported) -> None:
    push_folder(exported, PushOptions(repo='ann/digits', tag='v1'))
    change(exported)
    before = hub.repos['ann/digits'].history()
    with pytest.raises(HubError, match="has a tag 'v1' already"):
        push_folder(exported, PushOptions(repo='ann/digits', update=True, tag='v1'))
    assert hub.repos['ann/digits'].history() == before


@pytest.mark.parametrize(('private', 'public', 'message'), [
    (False, False, "'ann/digits' is public: write --public"),
    (True, True, "'ann/digits' is private: make it public in its settings"),
])
def test_visibility_must_match_the_option(hub, exported, private, public, message) -> None:
    repo = hub.create('ann/digits', private=private)
    with pytest.raises(HubError, match=message):
        push_folder(exported, PushOptions(repo='ann/digits', public=public))
    assert len(repo.history()) == 1


def test_new_repository_is_public_with_the_option(hub, exported) -> None:
    push_folder(exported, PushOptions(repo='ann/digits', public=True))
    assert not hub.repos['ann/digits'].private


@pytest.mark.parametrize('repo', ['digits', 'ann/', '/digits', 'ann/dig its', 'ann/digits/x', 'ann/a--b', 'ann/x.git'])
def test_malformed_repository_name(hub, repo) -> None:
    with pytest.raises(HubError, match=f"--repo '{repo}': a repository is user/name"):
        PushOptions(repo=repo)


@pytest.mark.parametrize(('options', 'message'), [
    ({'create_pr': True, 'tag': 'v1'}, '--tag names a commit, and --create-pr only proposes one'),
    ({'create_pr': True, 'revision': 'dev'}, "--revision 'dev': a pull request is made against the main branch"),
])
def test_contradictory_options(options, message) -> None:
    with pytest.raises(HubError, match=message):
        PushOptions(repo='ann/digits', **options)


def spoil_pickle(folder) -> None:
    (folder / 'pytorch_model.bin').write_bytes(b'\x80\x04K\x01.')


def spoil_disguised(folder) -> None:
    (folder / 'config.json').write_bytes(b'\x80\x04K\x01.')


def spoil_stray(folder) -> None:
    (folder / 'notes.txt').write_text('private')


def spoil_link(folder) -> None:
    shutil.move(folder / 'recipe.yaml', folder.parent / 'recipe.yaml')
    (folder / 'recipe.yaml').symlink_to(folder.parent / 'recipe.yaml')


def spoil_weights(folder) -> None:
    content = bytearray((folder / 'model.safetensors').read_bytes())
    content[-1] ^= 1
    (folder / 'model.safetensors').write_bytes(content)


def spoil_cut(folder) -> None:
    (folder / 'model.safetensors').write_bytes((folder / 'model.safetensors').read_bytes()[:-10])


def spoil_token(folder) -> None:
    (folder / 'recipe.yaml').write_text(f'token: {TOKEN}\n')


def spoil_labels(folder) -> None:
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, 'label_names': ['a']}))


def spoil_license(folder) -> None:
    card = (folder / 'README.md').read_text()
    (folder / 'README.md').write_text(card.replace('license: cc-by-4.0\n', ''))


def spoil_size(folder) -> None:
    (folder / 'recipe.yaml').write_text('# ' + 'x' * folder_module.MAX_TEXT)


@pytest.mark.parametrize(('spoil', 'message'), [
    (spoil_pickle, r"pytorch_model.bin' can hold pickled code, which runs when it is loaded: only safetensors"),
    (spoil_disguised, r"config.json' is damaged"),
    (spoil_stray, r"notes.txt' is no file of an exported head"),
    (spoil_link, r"recipe.yaml' is a link"),
    (spoil_weights, r"model.safetensors' is not the file that was checked"),
    (spoil_cut, r"model.safetensors' is missing or damaged"),
    (spoil_token, r"recipe.yaml' holds an access token"),
    (spoil_labels, '1 names for 10 classes'),
    (spoil_license, '--license is missing'),
    (spoil_size, r"recipe.yaml' has 10,000,00. bytes, more than the 10,000,000"),
])
def test_invalid_folder_makes_no_request(hub, exported, spoil, message) -> None:
    spoil(exported)
    with pytest.raises(HubError, match=message) as error:
        push_folder(exported, DIGITS)
    assert TOKEN not in str(error.value) and hub.requests == [] and hub.repos == {}


def test_weights_above_the_limit(hub, exported, monkeypatch) -> None:
    monkeypatch.setattr(folder_module, 'MAX_WEIGHTS', 1000)
    with pytest.raises(HubError, match=r"model.safetensors' has [\d,]+ bytes, more than the 1,000"):
        push_folder(exported, DIGITS)
    assert hub.requests == []


def test_without_a_token(hub, exported, monkeypatch) -> None:
    monkeypatch.delenv('HF_TOKEN')
    with pytest.raises(HubError, match='no access token: log in with hf auth login, or set HF_TOKEN'):
        push_folder(exported, DIGITS)
    assert hub.requests == []


def test_read_only_token(hub, exported) -> None:
    hub.tokens[TOKEN] = User('ann', role='read')
    with pytest.raises(HubError, match='the access token may only read: create one that may write'):
        push_folder(exported, DIGITS)
    assert hub.repos == {} and hub.kinds()[-1] == 'whoami'


def test_repository_of_another_user(hub, exported) -> None:
    with pytest.raises(HubError, match="the access token may not write to 'bob/digits'"):
        push_folder(exported, PushOptions(repo='bob/digits'))
    assert hub.repos == {}
