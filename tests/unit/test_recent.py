"""What a process has written last: taken once, and bounded."""

from mesh.db.recent import Recent


def test_what_is_taken_is_there_no_more() -> None:
    recent: Recent[str, int] = Recent()
    recent.put({"a": 1, "b": 2})
    assert recent.take(["a", "c"]) == {"a": 1}
    assert recent.take(["a", "b"]) == {"b": 2}


def test_the_oldest_go_when_there_are_too_many() -> None:
    recent: Recent[int, int] = Recent(most=3)
    for number in range(5):
        recent.put({number: number})
    assert len(recent) == 3
    assert recent.take(range(5)) == {2: 2, 3: 3, 4: 4}
    recent.put({number: number for number in range(5)})
    assert recent.take(range(5)) == {2: 2, 3: 3, 4: 4}


def test_what_is_put_anew_is_the_newest_value() -> None:
    recent: Recent[str, int] = Recent()
    recent.put({"a": 1})
    recent.put({"a": 2})
    assert recent.take("a") == {"a": 2}
