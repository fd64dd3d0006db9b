"""Equal but for rounding: how far apart two results may be follows their size."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def assert_near(found: ArrayLike, expected: ArrayLike, share: float = 1e-5) -> None:
    """No value is further from the expected one than `share` of the largest size expected; NaN equals NaN.

    The default is about a hundred float32 roundings: processors and numbers of threads add up in other orders.
    """
    found, expected = np.asarray(found), np.asarray(expected)
    size = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    np.testing.assert_allclose(found, expected, atol=share * size, rtol=0)
