"""The queue whose places go round the clients."""

from __future__ import annotations

from customer_svc.fair_queue import FairQueue


def queue_of(most: int, *jobs: str) -> FairQueue[str]:
    """A queue with these jobs, each of the client that its first letter names."""
    queue = FairQueue[str](most)
    for job in jobs:
        assert queue.put(job[0], job) is None
    return queue


def test_clients_take_turns_and_the_jobs_of_each_keep_their_order() -> None:
    queue = queue_of(9, "a1", "a2", "a3", "b1", "c1", "b2")
    assert list(queue.drain()) == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert len(queue) == 0


def test_a_client_that_comes_again_waits_for_all_others() -> None:
    queue = queue_of(9, "a1", "b1", "b2")
    assert queue.take() == "a1"
    assert queue.put("a", "a2") is None
    assert list(queue.drain()) == ["b1", "a2", "b2"]


def test_in_a_full_queue_the_client_with_the_most_jobs_loses_its_newest() -> None:
    queue = queue_of(4, "a1", "a2", "a3", "b1")
    assert queue.put("c", "c1") == "a3"
    assert queue.put("b", "b2") == "b2", "a has no more than b would have"
    assert queue.put("a", "a4") == "a4"
    assert list(queue.drain()) == ["a1", "b1", "c1", "a2"]


def test_a_queue_without_places_refuses_every_job() -> None:
    queue = FairQueue[str](0)
    assert queue.put("a", "a1") == "a1"
    assert queue.take() is None


def test_a_removed_job_frees_its_place() -> None:
    queue = queue_of(2, "a1", "b1")
    queue.remove("b", "b1")
    queue.remove("b", "b1")
    queue.remove("a", "never there")
    assert len(queue) == 1
    assert queue.put("c", "c1") is None
    assert list(queue.drain()) == ["a1", "c1"]
