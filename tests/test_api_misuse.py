"""Misuse of the library: a value of the wrong type never means something else, and what is closed stays closed."""

import os
import sys
from pathlib import Path

import pytest

import sealpoint as sp
from sealpoint.keys.generate import generate, generate_signer

NO_LIST = {
    "a text": "web",
    "a path": Path("web"),
    "bytes": b"web",
    "a number": 5,
    "nothing": None,
    "a table": {"a": 1},
}
NO_PATH = {"a number": 5, "nothing": None, "a list": ["a"], "a NUL byte": "a\0b"}
NO_FLAG = {"a text": "no", "a number": 0, "nothing": None}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A directory with keys, a sealed file, and a configuration that names nobody."""
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in ("keys", "images"):
        (tmp_path / name).mkdir()
    generate("x25519", "keys")
    generate_signer("keys")
    (tmp_path / "images/inventory.img").write_bytes(b"inventory")
    (tmp_path / "images/stats").write_bytes(b"statistics" * 1000)
    sp.seal("images", "app.sealed", sealing(), as_files=True)
    return tmp_path


def sealing(**changes):
    given = {"recipients": ["keys/recipient.pub"], "signer": "keys/signer.key"}
    return sp.Sealing(**(given | changes))


def opened(**changes):
    given = {"trust": ["keys/signer.pub"], "identities": ["keys/identity.key"]}
    return sp.Checkpoint.open(**({"path": "app.sealed"} | given | changes))


def dumped(**changes):
    given = {"pid": 2**22, "output": "new.sealed", "sealing": sealing(), "criu": sys.executable}
    return sp.dump(**(given | changes))


def sealed_again(**changes):
    given = {"path": "images", "output": "new.sealed", "sealing": sealing(), "as_files": True}
    return sp.seal(**(given | changes))


def restored(**changes):
    with opened() as checkpoint:
        return sp.restore(**({"checkpoint": checkpoint, "criu": sys.executable} | changes))


LISTS = [
    (opened, "parents"), (opened, "stores"), (opened, "workloads"), (opened, "expect"), (opened, "trust"),
    (opened, "identities"), (sealing, "recipients"), (sealing, "metadata_recipients"), (dumped, "options"),
    (restored, "options"),
]  # fmt: skip
PATHS = [
    (opened, "path"), (sealing, "signer"), (dumped, "output"), (dumped, "criu"), (dumped, "criu_log"),
    (dumped, "state"), (sealed_again, "path"), (sealed_again, "output"), (restored, "criu"), (restored, "state"),
]  # fmt: skip
FLAGS = [
    (opened, "allow_unsigned"), (sealing, "unsigned"), (dumped, "leave_running"), (dumped, "force"),
    (sealed_again, "force"), (sealed_again, "as_files"), (restored, "detach"), (restored, "allow_older"),
]  # fmt: skip
ITS_DEFAULT = {
    "trust",
    "identities",
    "signer",
    "criu",
    "criu_log",
    "state",
}  # where None means something


def cases(calls, values):
    return [
        pytest.param(call, name, values[kind], id=f"{call.__name__} {name} is {kind}")
        for call, name in calls
        for kind in values
        if kind != "nothing" or name not in ITS_DEFAULT
    ]


@pytest.mark.parametrize(("call", "name", "value"), cases(LISTS, NO_LIST))
def test_what_is_no_list_is_never_taken_for_one(home, call, name, value):
    with pytest.raises(sp.UsageError, match="must be a list"):
        call(**{name: value})


@pytest.mark.parametrize(
    ("call", "name"), [pytest.param(*c, id=f"{c[0].__name__} {c[1]}") for c in LISTS]
)
@pytest.mark.parametrize("value", [5, None, ["a"]], ids=repr)
def test_each_value_of_a_list_has_the_right_type(home, call, name, value):
    with pytest.raises(sp.UsageError, match=r"must be (a path|text), not"):
        call(**{name: [value]})


@pytest.mark.parametrize(("call", "name", "value"), cases(PATHS, NO_PATH))
def test_what_is_no_path_is_an_error_of_the_public_tree(home, call, name, value):
    with pytest.raises(sp.UsageError, match="path"):
        call(**{name: value})
    assert not Path("new.sealed").exists()


@pytest.mark.parametrize(("call", "name", "value"), cases(FLAGS, NO_FLAG))
def test_only_true_and_false_are_yes_and_no(home, call, name, value):
    with pytest.raises(sp.UsageError, match="must be True or False"):
        call(**{name: value})


@pytest.mark.parametrize("pid", ["4711", None, 1.5, True], ids=repr)
def test_a_pid_is_a_whole_number(home, pid):
    with pytest.raises(sp.UsageError, match="pid must be a whole number"):
        dumped(pid=pid)


@pytest.mark.parametrize("value", [None, "app.sealed", object()], ids=["None", "a text", "another"])
def test_values_of_other_types_are_no_sealing_and_no_checkpoint(home, value):
    for call, name in ((dumped, "sealing"), (sealed_again, "sealing"), (restored, "checkpoint")):
        with pytest.raises(sp.UsageError, match=f"{name} must be a sealpoint"):
            call(**{name: value})


@pytest.mark.parametrize("make", [sp.passphrase_recipient, sp.passphrase_identity])
@pytest.mark.parametrize("value", [5, [5], "text", None, Path("file")], ids=repr)
def test_a_passphrase_is_bytes_and_nothing_is_turned_into_one(make, value):
    with pytest.raises(sp.UsageError, match="must be bytes"):
        make(value)


@pytest.mark.parametrize(
    "load", [sp.load_recipient, sp.load_identity, sp.load_signer, lambda v: sp.load_trust([v])]
)
@pytest.mark.parametrize("kind", NO_PATH)
def test_loading_a_key_from_what_is_no_path(load, kind):
    with pytest.raises(sp.UsageError, match="path"):
        load(NO_PATH[kind])


@pytest.mark.parametrize("kind", NO_LIST)
def test_trusted_signers_are_a_list(kind):
    with pytest.raises(sp.UsageError, match="must be a list"):
        sp.load_trust(NO_LIST[kind])


def test_keys_are_named_by_paths_of_every_type(home):
    for make in (str, Path, os.fsencode):
        made = sealing(recipients=[make("keys/recipient.pub")], signer=make("keys/signer.key"))
        assert made.signer.key_id == sealing().signer.key_id
        with opened(trust=[make("keys/signer.pub")], identities=[make("keys/identity.key")]) as it:
            it.verify()


USES = {
    "verify": lambda c: c.verify(),
    "images": lambda c: c.images,
    "tree": lambda c: list(c.tree()),
    "enter": lambda c: c.__enter__(),
    "restore": lambda c: sp.restore(c, criu=sys.executable),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used before"])
def test_a_closed_checkpoint_is_an_error_though_its_descriptors_are_those_of_other_files(
    home, use, used
):
    checkpoint = opened()
    if used:
        checkpoint.verify()
        list(checkpoint.images)
    checkpoint.close()
    others = [os.open("app.sealed", os.O_RDONLY) for _ in range(4)]
    try:
        with pytest.raises(sp.UsageError, match="was closed"):
            USES[use](checkpoint)
    finally:
        for fd in others:
            os.close(fd)
    checkpoint.close()
    assert checkpoint.id
    assert checkpoint.signers


def test_an_image_cannot_be_read_after_its_checkpoint_was_closed(home):
    checkpoint = opened()
    image = checkpoint.images["stats"]
    begun = image.pieces()
    next(begun)
    checkpoint.close()
    for use in (image.read, lambda: next(image.pieces()), lambda: list(begun)):
        with pytest.raises(sp.UsageError, match="was closed"):
            use()
    assert image.size == 10000


@pytest.mark.parametrize("workload", ["w" * 4097, "caf\udce9"], ids=["too long", "not UTF-8"])
def test_a_workload_that_no_reader_accepts_is_refused_before_the_process_is_looked_for(
    home, workload
):
    with pytest.raises(sp.UsageError, match="name of a workload"):
        dumped(workload=workload, criu=None)
