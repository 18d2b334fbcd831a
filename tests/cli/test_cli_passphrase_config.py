"""Passphrases by file, standard input and prompt, and defaults from configuration files."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from pathlib import Path

import pytest

from sealpoint.keys import scrypt


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """Passphrases that cost little, in this process."""
    for name in ("DEFAULT_LOG2_N",):
        monkeypatch.setattr(scrypt, name, 10)


@pytest.fixture
def user_config():
    return Path(os.environ["XDG_CONFIG_HOME"]) / "sealpoint" / "config.toml"


@pytest.fixture
def passphrase(tmp_path):
    (tmp_path / "p").write_bytes(b"correct horse\nsecond line\n")
    (tmp_path / "wrong").write_bytes(b"battery staple\n")
    return tmp_path / "p"


def test_a_passphrase_seals_and_opens_by_file(cli, images, keys, passphrase):
    by = ["--passphrase-file", passphrase]
    result = cli("seal", images, "-o", "s", "-r", "passphrase", "--sign", keys.signer_path, *by)
    assert result.code == 0, result.err
    options = ["-i", "passphrase", "--trust", keys.trust_path]
    assert cli("open", "s", "-o", "o", *options, *by).code == 0
    result = cli("open", "s", "-o", "p", *options, "--passphrase-file", passphrase.parent / "wrong")
    assert result.code == 4
    assert "horse" not in result.err
    assert not os.path.exists("p")
    assert cli("info", "s").out.rstrip().endswith("passphrase")


def test_a_passphrase_can_be_replaced_by_a_recipient_and_back(cli, images, keys, passphrase):
    by = ["--passphrase-file", passphrase]
    sign = ["--sign", keys.signer_path]
    assert cli("seal", images, "-o", "s", "-r", "passphrase", *sign, *by).code == 0
    result = cli("rekey", "s", "-i", "passphrase", *sign, *by, "--add", keys.recipient_path)
    assert (result.code, "combined" in result.err) == (2, True)
    result = cli(
        "rekey", "s", "-i", "passphrase", *sign, *by, "--add", keys.recipient_path,
        "--remove", "passphrase",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert cli("verify", "s", "-i", keys.identity_path, "--trust", keys.trust_path).code == 0
    result = cli(
        "rekey", "s", "-i", keys.identity_path, *sign, *by, "--add", "passphrase",
        "--remove", keys.recipient_path,
    )  # fmt: skip
    assert result.code == 0, result.err


def test_a_passphrase_stands_alone(cli, images, keys, passphrase, sealing):
    result = cli(
        "seal", images, "-o", "s", *sealing, "-r", "passphrase", "--passphrase-file", passphrase
    )
    assert (result.code, "combined" in result.err) == (2, True)


def test_a_passphrase_from_standard_input(program, keys, images, passphrase):
    arguments = ["seal", images, "-o", "s", "-r", "passphrase", "--sign", keys.signer_path]
    result = program(*arguments, "--passphrase-file", "-", input=b"correct horse\nmore\n")
    assert result.code == 0, result.err
    options = ["open", "s", "-o", "o", "-i", "passphrase", "--trust", keys.trust_path]
    assert program(*options, "--passphrase-file", passphrase).code == 0


def test_standard_input_carries_one_thing_only(cli, keys, sealing):
    for arguments in (
        ["open", "-", "-o", "o", "-i", "passphrase", "--allow-unsigned"],
        ["verify", "-", "-i", "passphrase"],
        ["info", "-", "-i", "passphrase"],
        ["restore", "-", "-i", "passphrase", "--allow-unsigned"],
        ["seal", "-", "-o", "s", *sealing],
    ):
        result = cli(*arguments, "--passphrase-file", "-")
        assert result.code == 2
        assert "standard input cannot carry both" in result.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\n", "empty"),
        (b"\r\nx", "empty"),
        (b"x" * 5000, "longer than 4096"),
        (None, "No such file"),
    ],
)
def test_no_good_passphrase_file(cli, images, keys, tmp_path, content, words):
    if content is not None:
        (tmp_path / "p").write_bytes(content)
    result = cli(
        "seal", images, "-o", "s", "-r", "passphrase", "--sign", keys.signer_path,
        "--passphrase-file", tmp_path / "p",
    )  # fmt: skip
    assert result.code == 2
    assert words in result.err
    assert not os.path.exists("s")


def test_keys_with_a_passphrase(cli, images, passphrase, keys):
    by = ["--passphrase-file", passphrase]
    assert cli("keygen", "k", "--kind", "x25519", *by).code == 0
    assert cli("keygen", "k", "--signer", *by).code == 0
    assert b"ENCRYPTED" in Path("k/identity.key").read_bytes()
    seal = ["seal", images, "-o", "s", "-r", "k/recipient.pub", "--sign", "k/signer.key"]
    assert cli(*seal, "--sign-passphrase-file", passphrase).code == 0
    options = ["-i", "k/identity.key", "--trust", "k/signer.pub"]
    assert cli("open", "s", "-o", "o", *options, *by).code == 0
    wrong = ["--passphrase-file", passphrase.parent / "wrong"]
    assert cli("open", "s", "-o", "p", *options, *wrong).code == 4
    assert cli(*seal, "--force", "--sign-passphrase-file", wrong[1]).code == 4


def test_without_a_terminal_nobody_is_asked(program, images, keys):
    result = program(
        "seal", images, "-o", "s", "-r", "passphrase", "--sign", keys.signer_path,
        start_new_session=True,
    )  # fmt: skip
    assert result.code == 2
    assert "--passphrase-file" in result.err


def on_terminal(arguments, typed: list[str]) -> tuple[int, str]:
    """Run on a terminal of its own and type each line once something was asked for."""
    child, master = pty.fork()
    if child == 0:
        signal.signal(
            signal.SIGINT, signal.SIG_DFL
        )  # ignored where the tests run in the background
        os.execv(
            sys.executable,
            [sys.executable, "-c", "from sealpoint.cli import main; main()", *map(str, arguments)],
        )
    shown, answers = b"", list(typed)
    deadline = time.monotonic() + 60
    asked = 0
    while time.monotonic() < deadline:
        if select.select([master], [], [], 0.1)[0]:
            try:
                piece = os.read(master, 4096)
            except OSError:
                break
            if not piece:
                break
            shown += piece
        if answers and shown.count(b": ") > asked and shown.endswith(b": "):
            asked = shown.count(b": ")
            os.write(master, answers.pop(0).encode() + b"\n")
    os.close(master)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown.decode()


def test_prompts_on_a_terminal_hide_what_is_typed(cli, images, keys, passphrase):
    arguments = ["seal", images, "-o", "s", "-r", "passphrase", "--sign", keys.signer_path]
    code, shown = on_terminal(arguments, ["correct horse", "correct horse"])
    assert code == 0, shown
    assert "New passphrase" in shown
    assert "Repeat for confirmation" in shown
    assert "correct" not in shown
    options = ["open", "s", "-o", "o", "-i", "passphrase", "--trust", keys.trust_path]
    code, shown = on_terminal(options, ["correct horse"])
    assert code == 0, shown
    assert "correct" not in shown


def test_ctrl_c_at_a_prompt_is_an_interruption(images, keys):
    arguments = ["seal", images, "-o", "s", "-r", "passphrase", "--sign", keys.signer_path]
    code, shown = on_terminal(arguments, ["\x03"])
    assert code == 130
    assert "interrupted" in shown
    assert "Traceback" not in shown
    assert not os.path.exists("s")


def test_a_progress_bar_appears_on_a_terminal_only_for_what_takes_long(images, sealing):
    code, shown = on_terminal(["seal", images, "-o", "s", *sealing], [])
    assert code == 0
    assert "\x1b" not in shown


def test_defaults_come_from_the_users_file(cli, images, keys, user_config):
    user_config.write_text(
        f'recipients = ["{keys.recipient_path}"]\n'
        f'signer = "{keys.signer_path}"\n'
        f'identities = "{keys.identity_path}"\n'
        f'trust = ["{keys.trust_path}"]\n'
        'compress = "none"\n'
        'suite = "chacha20-poly1305"\n'
    )
    assert cli("seal", images, "-o", "s").code == 0
    assert "chacha20-poly1305" in cli("info", "s").out
    assert cli("open", "s", "-o", "o").code == 0
    assert cli("verify", "s").code == 0
    assert cli("rekey", "s", "--repair").code == 0


def test_options_win_over_the_files_and_the_users_over_the_systems(
    cli, images, keys, others, user_config, tmp_path
):
    (tmp_path / "system.toml").write_text(
        f'recipients = ["{others.recipient_path}"]\nsigner = "{keys.signer_path}"\n'
    )
    assert cli("seal", images, "-o", "s1").code == 0
    assert others.fingerprint[:16] in cli("info", "s1").out
    user_config.write_text(f'recipients = ["{keys.recipient_path}"]\n')
    assert cli("seal", images, "-o", "s2").code == 0
    assert keys.fingerprint[:16] in cli("info", "s2").out
    assert cli("seal", images, "-o", "s3", "-r", others.recipient_path).code == 0
    shown = cli("info", "s3").out
    assert others.fingerprint[:16] in shown
    assert keys.fingerprint[:16] not in shown


def test_a_mistake_in_the_configuration_stops_every_command_that_reads_it(
    cli, sealed, images, user_config
):
    user_config.write_text("# ours\nrecipient = 'x'\n")
    for arguments in (
        ["info", sealed],
        ["verify", sealed],
        ["seal", images, "-o", "s"],
        ["open", sealed, "-o", "o"],
        ["rekey", sealed, "--repair"],
        ["dump", "-t", "1", "-o", "x"],
        ["restore", sealed],
    ):
        result = cli(*arguments)
        assert result.code == 2
        assert f"{user_config}, line 2: recipient: no such setting" in result.err
        assert "recipients" in result.err
