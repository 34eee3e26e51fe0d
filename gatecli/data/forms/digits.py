"""digits: scikit-learn's 1,797 handwritten digits, 8x8."""

from __future__ import annotations

from gatecli.data.forms.base import SPLITS, Form, Found, Request, register
from gatecli.errors import DataError

__all__ = ["read"]


def read(request: Request) -> Found:
    """65 % train, 15 % val, 20 % test, always the same.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "the digits come with scikit-learn, which is not installed: pip install 'gatecli[demo]'"
        ) from error
    import numpy as np

    from gatecli.data.arrays import array_split
    from gatecli.data.splits import cut

    values, labels = load_digits(return_X_y=True)
    images = np.rint(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    everything = array_split(request.spec, "train", images, labels)
    fit, test = cut(everything.labels, 0.2, 0)
    train, val = cut(everything.labels[fit], 0.15 / 0.8, 0)
    parts = zip(SPLITS, (fit[train], fit[val], test), strict=True)
    return Found(splits={name: everything.take(rows) for name, rows in parts})


register(Form(kind="digits", read=read))
