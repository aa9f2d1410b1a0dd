"""Random lives of a run's folder: a few here, as many as one likes by ``tests.experiments.hunt``."""

import pytest

from tests.experiments.hunt import follow


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed", [*range(2), 5121, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 40))]
)
def test_numbers_are_exact_or_refused_and_foreign_files_stay(seed):
    outcomes = follow(seed)
    assert outcomes[0] == ("trained", "done"), "nothing is wrong yet"
