"""A dead network told from a dead provider."""

from aigateway.resilience.local_faults import Reachability
from aigateway.testing import FakeClock


class TestReachability:
    def test_one_alone_is_its_own_fault(self):
        network = Reachability(FakeClock())
        assert not network.unreachable("a")
        assert not network.unreachable("a")

    def test_two_and_nobody_up_is_the_networks(self):
        network = Reachability(FakeClock())
        network.unreachable("a")
        assert network.unreachable("b")
        assert network.down == {"a", "b"}
        network.reached("b")
        assert not network.network_is_down
        assert not network.unreachable("a")

    def test_one_that_answered_before_counts_until_it_fails_too(self):
        network = Reachability(FakeClock())
        for name in "abc":
            network.reached(name)
        assert [network.unreachable(name) for name in "abc"] == [False, False, True]

    def test_an_answer_of_long_ago_proves_nothing(self):
        clock = FakeClock()
        network = Reachability(clock)
        network.reached("idle")
        network.unreachable("a")
        assert not network.unreachable("b")
        clock.tick(61)
        assert network.unreachable("b")

    def test_a_removed_one_does_not_count(self):
        network = Reachability(FakeClock())
        network.reached("gone")
        network.unreachable("a")
        network.forget("gone")
        assert network.unreachable("b")
