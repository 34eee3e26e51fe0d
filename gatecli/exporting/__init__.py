"""Networks in files for machines without gatecli.

Importing the package registers the formats, without torch.

The package is not called `export`, as `gatecli.export` is the function: Python binds a package's
name in its parent when it is first imported, which would hide the function from then on.
"""

from gatecli.exporting.formats import DEFAULT
from gatecli.exporting.opening import opener
from gatecli.exporting.registry import Format, Logits, Task, get, register, registered, titles

__all__ = [
    "DEFAULT",
    "Format",
    "Logits",
    "Task",
    "get",
    "opener",
    "register",
    "registered",
    "titles",
]
