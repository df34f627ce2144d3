"""Two processes that share each batch train as one does."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.fork_server import CPU, Launch

pytestmark = pytest.mark.multiprocess
RECIPE = [
    # no batch statistics: those are of each process's part
    '--model.name=collab_test_vit', '--model.tree=blocks.1:[blocks.3:2 | head]', '--model.kwargs={img_size: 32}',
    '--data.path=builtin:digits', '--data.in_chans=1', '--data.img_size=32', '--data.max_train_samples=256',
    '--data.test_split=null', '--augment.crop=pad', '--noise.rate=0.2', '--epochs=2', '--batch_size=64',
    '--optim.name=adamw', '--optim.lr=1e-3', '--optim.clip_grad=1.0', '--ema.decay=0.9', '--grad_accum_steps=2',
    '--optim.freeze_trunk_epochs=1', '--cpu_threads=1', '--plots=false',
]


def environment(folder: Path) -> dict[str, str]:
    """Variables of processes that a real launcher starts."""
    return {**os.environ, **CPU, 'HF_DATASETS_CACHE': str(folder / 'cache')}


def start(folder: Path, processes: int, *argv: str) -> Launch:
    """Start ranks without a launcher."""
    return Launch(['-m', 'timm_collab.train', *RECIPE, f'--output={folder / str(processes)}', *argv], folder, processes)


@pytest.fixture(scope='module')
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of one process, and the same run by `accelerate launch` with two."""
    folder = tmp_path_factory.mktemp('processes')
    start(folder, 1).finish()
    done = subprocess.run(
        [sys.executable, '-m', 'accelerate.commands.launch', '--num_processes=2', '--num_machines=1',
         '--mixed_precision=no', '--dynamo_backend=no', '--main_process_port=0', '--multi_gpu',
         '-m', 'timm_collab.train', *RECIPE, f'--output={folder / "2"}'],
        capture_output=True, text=True, env=environment(folder), cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / '1', folder / '2'


def test_both_ranks_took_part(runs: tuple[Path, Path]) -> None:
    summaries = [json.loads((folder / 'summary.json').read_text()) for folder in runs]
    assert [summary['num_processes'] for summary in summaries] == [1, 2]
    assert summaries[0]['noise'] == summaries[1]['noise']
    for summary in summaries:  # every example once, over both ranks
        val = summary['val']
        assert sum(map(sum, val['confusion_kept'])) == val['count'] == summary['data']['val']
        right = [100 * row[label] / sum(row) if sum(row) else None for label, row in enumerate(val['confusion_kept'])]
        assert right == val['recall_kept']
    assert (runs[0] / 'train_labels.csv').read_text() == (runs[1] / 'train_labels.csv').read_text()


def test_the_curves_and_the_weights_are_those_of_one_process(runs: tuple[Path, Path]) -> None:
    one, two = (
        [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()] for folder in runs
    )
    assert [row['epoch'] for row in one] == [row['epoch'] for row in two] == [0, 1]
    for a, b in zip(one, two, strict=True):
        assert a['train_loss'] == pytest.approx(b['train_loss'], rel=1e-4)
        assert a['train_hard_heads'] == pytest.approx(b['train_hard_heads'], rel=1e-3)
        assert a['val']['loss_heads'] == pytest.approx(b['val']['loss_heads'], rel=1e-3)
        assert a['val']['count'] == b['val']['count']
    kept = [json.loads((folder / 'summary.json').read_text())['kept_head'] for folder in runs]
    assert kept[0] == kept[1]
    weights = [load_file(folder / 'pruned' / 'model.safetensors') for folder in runs]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-2, atol=2e-3)


FLOAT64 = """
import json
import sys
import torch
from safetensors.torch import save_file
from tests.train.toys import make_data, make_model, make_trainer
from timm_collab.train.config.parse import parse_config
from timm_collab.train.prepare import make_accelerator

saved = {}
for number, keys in enumerate(map(json.loads, sys.argv[2:])):
    config = parse_config([
        '--model.name=collab_test_vit', '--data.path=-', '--epochs=2', '--batch_size=16', '--optim.lr=0.01',
        '--optim.clip_grad=1.0', '--ema.decay=0.8', '--deterministic=true', *keys])
    images, target = make_data(32)
    model = make_model(config.model.num_heads, 'collab_test_vit', img_size=32).double()
    accelerator = make_accelerator(config)
    weights = torch.linspace(0.2, 1.8, 10) if config.data.class_weights else None
    trainer = make_trainer(
        config, model, data=(images.double(), target), accelerator=accelerator, class_weights=weights)
    rows = trainer.fit()
    trainer.finish()
    losses = torch.tensor([
        [row['train_loss'], row.get('changed_predictions') or 0, *row['val']['loss_heads']] for row in rows],
        dtype=torch.float64)
    saved |= {f'{number}.{name}': tensor for name, tensor in trainer.release().state_dict().items()}
    saved[f'{number}.losses'] = losses
if accelerator.is_main_process:
    save_file(saved, sys.argv[1])
"""


@pytest.mark.parametrize('keys', [
    [], ['--data.class_weights={"0": 2}', '--grad_accum_steps=2'], ['--data.sampling=balanced'],
    ['--objective.hard=elr', '--objective.targets=others', '--grad_accum_steps=2'],
    ['--stop.on=predictions', '--stop.patience=1', '--grad_accum_steps=2'],
], ids=['plain', 'class weights', 'balanced', 'image targets', 'changed predictions'])
def test_in_float64_two_halves_of_a_batch_are_the_batch(tmp_path: Path, keys: list[str]) -> None:
    _assert_same_training(tmp_path, [keys], [keys])


def test_in_float64_every_loss_for_wrong_labels_is_the_same_on_two_processes(tmp_path: Path) -> None:
    small_loss = ['--objective.hard=small_loss', '--objective.noise_rate=0.4', '--objective.noise_rate_epochs=1']
    of_examples = [
        ['--objective.hard=gce'], ['--objective.hard=sce'], ['--objective.hard=nce_rce'],
        ['--objective.hard=selc', '--objective.selc_epoch=1'],
        # No pair is mixed: what a process mixes is its own part of the batch.
        ['--objective.hard=elr', '--objective.targets=mean', '--augment.mixup=1', '--augment.mixup_prob=0'],
    ]
    of_parts = [small_loss, [*small_loss, '--objective.select=joint', '--objective.balance=1']]
    in_turn = [[*keys, '--grad_accum_steps=2'] for keys in of_parts]
    alone, shared = ([[*keys, '--model.heads=2'] for keys in of_examples + more] for more in (in_turn, of_parts))
    _assert_same_training(tmp_path, alone, shared)


def _assert_same_training(folder: Path, alone: list[list[str]], shared: list[list[str]]) -> None:
    """Train with some keys on one process and with others on two, and compare weights and losses."""
    (folder / 'train.py').write_text(FLOAT64)
    for processes, settings in ((1, alone), (2, shared)):
        Launch(['train.py', f'{processes}.safetensors', *map(json.dumps, settings)], folder, processes).finish()
    one, two = (load_file(folder / f'{processes}.safetensors') for processes in (1, 2))
    for name, tensor in one.items():
        rtol = 1e-6 if name.endswith('losses') else 1e-10  # losses are logged in float32
        torch.testing.assert_close(two[name], tensor, rtol=rtol, atol=1e-12)
    assert max((two[name] - tensor).abs().max() for name, tensor in one.items() if tensor.numel()) > 0  # two did it


THREADS = """
import sys
from pathlib import Path
from timm_collab.train.__main__ import main

status = main(sys.argv[1:])
names = [file.read_text().strip() for file in Path('/proc/self/task').glob('*/comm')]
print('threads', *(name for name in names if 'gloo' in name))
sys.exit(status)
"""


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='threads are counted where Linux shows them')
@pytest.mark.parametrize('teacher', [False, True])  # the task of a teacher is a cycle that holds the wrapped model
def test_no_thread_of_gloo_outlives_a_run(runs: tuple[Path, Path], tmp_path: Path, teacher: bool) -> None:
    """A thread that frees a tensor when the interpreter is gone aborts a process that has saved everything."""
    (tmp_path / 'train.py').write_text(THREADS)
    more = [f'--teacher.path={runs[0]}', '--model.tree=null', '--model.heads=1', '--optim.freeze_trunk_epochs=0']
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', 'train.py', *RECIPE,
         *(more if teacher else []), '--epochs=1', '--output=run'],
        capture_output=True, text=True, env=environment(tmp_path), cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line for line in done.stdout.splitlines() if line.startswith('threads')] == ['threads'] * 2


@pytest.mark.parametrize(('argv', 'message'), [
    (['--optim.learning_rate=1'], 'learning_rate'),
    (['--batch_size=60', '--grad_accum_steps=4'], 'must be a multiple of their number, 2 times grad_accum_steps, 4'),
    (['--data.train_split=none'], "'none'"),
])
def test_what_every_process_finds_one_of_them_says(tmp_path: Path, argv: list[str], message: str) -> None:
    errors = start(tmp_path, 2, *argv).fail()
    assert not (tmp_path / '2').exists()
    [line] = [line for line in errors.splitlines() if line.startswith('error: ')]
    assert message in line


GATE = """
import os
import torch
from tests.train.toys import make_data, make_model, make_trainer
from timm_collab.train.config.parse import parse_config
from timm_collab.train.prepare import make_accelerator

config = parse_config([
    '--model.name=collab_test_vit', '--data.path=builtin:digits', '--epochs=2', '--batch_size=16',
    '--objective.kind=gated', '--grad_accum_steps=2', '--augment.no_aug=true'])
model = make_model(2, 'collab_test_vit', img_size=32)
trainer = make_trainer(config, model, data=make_data(32), accelerator=make_accelerator(config))
trainer.fit()
torch.save([trainer.state.task.criterion.state_dict(), model.state_dict()], f'{os.environ["RANK"]}.pt')
torch.distributed.destroy_process_group()
"""


def test_the_gate_of_an_ensemble_is_one_for_all_ranks(tmp_path: Path) -> None:
    Launch(['-c', GATE], tmp_path, 2).finish()
    for first, second in zip(*(torch.load(tmp_path / f'{rank}.pt') for rank in range(2)), strict=True):
        for name, tensor in first.items():
            assert tensor.any() and torch.equal(tensor, second[name]), name


def test_an_error_of_the_main_process_ends_all(tmp_path: Path) -> None:
    code = """
from accelerate import Accelerator
from timm_collab.train import TrainError
from timm_collab.train.distributed.processes import leave_process_group, run_on_main

accelerator = Accelerator()
try:
    run_on_main(accelerator, lambda: 1 / 0)
except Exception as error:
    print(type(error).__name__, error, sep=': ')
leave_process_group()
"""
    launch = Launch(['-c', code], tmp_path, 2)
    launch.finish()
    assert [rank.output().strip() for rank in launch.ranks] == [
        'ZeroDivisionError: division by zero',
        'TrainError: the main process failed: ZeroDivisionError: division by zero',
    ]


def assert_one_and_two_agree(folder: Path, *argv: str) -> list[Path]:
    """Run a recipe in one process and in two, and compare their curves; returns the two folders."""
    for processes in (1, 2):
        start(folder, processes, *argv).finish()
    folders = [folder / name for name in '12']
    one, two = (
        [json.loads(line) for line in (each / 'metrics.jsonl').read_text().splitlines()] for each in folders
    )
    for a, b in zip(one, two, strict=True):
        assert a['train_loss'] == pytest.approx(b['train_loss'], rel=1e-4)
        assert a['val']['loss_heads'] == pytest.approx(b['val']['loss_heads'], rel=1e-3)
        assert a['val']['count'] == b['val']['count']
    return folders


def test_a_stream_is_shared_as_one_process_reads_it(tmp_path: Path, digit_shards: Path) -> None:
    folders = assert_one_and_two_agree(
        tmp_path, f'--data.path={digit_shards}', '--data.streaming=true', '--data.num_train_samples=128',
        '--data.max_train_samples=null', '--data.shuffle_buffer=64', '--noise.rate=0', '--batch_size=32',
        '--data.workers=1')
    one, two = (load_file(folder / 'pruned' / 'model.safetensors') for folder in folders)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-2, atol=2e-3)


def test_a_teacher_is_heard_by_both(runs: tuple[Path, Path], tmp_path: Path) -> None:
    folders = assert_one_and_two_agree(
        tmp_path, f'--teacher.path={runs[0]}', '--model.tree=null', '--model.heads=1',
        '--optim.freeze_trunk_epochs=0')
    one, two = (json.loads((folder / 'summary.json').read_text())['teacher']['sha256'] for folder in folders)
    assert one == two
