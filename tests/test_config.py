"""Configuration files."""

from __future__ import annotations

import contextlib
import os

import pytest
from hypothesis import given, settings, strategies as st

from sealpoint import config, keys
from sealpoint.errors import IdentityError, PolicyError, UsageError
from sealpoint.keys.namespace import NamespaceTable
from sealpoint.keys.trust import SIGNER_USAGE
from sealpoint.machine import configure


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
        with pytest.raises(UsageError, match=f"line 2: {name}: must be true or false"):
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
    with pytest.raises(
        UsageError, match="line 1: allow_criu_fields: must be a list of field numbers"
    ):
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
        ("\nsigner = 5\n", "line 2: signer: must be a string"),
        ("signer = true\n", "line 1: signer: must be a string"),
        ('signer = ["a"]\n', "line 1: signer: must be a string"),
        ("\n\n\ntrust = 5\n", "line 4: trust: must be a list of strings"),
        ('trust = ["a", 5]\n', "line 1: trust: must be a list of strings"),
        ("[trust]\na = 1\n", "line 1: trust: must be a list of strings"),
        ('\ncompress = "rar"\n', "line 2: compress: must be one of auto, none, lz4, zstd"),
        ('suite = "rot13"\n', "line 1: suite: must be one of aes-256-gcm"),
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


ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it gives files to others")


def give_away(path) -> None:
    os.chown(path, 65534, 65534)


@ROOT
@pytest.mark.parametrize("which", ["system", "user"])
@pytest.mark.parametrize("what", ["file", "directory", "writable", "link"])
def test_root_believes_no_configuration_that_others_can_change(files, tmp_path, which, what):
    path = files[which == "user"]
    path.write_text('compress = "zstd"\n')
    assert config.load().compress == "zstd"
    if what == "file":
        give_away(path)
    elif what == "directory":
        give_away(path.parent)
    elif what == "writable":
        path.chmod(0o666)
    else:
        give_away(path.rename(tmp_path / "theirs.toml"))
        path.symlink_to(tmp_path / "theirs.toml")
    for load in [config.load, *([config.load_system] if which == "system" else [])]:
        with pytest.raises(PolicyError, match=r"the configuration file .* is refused") as raised:
            load()
        assert str(path) in raised.value.message
        assert "chown root" in raised.value.hint or "chmod go-w" in raised.value.hint
        assert ("XDG_CONFIG_HOME" in raised.value.hint) is (which == "user")
    if which == "user":
        config.load_system()


@ROOT
def test_where_there_is_no_file_nothing_is_refused(files, tmp_path):
    give_away(tmp_path / "home")  # as with `sudo -E`
    give_away(tmp_path / "home" / "sealpoint")
    assert config.load() == config.Config()


KEYS = {
    "recipients": lambda c: keys.load_recipient(c.recipients[0]),
    "metadata_recipients": lambda c: keys.load_recipient(c.metadata_recipients[0]),
    "trust": lambda c: c.policy(),
    "table": lambda c: c.policy(),
    "authority": lambda c: c.policy(),
    "signer_authorities": lambda c: c.policy(),
    "recipient_authorities": lambda c: keys.load_authorities(c.recipient_authorities),
    "identities": lambda c: keys.load_identity(c.identities[0]),
    "signer": lambda c: keys.load_signer(c.signer),
}


@ROOT
@pytest.mark.parametrize(("setting", "load"), KEYS.items())
def test_root_believes_no_key_file_of_others_that_a_configuration_names(files, setting, load):
    system, _ = files
    named = system.parent / "named"
    named.write_text("no key")
    line = {
        "table": 'trust = [{ key = "named" }]',
        "authority": 'trust = [{ authority = "named" }]',
    }
    system.write_text(line.get(setting, f'{setting} = "named"') + "\n")
    with pytest.raises(IdentityError):
        load(config.load())
    give_away(named)
    with pytest.raises(PolicyError, match=r"the key file .*named is refused: it belongs to"):
        load(config.load())


def test_usages_of_signers_are_object_identifiers(files):
    system, _ = files
    system.write_text('signer_usages = ["1.3.6.1.5.5.7.3.3", "2.25.7"]\n')
    assert config.load().signer_usages == ("1.3.6.1.5.5.7.3.3", "2.25.7")
    assert config.load().policy().usages == ("1.3.6.1.5.5.7.3.3", "2.25.7")
    assert config.Config().policy().usages == (SIGNER_USAGE,)
    for wrong in ("x", "1", "1.", "3.4", "1.2.03", "1 .2", "2.5.29.37.0"):
        system.write_text(f'signer_usages = "{wrong}"\n')
        with pytest.raises(UsageError, match="line 1: signer_usages"):
            config.load()


def test_install_writes_tables_as_they_are_read(files):
    system, _ = files
    for text in (
        'allow_plain_images = true\ntrust = ["/a.pub"]\n',
        """[[trust]]
key = "/a\\"b.pub"
workloads = ["x*"]
max_age = "2d"
[[trust]]
authority = "/c.pem"
names = "dns:*"
""",
    ):
        system.write_text(text)
        loaded = config.load()
        system.write_bytes(configure.render(loaded))
        assert config.load() == loaded


def test_every_setting_that_is_written_reads_back():
    """What install-criu writes anew is the whole of what was there, whatever has been added since."""
    sample = {str: "/etc/sealpoint/x", bool: True, tuple: ("/etc/sealpoint/x",), int: 7}
    special = {
        "compress": "zstd",
        "suite": "chacha20-poly1305",
        "allow_criu_fields": ("72", "11.5"),
        "signer_usages": ("1.2.3",),
        "cluster": "prod",
        "namespaces": (NamespaceTable("shop", ("/etc/sealpoint/x",)),),
        "container_workloads": False,
        "agent": config.AgentTable(
            watch=("/var/x",), store="s3://a/b", unconditional=True, max_size=1 << 40, min_free=0
        ),
    }
    values = {
        name: special.get(name, sample.get(type(default)))
        for name, default in config.Config._field_defaults.items()
    }
    assert None not in values.values()
    whole = config.Config(**values)
    assert all(getattr(whole, n) != d for n, d in config.Config._field_defaults.items())
    data = configure.render(whole)
    assert config.Config(**config.parse(data, config.SYSTEM_PATH)) == whole
