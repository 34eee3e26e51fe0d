"""finetune: train a gated network.

The loop, its resumable state, and what happens before and after it.
"""

from gatecli.training.finetune import Finetuned, finetune
from gatecli.training.options import TrainOptions
from gatecli.training.run import Run

__all__ = ["Finetuned", "Run", "TrainOptions", "finetune"]
