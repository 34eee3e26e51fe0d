"""Data sets for training, choosing and reporting.

Three splits, read in batches that depend on seeds alone.
"""

from gatecli.data.augment import AUGMENTS
from gatecli.data.spec import DataSet, check_classes, load_data
from gatecli.data.splits import Split, batches, steps

__all__ = ["AUGMENTS", "DataSet", "Split", "batches", "check_classes", "load_data", "steps"]
