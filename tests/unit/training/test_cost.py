"""Costs: phases of time against a clock that is moved by hand."""

import pytest

from utils.training import cost as cost_module
from utils.training.cost import Cost


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until ``clock[0]`` is set."""
    now = [100.0]
    monkeypatch.setattr(cost_module.time, "perf_counter", lambda: now[0])
    return now


def test_an_inner_phase_is_not_counted_for_the_outer_one(clock):
    cost = Cost()
    with cost.phase("updating"):
        clock[0] += 1
        with cost.phase("scoring"):
            clock[0] += 10
            with cost.phase("sampling"):
                clock[0] += 100
            clock[0] += 1000
        clock[0] += 10_000
    clock[0] += 100_000  # no phase
    with cost.phase("sampling"):
        clock[0] += 0.5
    assert cost.seconds == {"sampling": 100.5, "scoring": 1010, "updating": 10_001}


def test_a_phase_ends_where_its_block_fails(clock):
    cost = Cost()
    with pytest.raises(KeyError), cost.phase("scoring"):
        clock[0] += 2
        raise KeyError
    clock[0] += 5
    assert cost.seconds["scoring"] == 2


def test_a_resumed_cost_goes_on(clock):
    cost, resumed = Cost(), Cost()
    cost.sampled(8, 90)
    cost.trained(70)
    with cost.phase("sampling"):
        clock[0] += 3
    resumed.load_state_dict(cost.state_dict())
    resumed.sampled(8, 10)
    with resumed.phase("sampling"):
        clock[0] += 4
    assert resumed.counts() == {"sampled_completions": 16, "generated_tokens": 100, "trained_tokens": 70}
    assert resumed.seconds["sampling"] == 7 and cost.seconds["sampling"] == 3
