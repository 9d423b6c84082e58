"""The position of a relay: in any order of commits, every event is published once and every gap is closed."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.events.position import Gap, Position


def test_missing_number_is_a_gap_until_all_transactions_that_may_fill_it_ended() -> None:
    position = Position(0).after([1, 3], [1, 3], ended=10, is_all=True)
    assert position == Position(3, (Gap(2, 2),))
    position = position.bounded(20).after([4], [4], ended=19, is_all=True)
    assert position == Position(4, (Gap(2, 2, 20),))
    assert position.after([5], [5], ended=20, is_all=True) == Position(5)
    assert position.after([2, 5], [2, 5], ended=19, is_all=True) == Position(5)


def test_unacknowledged_number_stays_in_a_gap() -> None:
    position = Position(0).after([1, 2, 3, 4], [2], ended=10, is_all=True).bounded(11)
    assert position == Position(4, (Gap(1, 1, 11), Gap(3, 4, 11)))
    assert position.after([1, 3, 4], [3], ended=30, is_all=True) == Position(4, (Gap(1, 1, 11), Gap(4, 4, 11)))


def test_numbers_beyond_a_full_batch_are_not_taken_for_missing() -> None:
    position = Position(9, (Gap(2, 2, 5), Gap(5, 8, 5)))
    assert position.after([2], [2], ended=30, is_all=False) == Position(9, (Gap(5, 8, 5),))
    assert position.after([2], [2], ended=30, is_all=True) == Position(9)


class Writers:
    """A model of transactions on an outbox, with PostgreSQL's rules for ids, numbers and snapshots."""

    def __init__(self) -> None:
        self.next_id = 1
        self.next_number = 1
        self.under_way: dict[int, list[int]] = {}
        """The numbers that each open transaction has drawn, by its id."""
        self.visible: set[int] = set()

    def begin(self) -> int:
        """Begin a transaction and return its id."""
        self.next_id += 1
        self.under_way[self.next_id] = []
        return self.next_id

    def draw(self, transaction: int) -> None:
        """Insert an event."""
        self.under_way[transaction].append(self.next_number)
        self.next_number += 1

    def end(self, transaction: int, *, commits: bool) -> None:
        """Commit or roll back."""
        numbers = self.under_way.pop(transaction)
        if commits:
            self.visible.update(numbers)

    @property
    def ended(self) -> int:
        """The id below which all transactions have ended."""
        return min(self.under_way, default=self.next_id + 1)


def turn(position: Position, writers: Writers, published: list[int], most: int, heard: int) -> Position:
    """One turn of a relay that reads at most `most` events and receives the first `heard` acknowledgements."""
    there = sorted(
        number
        for number in writers.visible
        if number > position.through or any(gap.first <= number <= gap.last for gap in position.gaps)
    )
    seen, ended = there[:most], writers.ended
    done = seen[:heard]
    if not done:
        return position
    published += done
    position = position.after(seen, done, ended=ended, is_all=len(seen) < most)
    mover = writers.begin()
    writers.end(mover, commits=True)
    return position.bounded(mover)


@settings(max_examples=300)
@given(st.data())
def test_each_committed_event_is_published_once_and_each_gap_closes(data: st.DataObject) -> None:
    writers, position, published = Writers(), Position(0), list[int]()
    for _ in range(data.draw(st.integers(1, 60), label="steps")):
        match data.draw(st.sampled_from(["begin", "draw", "commit", "roll back", "look", "look", "restart"])):
            case "begin":
                writers.begin()
            case "look":
                most, heard = data.draw(st.integers(1, 8)), data.draw(st.integers(0, 8))
                position = turn(position, writers, published, most, heard)
            case "restart":
                # PostgreSQL stores no bounds and merges adjacent ranges.
                position = Position(position.through, tuple(gap._replace(bound=None) for gap in position.gaps))
            case step if writers.under_way:
                transaction = data.draw(st.sampled_from(sorted(writers.under_way)))
                if step == "draw":
                    writers.draw(transaction)
                else:
                    writers.end(transaction, commits=step == "commit")
    for transaction in list(writers.under_way):
        writers.end(transaction, commits=True)
    for _ in range(40):  # at most 60 events, at least two at a time, and more turns to close the gaps
        last = writers.begin()
        writers.draw(last)
        writers.end(last, commits=True)
        position = turn(position, writers, published, most=8, heard=8)
    assert sorted(published) == sorted(writers.visible), "all events, each once"
    assert position == Position(writers.next_number - 1)
