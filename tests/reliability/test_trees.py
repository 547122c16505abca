"""Trees of every kind, in a new process."""

from reliability import trees


def test_odd_trees_are_equal_in_a_new_process_or_refused_with_their_path():
    found = trees.odd(count=200, seed=0)
    assert not found["failures"], found
    assert (found["count"], found["refused"]) == (200, 20)
    assert found["leaves"] > 400
