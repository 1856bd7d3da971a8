"""The table of tolerances states the errors that are measured."""

import numpy as np
import pytest

from refinedet.backends.registry import find_backend
from refinedet.conformance.comparison import CheckedBackend, NotImplementedByBackendError
from refinedet.conformance.runner import run_check, select
from refinedet.conformance.tolerances import TOLERANCES

from .measuring import Float16, Float64
from .test_example import EXAMPLE

HIGHER = ("network", "training", "detections")


def measure(backend, levels):
    """The largest error by row of the table."""
    observed = {}
    for check in select(levels):
        checked = CheckedBackend(backend)
        try:
            run_check(check, checked)
        except NotImplementedByBackendError:
            continue
        for row, error in checked.observed.items():
            observed[row] = max(observed.get(row, 0.0), error)
    return observed


@pytest.fixture(scope="module")
def observed():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLE))
        operations = measure(find_backend("refinedet_numpy32:NumPyFloat32"), ["operations"])
    return operations | measure(Float64(), HIGHER) | measure(Float16(), ["training"])


def test_every_row_is_used_and_every_error_has_a_row(observed):
    assert set(observed) == set(TOLERANCES)


@pytest.mark.parametrize("row", TOLERANCES, ids=" ".join)
def test_the_measured_errors_are_those_of_the_table(observed, row):
    """Within a factor of three: the seed and NumPy's order of additions change them."""
    table = TOLERANCES[row]
    assert observed[row] <= 3 * table.observed + 1e-7
    assert table.observed <= 0.5 * max(table.atol, table.rtol)
    assert np.isfinite([table.atol, table.rtol]).all()
    assert table.reason
