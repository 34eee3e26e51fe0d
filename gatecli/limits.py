"""How much a file may ask for: every ceiling of gatecli in one place.

The rule: a file of N bytes costs memory and time in proportion to N. What a file claims (sizes of
tensors, of images, of arrays, of a network) is compared with the bytes that are there, before
anything is allocated.

    PICKLE_BYTES, PICKLE_STEPS  data.pkl, or the pickles at the start of an older torch file
    KEY_PARTS                   a dict's key in a pickle: all values in it, those of its tuples too
    HEADER_BYTES                the JSON header of a safetensors file
    CONFIG_BYTES                a config.json beside a checkpoint
    SHARDS                      files that one checkpoint is in
    TENSORS                     tensors of one checkpoint
    DICTS, NESTED               dicts in a file that are looked into for tensors, and how deep;
                                parts of names that are looked at for prefixes
    CANDIDATES                  of these dicts, in how many a network is looked for
    GROUPS                      prefixes under which a network is looked for
    COMPARED                    names of tensors that are compared with networks' in that search
    copied(stored)              bytes of a checkpoint's tensors once read, for `stored` in the file
    PIXELS                      pixels of one image file
    INPUT_SIDE, INPUT_PIXELS    images that a checkpoint says its network takes
    unpacked(stored)            bytes of the arrays of an npz file, for `stored` bytes in it
    STEPS                       steps of a checkpoint's recipe
    network(tensors, numbers)   tensors and numbers of the network that a recipe builds

What a user types (--arch-arg, --input-size, a data set's function) is not held to them.
"""

from __future__ import annotations

__all__ = [
    "HEADER_BYTES",
    "INPUT_PIXELS",
    "INPUT_SIDE",
    "KEY_PARTS",
    "PICKLE_BYTES",
    "PICKLE_STEPS",
    "PIXELS",
    "STEPS",
    "TENSORS",
    "copied",
    "network",
    "unpacked",
]

MIB = 2**20

PICKLE_BYTES = 16 * MIB  # the largest real ones, with an optimizer's state, have 1 or 2
PICKLE_STEPS = 1_000_000  # instructions, and items that they copy; 1,000 tensors take 60,000
KEY_PARTS = 1000
HEADER_BYTES = 16 * MIB  # 10,000 tensors take 1
CONFIG_BYTES = 4 * MIB  # with the names of 21,000 classes it has 1
SHARDS = 1000
TENSORS = 10_000  # the largest networks of torchvision have 2,000
DICTS = 1000  # Lightning's, with callbacks and loops, have 30
NESTED = 8
CANDIDATES = 32
GROUPS = 64
COMPARED = 4_000_000  # a file of 500 tensors that is unknown takes 300,000

PIXELS = 48 * MIB  # a camera of 50 million pixels; PIL takes 4 bytes for each
INPUT_SIDE = 65_536
INPUT_PIXELS = 16 * MIB  # 4096 x 4096

STEPS = 1000


def copied(stored: int) -> int:
    """How many bytes tensors may have once read, for so many stored.

    Half precision becomes float32, and some are shared.
    """
    return 4 * stored + 16 * MIB


def unpacked(stored: int) -> int:
    """How many bytes arrays may have once unpacked, for so many stored.

    Photographs shrink to a half, drawings to a tenth.
    """
    return 32 * stored + 64 * MIB


def network(tensors: int, numbers: int, *, pruned: bool) -> tuple[int, int]:
    """How many tensors and numbers a network may have to which a file with so many belongs.

    It may have heads that evaluation never runs, and what was removed.

    Args:
        tensors: in the file.
        numbers: in these tensors.
        pruned: whether anything was removed.
    """
    if pruned:
        return 4 * tensors + 2000, 64 * numbers + 250_000_000
    return 2 * tensors + 200, 2 * numbers + 50_000_000
