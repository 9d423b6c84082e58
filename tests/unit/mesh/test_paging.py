"""Page tokens: a token leads to the next page and cannot be forged or altered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.db.paging import Pages
from mesh.errors import InvalidArgument

PAGES = Pages(b"a secret of the tests")
POSITIONS = st.lists(st.text(max_size=30), min_size=1, max_size=3)


def refused(scope: str, token: str, pages: Pages = PAGES) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        pages.position(scope, token)
    assert refusal.value.reason == "PAGE_TOKEN_INVALID"
    assert [violation.field for violation in refusal.value.violations] == ["page_token"]


@given(scope=st.text(max_size=30), position=POSITIONS)
def test_page_token_contains_its_position(scope: str, position: list[str]) -> None:
    assert PAGES.position(scope, PAGES.token(scope, position)) == position
    assert Pages(b"a secret of the tests").position(scope, PAGES.token(scope, position)) == position, "in each process"


@given(position=POSITIONS, at=st.integers(min_value=0), bit=st.integers(0, 5))
def test_changed_page_token_is_refused(position: list[str], at: int, bit: int) -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    token = PAGES.token("list", position)
    at %= len(token)
    changed = alphabet[alphabet.index(token[at]) ^ (1 << bit)]
    refused("list", token[:at] + changed + token[at + 1 :])


@pytest.mark.parametrize("token", ["x", "!", "ü", "AAAA", "=", "A" * 1024, "\0", " "], ids=repr)
def test_text_that_is_no_page_token_is_refused(token: str) -> None:
    refused("list", token)


@pytest.mark.parametrize("junk", ["!", " ", "\n", "=", ".", "A"], ids=repr)
def test_extended_page_token_is_refused(junk: str) -> None:
    token = PAGES.token("list", ["here"])
    refused("list", token + junk)
    refused("list", token[:7] + junk + token[7:])


def test_page_token_of_another_list_or_service_is_refused() -> None:
    token = PAGES.token("list", ["here"])
    refused("other list", token)
    refused("list", token, Pages(b"another secret of the tests"))


def test_no_token_is_the_first_page() -> None:
    assert PAGES.position("list", "") is None


@pytest.mark.parametrize(("asked", "given_"), [(0, 50), (1, 1), (500, 500), (501, 500)])
def test_page_has_the_requested_size_within_bounds(asked: int, given_: int) -> None:
    assert Pages.size(asked) == given_


@pytest.mark.parametrize(("count", "kept", "more"), [(0, 0, False), (2, 2, False), (3, 3, False), (4, 3, True)])
def test_page_ends_at_its_size_and_its_token_leads_behind_its_last_item(count: int, kept: int, more: bool) -> None:
    page, token = PAGES.page("list", list(range(count)), 3, lambda item: [str(item)])
    assert page == list(range(kept))
    assert PAGES.position("list", token) == (["2"] if more else None)
