"""Who may open a sealed file in a bucket: heads that replace one another, and what others make of that."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from sealpoint.errors import FileError, SystemEnvironmentError, UsageError
from sealpoint.store.bucket_record import head_key
from sealpoint.store.remote import Incomplete
from tests.store.bucket_helpers import keys, moto, nothing_but, place, proxy, put, send_all  # noqa: F401 - fixtures
from tests.store.uploads import content, new_head

pytestmark = pytest.mark.services


def test_a_rekey_replaces_the_head_and_removes_the_older_one(place):
    store = place()
    first = put(store, b"body", properties={"for": "alice"})
    second = new_head(first)
    assert store.replace_head(store.open(), second, {"for": "bob"}) == store.name
    assert content(store) == second + b"body"
    assert dict(store.open().properties) == {"for": "bob"}
    heads = [key for key in keys(store, store._key) if "/head-" in key]
    assert [key[-1] for key in heads] == ["1"]
    assert list(store.incomplete()) == []


def test_of_two_rekeys_at_the_same_time_one_fails(place, proxy):
    """Both are about to make the same head when either goes on."""
    store = place(url=proxy.url)
    first = put(store, b"body")
    both = threading.Barrier(2, timeout=60)

    def before(exchange):
        if exchange.method == "PUT" and "/head-" in exchange.path:
            both.wait()
        return False

    proxy.before = before
    files = [store.open(), store.open()]
    heads = [new_head(first), new_head(first)]

    def rekey(number):
        try:
            store.replace_head(files[number], heads[number], {"n": str(number)})
        except SystemEnvironmentError as error:
            return error.message
        return True

    with ThreadPoolExecutor(2) as pool:
        won = list(pool.map(rekey, (0, 1)))
    proxy.before = lambda _: None
    assert sorted(each is True or "someone else" in each for each in won) == [True, True]
    assert won.count(True) == 1
    winner = won.index(True)
    assert content(store) == heads[winner] + b"body"
    assert dict(store.open().properties) == {"n": str(winner)}


def test_a_rekey_of_what_was_rekeyed_since_it_was_opened_fails(place):
    store = place()
    first = put(store, b"body")
    stale = store.open()
    second = new_head(first)
    store.replace_head(store.open(), second, {})
    with pytest.raises(SystemEnvironmentError, match="someone else"):
        store.replace_head(stale, new_head(first), {})
    assert content(store) == second + b"body"


def test_a_rekey_of_what_is_being_rekeyed_fails_though_the_record_is_still_the_same(place):
    store = place()
    first = put(store, b"body")
    stale, second = store.open(), new_head(first)
    store._client.put(head_key(store._key, stale.record.parts, 1), second)
    with pytest.raises(SystemEnvironmentError, match="someone else"):
        store.replace_head(stale, new_head(first), {})
    assert content(store) == second + b"body"


def test_a_rekey_that_two_others_overtook_amid_its_request_fails(place, proxy):
    """The number that it takes was used, and is free again; the store does not look at If-Match."""
    direct = place()
    first = put(direct, b"body")
    store = place(url=proxy.url)
    stale, last = store.open(), new_head(first)
    once = []

    def before(exchange):
        if exchange.method == "PUT" and "/head-" in exchange.path and not once:
            once.append(1)
            direct.replace_head(direct.open(), new_head(first), {})
            direct.replace_head(direct.open(), last, {})
        exchange.headers.pop("If-Match", None)  # as some stores ignore it
        return False

    proxy.before = before
    with pytest.raises(SystemEnvironmentError, match="someone else"):
        store.replace_head(stale, new_head(first), {})
    assert content(direct) == last + b"body"
    assert [k[-1] for k in keys(direct, direct._key) if "/head-" in k] == ["2"]


def test_a_rekey_that_lost_the_answer_to_its_own_head_succeeds(place, proxy):
    store = place(url=proxy.url)
    first = put(store, b"body")
    cut = []

    def after(exchange):
        ours = "/head-" in exchange.path or ".parts" not in exchange.path
        if exchange.method == "PUT" and ours and exchange.path not in cut:
            cut.append(exchange.path)
            return exchange.cut()
        return False

    proxy.after = after
    second = new_head(first)
    store.replace_head(store.open(), second, {"a": "b"})
    assert len(cut) == 2  # head and record
    assert content(store) == second + b"body"


def test_a_head_of_another_checkpoint_is_no_rekey(place):
    store = place()
    put(store, b"body")
    with pytest.raises(FileError, match="not one of this checkpoint"):
        store.replace_head(store.open(), new_head(), {})


def test_the_highest_head_counts_while_an_older_one_is_still_there(place):
    store = place()
    first = put(store, b"body")
    parts, second = store.open().record.parts, new_head(first)
    store._client.put(head_key(store._key, parts, 1), second)
    assert content(store) == second + b"body"
    (older,) = store.incomplete()
    assert older.name.endswith("/head-000000000")
    store.remove_incomplete(older)
    assert content(store) == second + b"body"
    assert list(store.incomplete()) == []
    with pytest.raises(UsageError, match="complete file"):
        store.remove_incomplete(Incomplete(older.name[:-1] + "1", None))


@pytest.mark.parametrize("foreign", ["another checkpoint", "too short", "too long", "no head"])
def test_a_foreign_head_is_passed_over(place, foreign):
    store = place()
    first = put(store, b"body")
    data = {
        "another checkpoint": new_head(),
        "too short": new_head(first)[:-1],
        "too long": new_head(first) + b"x",
        "no head": bytes(len(first)),
    }[foreign]
    store._client.put(head_key(store._key, store.open().record.parts, 5), data)
    assert content(store) == first + b"body"
    second = new_head(first)
    store.replace_head(store.open(), second, {})
    assert content(store) == second + b"body"


def test_without_a_head_the_file_is_refused(place):
    store = place()
    put(store, b"body")
    store._client.remove(head_key(store._key, store.open().record.parts, 0))
    with pytest.raises(FileError, match="no head"):
        store.open()


def test_an_older_head_that_somebody_puts_back_does_not_count(place):
    store = place()
    first = put(store, b"body")
    store.replace_head(store.open(), new_head(first), {})
    parts = store.open().record.parts
    store._client.remove(head_key(store._key, parts, 1))
    store._client.put(head_key(store._key, parts, 0), first)
    with pytest.raises(FileError, match="no head"):
        store.open()
