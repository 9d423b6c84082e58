"""A queue whose places go round the clients, so that many jobs of one client do not keep out those of another."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

Job = TypeVar("Job")


class FairQueue(Generic[Job]):
    """Waiting jobs of several clients, at most `most` of them.

    Each client has one turn in a round, whatever number of jobs it has. When the queue is full, a new job takes the
    place of the newest one of the client with the most jobs, unless its own client has as many.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._jobs: OrderedDict[str, deque[Job]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, client: str, job: Job) -> Job | None:
        """Add a job. Returns the job that has no place: the new one, the one that it has displaced, or none."""
        displaced = None
        if self._length >= self._most:
            crowded = max(self._jobs, key=lambda each: len(self._jobs[each]), default=client)
            if self._waiting(crowded) <= self._waiting(client) + 1:
                return job
            displaced = self._jobs[crowded].pop()
            self._length -= 1
        self._jobs.setdefault(client, deque()).append(job)
        self._length += 1
        return displaced

    def take(self) -> Job | None:
        """Remove the oldest job of the client whose turn it is, and return it; none when the queue is empty."""
        if not self._jobs:
            return None
        client, jobs = self._jobs.popitem(last=False)
        job = jobs.popleft()
        self._length -= 1
        if jobs:
            self._jobs[client] = jobs
        return job

    def remove(self, client: str, job: Job) -> None:
        """Remove a job that may have left the queue already."""
        jobs = self._jobs.get(client)
        if jobs is None or job not in jobs:
            return
        jobs.remove(job)
        self._length -= 1
        if not jobs:
            del self._jobs[client]

    def drain(self) -> Iterator[Job]:
        """Remove all jobs."""
        while (job := self.take()) is not None:
            yield job

    def _waiting(self, client: str) -> int:
        return len(self._jobs.get(client, ()))
