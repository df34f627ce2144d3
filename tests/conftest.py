"""One thread a process: tests are small, and run side by side (`pytest -n auto`) they would fight over the cores."""
import os

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch is loaded, and for the processes that tests start

import torch

torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
