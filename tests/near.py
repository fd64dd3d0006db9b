"""Equal but for rounding: how far apart two results may be follows their size."""

from __future__ import annotations

from typing import Any

import numpy as np


def assert_near(found: Any, expected: Any, share: float = 1e-5) -> None:
    """No value (tensor or array) is further from the expected one than `share` of the largest expected, or of 1.

    Processors and numbers of threads add up in other orders: 1e-5 is about a hundred roundings of float32. Of 1: what
    is smaller was added up from values of that size. NaN equals NaN.
    """
    found, expected = (np.asarray(x.detach() if hasattr(x, "detach") else x) for x in (found, expected))
    assert found.shape == expected.shape
    size = np.abs(expected[np.isfinite(expected)]).max(initial=1.0)
    np.testing.assert_allclose(found, expected, atol=share * size, rtol=0)
