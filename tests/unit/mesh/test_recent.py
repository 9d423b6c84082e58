"""The cache of recent values: values can be taken once, and their weight is bounded."""

from mesh.db.recent import Recent


def test_taken_value_is_removed() -> None:
    recent: Recent[str, int] = Recent()
    recent.put({"a": 1, "b": 2})
    assert recent.take(["a", "c"]) == {"a": 1}
    assert recent.take(["a", "b"]) == {"b": 2}


def test_oldest_values_are_dropped_when_there_are_too_many() -> None:
    recent: Recent[int, int] = Recent(most=3)
    for number in range(5):
        recent.put({number: number})
    assert len(recent) == 3
    assert recent.take(range(5)) == {2: 2, 3: 3, 4: 4}
    recent.put({number: number for number in range(5)})
    assert recent.take(range(5)) == {2: 2, 3: 3, 4: 4}


def test_value_that_is_put_again_is_the_newest() -> None:
    recent: Recent[str, int] = Recent()
    recent.put({"a": 1})
    recent.put({"a": 2})
    assert recent.take("a") == {"a": 2}


def test_recent_values_are_dropped_by_their_weight() -> None:
    recent: Recent[str, str] = Recent(most=10, weight=len)
    recent.put({"a": "1" * 4, "b": "2" * 4})
    recent.put({"a": "3" * 6})
    assert len(recent) == 2
    recent.put({"c": "4"})
    assert recent.take("abc") == {"b": "2" * 4, "c": "4"}, "the oldest is dropped"
    recent.put({"d": "5" * 10})
    recent.put({"e": "6" * 11})
    assert len(recent) == 0, "a value that is too heavy is not kept"
