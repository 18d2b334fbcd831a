"""Configuration files."""

from __future__ import annotations

import contextlib
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealpoint import config
from sealpoint.errors import UsageError


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The system's file and the user's."""
    monkeypatch.setattr(config, "SYSTEM_PATH", str(tmp_path / "etc" / "config.toml"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    (tmp_path / "etc").mkdir()
    (tmp_path / "home" / "sealpoint").mkdir(parents=True)
    return tmp_path / "etc" / "config.toml", tmp_path / "home" / "sealpoint" / "config.toml"


def test_without_files_nothing_is_configured(files):
    assert config.load() == config.Config()


def test_the_user_wins_key_by_key(files):
    system, user = files
    system.write_text('suite = "aes-256-gcm"\ncompress = "none"\n')
    user.write_text('compress = "zstd"\n')
    loaded = config.load()
    assert (loaded.suite, loaded.compress) == ("aes-256-gcm", "zstd")


def test_the_home_directory_counts_without_xdg(files, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert config.paths()[1] == str(tmp_path / "me" / ".config" / "sealpoint" / "config.toml")


def test_relative_paths_are_relative_to_the_file_that_names_them(files, monkeypatch):
    system, _ = files
    monkeypatch.setenv("HOME", "/home/me")
    literal, key_id = "sealpoint-x25519:AAAA", "Ab" * 32
    system.write_text(
        f'recipients = ["team.pub", "/abs.pub", "~/own.pub", "{literal}", "passphrase"]\n'
        f'trust = ["{key_id}", "signer.pub"]\n'
        'signer = "signer.key"\n'
    )
    loaded = config.load()
    base = os.path.dirname(system)
    assert loaded.recipients == (
        f"{base}/team.pub",
        "/abs.pub",
        "/home/me/own.pub",
        literal,
        "passphrase",
    )
    assert loaded.trust == (key_id, f"{base}/signer.pub")
    assert loaded.signer == f"{base}/signer.key"


@pytest.mark.parametrize("name", ["allow_lazy_restore", "allow_plain_images", "criu_fault"])
def test_what_weakens_a_promise_is_off_unless_it_is_turned_on(files, name):
    system, _ = files
    assert getattr(config.load(), name) is False
    system.write_text(f"{name} = true\n")
    assert getattr(config.load(), name) is True
    for wrong in ('"true"', "1", '["true"]'):
        system.write_text(f"\n{name} = {wrong}\n")
        with pytest.raises(UsageError, match=f"line 2: {name}: wants true or false"):
            config.load()


def test_what_lets_criu_do_more_is_said_in_the_system_s_file_only(files):
    system, user = files
    system.write_text('allow_criu_fields = [72, "11.5", "req.7"]\ncriu_fault = true\n')
    loaded = config.load()
    assert (loaded.allow_criu_fields, loaded.criu_fault) == (("72", "11.5", "req.7"), True)
    for line in ("allow_criu_fields = [72]", "criu_fault = true"):
        user.write_text(line)
        with pytest.raises(UsageError, match="can be set in"):
            config.load()


@pytest.mark.parametrize(
    "wrong", ["[-1]", "[0]", '["a"]', "[true]", "[7.5]", '["7."]', "{}", '["req"]']
)
def test_fields_of_criu_are_numbers(files, wrong):
    system, _ = files
    system.write_text(f"allow_criu_fields = {wrong}\n")
    with pytest.raises(UsageError, match="line 1: allow_criu_fields: wants numbers of fields"):
        config.load()


def test_one_string_will_do_for_a_list(files):
    files[0].write_text('trust = "/signer.pub"\n')
    assert config.load().trust == ("/signer.pub",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n\nnonsense = 1\n", "line 3: nonsense: no such setting"),
        ("[section]\nx = 1\n", "line 1: section: no such setting"),
        ("\n[[ 'array' ]]\n", "line 2: array: no such setting"),
        ("\na.b = 1\n", "line 2: a: no such setting"),
        ("\nsigner = 5\n", "line 2: signer: wants a string"),
        ("signer = true\n", "line 1: signer: wants a string"),
        ('signer = ["a"]\n', "line 1: signer: wants a string"),
        ("\n\n\ntrust = 5\n", "line 4: trust: wants a list of strings"),
        ('trust = ["a", 5]\n', "line 1: trust: wants a list of strings"),
        ("[trust]\na = 1\n", "line 1: trust: wants a list of strings"),
        ('\ncompress = "rar"\n', "line 2: compress: wants one of auto, none, lz4, zstd"),
        ('suite = "rot13"\n', "line 1: suite: wants one of aes-256-gcm"),
        ("signer = \n", "not valid TOML: .*line 1"),
        ('a = 1\nsigner = "x\n', "not valid TOML: .*line 2"),
        ('signer = "a"\nsigner = "b"\n', "not valid TOML"),
    ],
)
def test_a_mistake_names_file_key_and_line(files, text, words):
    files[1].write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        config.load()
    assert str(files[1]) in caught.value.message


def test_bytes_that_are_not_utf8_are_named(files):
    files[0].write_bytes(b'signer = "\xff"\n')
    with pytest.raises(UsageError, match="not valid TOML"):
        config.load()


def test_a_file_that_cannot_be_read_is_named(files):
    files[1].mkdir()
    with pytest.raises(UsageError, match="Is a directory"):
        config.load()


def test_a_huge_file_is_refused(files):
    files[0].write_bytes(b"#" * (2 * 1024 * 1024))
    with pytest.raises(UsageError, match="larger than"):
        config.load()


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_file_is_read_or_refused(data):
    with contextlib.suppress(UsageError):
        config.parse(data, "file")
