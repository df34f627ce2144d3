"""The card of a clone says which files are which split."""
from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from tests.train.data.files.toys import numbers, parquet, rows
from timm_collab.train.config import DataConfig
from timm_collab.train.data.files.readers import open_splits, open_streams
from timm_collab.train.errors import TrainError

CARD = """---
configs:
- config_name: small
  data_files:
  - split: train
    path: first.parquet
  - split: test
    path: second.parquet
- config_name: large
  data_files:
  - split: train
    path: '*.parquet'
---
"""


@pytest.mark.parametrize('declared', [True, False])
def test_a_card_names_classes_that_files_do_not_name(tmp_path: Path, declared: bool) -> None:
    root = tmp_path / 'clone'
    for split, of_split in (('train', (0, 1, 3)), ('test', (2, 5))):
        table = rows(*of_split, names=['odd', 'even'])
        if not declared:
            table = table.cast_column('label', datasets.Value('int64'))
        root.mkdir(exist_ok=True)
        table.to_parquet(str(root / f'{split}.parquet'))
    names = ['even', 'odd'] if declared else ['odd', 'even']  # what the files declare counts
    names_yaml = ''.join(f"\n          '{index}': {name}" for index, name in enumerate(names))
    (root / 'README.md').write_text(f"""---
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:{names_yaml}
configs:
- config_name: default
  data_files:
  - split: train
    path: train.parquet
  - split: test
    path: test.parquet
---
""")
    assert numbers(root) == {'train': [0, 1, 3], 'test': [2, 5]}
    assert open_splits(DataConfig(path=str(root))).splits['test'].features['label'].names == ['odd', 'even']


def test_the_card_of_a_clone_says_which_file_is_which_split(tmp_path: Path) -> None:
    root = parquet(parquet(tmp_path / 'clone', 'first.parquet', 0, 1), 'second.parquet', 2)
    (root / 'README.md').write_text(CARD)
    assert numbers(root, name='small') == {'train': [0, 1], 'test': [2]}
    assert numbers(root, name='large') == {'train': [0, 1, 2]}
    for name in (None, 'medium'):
        with pytest.raises(TrainError, match=r'several configurations: write --data.name with one of small, large'):
            numbers(root, name=name)
    streams = open_streams(DataConfig(path=str(root), name='small', streaming=True))
    assert [len(list(split)) for split in streams.splits.values()] == [2, 1]
    (root / 'README.md').write_text(CARD[:CARD.index('- config_name: large')] + '---\n')
    assert numbers(root) == {'train': [0, 1], 'test': [2]}
    # What changes is read again, and each file with its own names.
    parquet(root, 'second.parquet', 4, 5, names=['odd', 'even'])
    assert numbers(root) == {'train': [0, 1], 'test': [4, 5]}
    (root / 'README.md').write_text('---\nconfigs: [\n---\n')
    with pytest.raises(TrainError, match=r"the head of '.*README.md' can't be read"):
        numbers(root)


def test_the_card_of_a_clone_says_which_folder_is_which_configuration(tmp_path: Path) -> None:
    root = parquet(parquet(tmp_path / 'clone', 'a/train-0.parquet', 0, 1), 'a/test-0.parquet', 2)
    parquet(root, 'b/all.parquet', 3, 4)
    head = '---\nconfigs:\n- config_name: a\n  data_dir: a\n'
    (root / 'README.md').write_text(head + '---\n')
    assert numbers(root) == numbers(root, name='a') == {'train': [0, 1], 'test': [2]}
    (root / 'README.md').write_text(head + '- config_name: b\n  data_dir: b\n---\n')
    with pytest.raises(TrainError, match=r'several configurations: write --data.name with one of a, b'):
        numbers(root)
    assert numbers(root, name='a') == {'train': [0, 1], 'test': [2]}
    assert numbers(root, name='b') == {'train': [3, 4]}
    (root / 'README.md').write_text(head + '- config_name: b\n  data_dir: b\n  default: true\n---\n')
    assert numbers(root) == {'train': [3, 4]}
    (root / 'README.md').write_text(head.replace('data_dir: a', 'data_dir: c') + '---\n')
    with pytest.raises(TrainError, match=r"README.md': data_dir of configuration 'a' is no folder"):
        numbers(root)


def test_a_pattern_in_a_card_that_no_file_has(tmp_path: Path) -> None:
    root = parquet(tmp_path / 'clone', 'first.parquet', 0, 1)
    (root / 'README.md').write_text(CARD[:CARD.index('- config_name: large')] + '---\n')
    with pytest.raises(TrainError, match=r"configuration 'small' names 'second.parquet', and there is no such file"):
        numbers(root)
