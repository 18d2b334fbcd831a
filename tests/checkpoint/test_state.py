"""The state store: a cache that opens for the very file it is about, and whose loss is never an error."""

from __future__ import annotations

import os
import stat
import time

import pytest
from hypothesis import given, settings, strategies as st

from sealpoint.errors import SystemEnvironmentError
from sealpoint.format.statement import ParentRef
from sealpoint.state import chains as module, soft_dirty
from sealpoint.state.chains import ImageLayout, NoStateError, State, StateStore


def made(number: int = 1, **values) -> State:
    reference = ParentRef(bytes([number]) * 16, bytes([number]) * 32)
    values = {
        "parent": ParentRef(b"p" * 16, b"q" * 32),
        "workload": "w",
        "layout": {"pages-1.img": ImageLayout(5, 2 << 20, 12345)},
        "sections": {"inventory.img": b"\0\1\2", "pagemap-1.img": bytes(100)},
    } | values
    return State(reference, (b"r" * 16, 3), **values)


@pytest.fixture
def store(tmp_path):
    return StateStore(str(tmp_path / "state"))


def test_a_state_comes_back(store):
    for state in (made(), made(2, parent=None, layout={}, sections={})):
        store.save(state)
        assert store.load(state.reference) == state


def test_it_is_private_and_nothing_of_it_is_readable(store):
    store.save(made(sections={"inventory.img": b"a needle"}))
    assert stat.S_IMODE(os.stat(store.directory).st_mode) == 0o700
    names = sorted(os.listdir(store.directory))
    assert names == ["01" * 16, "machine.key"]
    for name in names:
        path = f"{store.directory}/{name}"
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        with open(path, "rb") as file:
            data = file.read()
        assert b"needle" not in data
        assert b"inventory" not in data


def test_one_key_for_all_and_the_first_one_stays(store):
    store.save(made(1))
    with open(f"{store.directory}/machine.key", "rb") as file:
        key = file.read()
    store.save(made(2))
    with open(f"{store.directory}/machine.key", "rb") as file:
        assert file.read() == key
    assert len(key) == 32


def no_state(store, reference, *words):
    with pytest.raises(NoStateError) as caught:
        store.load(reference)
    assert any(w in str(caught.value) for w in words)


def test_an_unknown_checkpoint_has_no_state(store):
    no_state(store, made().reference, "has no state")
    store.save(made(1))
    no_state(store, made(2).reference, "has no state")


def test_it_does_not_open_for_another_file_of_the_same_id(store):
    state = made()
    store.save(state)
    other = ParentRef(state.reference.checkpoint_id, b"x" * 32)
    no_state(store, other, "of another file")


def test_it_does_not_open_under_another_name(store):
    store.save(made(1))
    os.rename(f"{store.directory}/{'01' * 16}", f"{store.directory}/{'02' * 16}")
    no_state(store, made(2).reference, "of another file")


@pytest.mark.parametrize("key", [b"", b"short", b"k" * 32, b"k" * 33])
def test_another_key_costs_the_state_and_is_replaced_if_it_is_none(store, key):
    store.save(made())
    with open(f"{store.directory}/machine.key", "wb") as file:
        file.write(key)
    no_state(store, made().reference, "another machine")
    store.save(made(2))
    assert store.load(made(2).reference) == made(2)


def test_a_lost_key_costs_the_states(store):
    store.save(made())
    os.unlink(f"{store.directory}/machine.key")
    no_state(store, made().reference, "has no state")


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_damaged_state_is_no_state(tmp_path_factory, data):
    store = StateStore(str(tmp_path_factory.mktemp("state")))
    state = made()
    store.save(state)
    path = f"{store.directory}/{'01' * 16}"
    with open(path, "rb") as file:
        raw = bytearray(file.read())
    at = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        raw[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del raw[at:]
    with open(path, "wb") as file:
        file.write(raw)
    no_state(store, state.reference, "damaged", "another")


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemEnvironmentError, match="cannot keep the state"):
        StateStore(str(tmp_path / "file" / "state")).save(made())


def test_what_is_too_much_goes_the_longest_unused_first(store, monkeypatch):
    monkeypatch.setattr(module, "MAX_STATES", 3)
    for number in range(1, 4):
        store.save(made(number))
        os.utime(f"{store.directory}/{bytes([number] * 16).hex()}", (0, time.time() - 100 + number))
    store.load(made(1).reference)  # used now
    store.save(made(4))
    assert store.load(made(1).reference)
    assert store.load(made(3).reference)
    assert store.load(made(4).reference)
    no_state(store, made(2).reference, "has no state")


def test_size_and_age_are_bounded_too_but_the_newest_stays(store, monkeypatch):
    store.save(made(1))
    store.save(made(2))
    os.utime(f"{store.directory}/{'01' * 16}", (0, time.time() - module.MAX_AGE - 10))
    store.collect()
    no_state(store, made(1).reference, "has no state")
    assert store.load(made(2).reference)
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    store.save(made(3))
    assert store.load(made(3).reference)
    no_state(store, made(2).reference, "has no state")


def test_what_was_never_finished_goes_after_a_while(store):
    store.save(made(1))
    for name, age in ((".young", 10), (".old", 7200)):
        path = f"{store.directory}/{name}"
        with open(path, "w"):
            pass
        os.utime(path, (0, time.time() - age))
    store.collect()
    assert ".young" in os.listdir(store.directory)
    assert ".old" not in os.listdir(store.directory)


# What the kernel's bits are relative to


def test_the_last_tracked_dump_of_a_process_is_remembered(tmp_path):
    mine = soft_dirty.Tracking(str(tmp_path), os.getpid())
    assert mine.last() == ""
    mine.begin()
    assert mine.last() == ""
    mine.done(b"a" * 16)
    assert soft_dirty.Tracking(str(tmp_path), os.getpid()).last() == (b"a" * 16).hex()
    assert soft_dirty.Tracking(str(tmp_path), os.getppid()).last() == ""
    mine.begin()
    assert mine.last() == ""


def test_nobody_has_no_record(tmp_path):
    nobody = soft_dirty.Tracking(str(tmp_path), 0)
    nobody.begin()
    nobody.done(b"a" * 16)
    assert nobody.last() == ""


def test_records_of_processes_that_are_gone_go(tmp_path):
    mine = soft_dirty.Tracking(str(tmp_path), os.getpid())
    mine.done(b"a" * 16)
    gone = tmp_path / "tracking" / "1-0-00000000"  # a process of that pid exists, but is another
    gone.write_text("")
    mine.begin()
    assert not gone.exists()
    assert len(list((tmp_path / "tracking").iterdir())) == 1


def test_whether_the_kernel_tracks_memory_is_what_it_says_itself():
    with open("/proc/self/smaps") as file:
        flags = [line.split()[1:] for line in file if line.startswith("VmFlags:")]
    assert soft_dirty.supported() == any("sd" in f for f in flags)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it gives files to others")
@pytest.mark.parametrize("level", ["", "..", "machine.key"])
def test_a_state_that_others_could_have_changed_is_not_used(store, level):
    """Whoever replaces the machine's key makes states that open."""
    store.save(made())
    place = f"{store.directory}/{level}"
    if level == "machine.key":
        os.chown(place, 65534, 65534)
    else:
        os.chmod(place, 0o777)
    with pytest.raises(NoStateError, match=r"can be changed by others|belongs to user 65534"):
        store.load(made().reference)
    with pytest.raises(SystemEnvironmentError, match=r"can be changed by others|belongs to user"):
        store.save(made(2))


@pytest.mark.parametrize("umask", [0, 0o022])
def test_every_level_is_private_whatever_the_umask(tmp_path, umask):
    store = StateStore(f"{tmp_path}/var/sealpoint/state")
    old = os.umask(umask)
    try:
        store.save(made())
        soft_dirty.Tracking(store.directory, os.getpid()).begin()
    finally:
        os.umask(old)
    for name in ("var", "var/sealpoint", "var/sealpoint/state", "var/sealpoint/state/tracking"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o700, name
