"""The commands on a trained run, up to a head that another process loads and evaluates."""
from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from huggingface_hub import ModelCard

from tests.hub.conftest import ROOT, TOKEN, client_environment, python
from timm_collab.cli import build_parser
from timm_collab.hub import HubError
from timm_collab.train.config.parse import parse_config
from timm_collab.train.errors import TrainError
from timm_collab.train.run import train

MEASURE = """
import json, sys, io, timm, torch, pyarrow.parquet as parquet
from PIL import Image
torch.set_num_threads(1)
model = timm.create_model(f'hf-hub:{sys.argv[1]}', pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
rows = parquet.read_table(sys.argv[2]).to_pylist()
images = torch.stack([transform(Image.open(io.BytesIO(row['image']['bytes'])).convert('L')) for row in rows])
labels = torch.tensor([row['label'] for row in rows])
with torch.inference_mode():
    right = (model(images).argmax(dim=-1) == labels).sum().item()
assert 'timm_collab' not in sys.modules
print(json.dumps([100 * right / len(rows), len(rows)]))
"""


def timm_collab(line: str) -> int:
    """Run a command as `timm-collab` would."""
    args = build_parser().parse_args(shlex.split(line.removeprefix('timm-collab ')))
    return args.module.run(args)


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('trained') / 'run'
    train(parse_config([
        '--model.name=collab_test_resnet', '--model.heads=2', '--data.path=builtin:digits', '--data.img_size=16',
        '--data.in_chans=1', '--data.max_train_samples=512', '--augment.no_aug=true', '--optim.lr=0.02',
        '--epochs=2', '--batch_size=32', '--compare_single=true', '--noise.rate=0.2', '--plots=false',
        f'--output={path}']))
    AcceleratorState._reset_state(reset_partial_state=True)
    return path


@pytest.fixture
def unchecked(monkeypatch) -> list:
    """Replace the check in another process; its calls."""
    calls: list = []
    for module in ('check', 'export'):
        monkeypatch.setattr(f'timm_collab.hub.{module}.check_reload', lambda *args: calls.append(args))
    return calls


def test_trained_head_is_pushed_and_evaluated_in_another_process(hub, trained, tmp_path, capsys) -> None:
    assert timm_collab(f'push {trained} --repo ann/digits --license cc-by-4.0 --tag v1') == 0
    output = capsys.readouterr().out
    commit = hub.repos['ann/digits'].history()[0]
    assert output.splitlines()[-1] == f"timm.create_model('hf-hub:ann/digits@{commit}', pretrained=True)"
    assert hub.repos['ann/digits'].refs('tags') == {'v1': commit}

    digits = ROOT / 'timm_collab' / 'data' / 'digits' / 'test.parquet'
    done = python(MEASURE, f'ann/digits@{commit}', str(digits), cwd=tmp_path,
                  **client_environment(hub, tmp_path / 'other-home'))
    assert done.returncode == 0, done.stderr[-2000:]
    top1, images = json.loads(done.stdout)
    card = ModelCard(hub.content('ann/digits')['README.md'].decode())
    assert card.data.eval_results[0].metric_value == pytest.approx(top1, abs=1e-6) and f'{images:,} images' in card.text
    assert 'the network trained alone, same recipe' in card.text
    assert '19.9 % of the training labels were wrong' in card.text  # 102 of 512
    assert TOKEN not in output + done.stdout + done.stderr


def test_commands_in_the_readme_of_hub_work(hub, trained, tmp_path, monkeypatch, capsys, unchecked) -> None:
    (tmp_path / 'runs').mkdir()
    shutil.copytree(trained, tmp_path / 'runs' / 'my-run')
    shutil.copytree(ROOT / 'hub', tmp_path / 'hub', dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r'```bash\n(.*?)```', (ROOT / 'hub' / 'README.md').read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert [line.split()[1] for line in lines] == ['export', 'push', 'catalogue', 'push']
    for line in lines[:3]:
        assert timm_collab(line) == 0
    assert hub.repos == {} and 'dry run: this would be one commit' in capsys.readouterr().out
    assert 'test_resnet.my_tag' in (tmp_path / 'hub' / 'heads.yaml').read_text()
    hub.tokens[TOKEN] = type(hub.tokens[TOKEN])('user')
    assert timm_collab(lines[3]) == 0 and not hub.repos['user/my-head'].private
    assert len(unchecked) == 3
    with pytest.raises(HubError, match=r"has a head 'test_resnet.my_tag' already"):
        timm_collab(lines[2])
    size = sum(path.stat().st_size for path in (tmp_path / 'hub' / 'my-head').rglob('*'))
    assert size < 2e6


def test_dry_run_needs_no_token_and_makes_no_request(hub, trained, monkeypatch, capsys, unchecked) -> None:
    monkeypatch.delenv('HF_TOKEN')
    assert timm_collab(f'push {trained} --repo ann/digits --license mit --dry-run') == 0
    output = capsys.readouterr().out
    assert re.search(r'[\d,]+ bytes  model.safetensors', output) and 'in 5 files' in output and hub.requests == []
    with pytest.raises(HubError, match='no access token'):
        timm_collab(f'push {trained} --repo ann/digits --license mit')
    assert len(unchecked) == 1  # the token is checked before the export


@pytest.mark.parametrize(('line', 'message'), [
    ('push {run} --repo digits --license mit', "--repo 'digits': a repository is user/name"),
    ('push {run} --repo ann/digits', '--license is missing'),
    ('push {run}/nowhere --repo ann/digits', 'there is no such folder'),
    ('push {run} --repo ann/digits --license mit --head 7', "--head '7': write best, or a number from 0 to 1"),
    ('export {run} --license mit --tree --head 1 --labels {run}/summary.json', r'names for 10 classes'),
])
def test_bad_input_makes_no_request(hub, trained, line, message) -> None:
    with pytest.raises(TrainError, match=message):
        timm_collab(line.format(run=trained))
    assert hub.requests == [] and not (trained / 'export').exists()


def test_exported_folder_takes_no_export_options(hub, exported) -> None:
    with pytest.raises(HubError, match='is exported already, and takes no --license, --half'):
        timm_collab(f'push {exported} --repo ann/digits --license mit --half')


def test_large_head_is_not_shipped(exported, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr('timm_collab.hub.entry.MAX_SHIPPED', 1000)
    (tmp_path / 'heads.yaml').write_text('{}\n')
    with pytest.raises(HubError, match='is not shipped with the package; push it, and name its --repo'):
        timm_collab(f'catalogue {exported} --catalogue {tmp_path}/heads.yaml --tag big')
    (tmp_path / 'elsewhere').mkdir()
    moved = shutil.move(exported, tmp_path / 'elsewhere' / 'head')
    with pytest.raises(HubError, match='lies elsewhere than'):
        timm_collab(f'catalogue {moved} --catalogue {tmp_path}/heads.yaml --tag big')
    with pytest.raises(HubError, match='revision must be a full commit hash'):
        timm_collab(f'catalogue {moved} --catalogue {tmp_path}/heads.yaml --tag big --repo ann/digits --revision main')
    assert (tmp_path / 'heads.yaml').read_text() == '{}\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['elsewhere', 'heads.yaml']


def test_missing_catalogue_is_one_error(exported) -> None:
    missing = exported.parent / 'missing.yaml'
    with pytest.raises(HubError, match=r"catalogue '.*missing.yaml' can't be read"):
        timm_collab(f'catalogue {exported} --catalogue {missing} --tag x')
    assert not missing.exists()


def test_tag_of_timms_weights_is_rejected(exported) -> None:
    catalogue = exported.parent / 'heads.yaml'
    catalogue.write_text('{}\n')
    with pytest.raises(HubError, match=r'test_resnet\.r160_in1k: timm has weights of that name: choose another --tag'):
        timm_collab(f'catalogue {exported} --catalogue {catalogue} --tag r160_in1k')
    assert catalogue.read_text() == '{}\n'
