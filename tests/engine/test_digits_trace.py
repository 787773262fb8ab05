"""Mixed step counts on the digits network: the slots stay full, and a chain is what it is alone."""

from __future__ import annotations

import pytest
import torch
from bench.end_to_end import trace

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")


@pytest.mark.long
def test_a_mixed_trace_keeps_its_slots_busy_and_its_bits():
    """Ticks are calls of one network on one batch shape, so their ratio is the work's; the clock is the benchmark's."""
    told = trace(chains=64, slots=8, device=torch.device("cpu"), alone=8, shorten=10)
    assert told["occupancy_until_queue_empty"] >= 0.95
    assert told["ticks"] <= 0.5 * told["static_ticks"]
    assert told["chains_that_differ_from_a_run_alone"] == 0
