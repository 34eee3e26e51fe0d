"""One thread: the tests' networks are so small that a second one costs more than it gives, and sums stay the same on every machine."""
from __future__ import annotations

import torch

torch.set_num_threads(1)
