"""`sealpoint crit` from the command line: on sealed files, archives, directories and plain images."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from sealpoint.inspect import messages
from tests.checkpoint.checkpoint_helpers import seal_path
from tests.inspect import crit_reference, images_by_hand as hand
from tests.inspect.small_dump import a_tree


@pytest.fixture
def images(tmp_path):
    directory = tmp_path / "work" / "images"
    directory.mkdir()
    for name, data in a_tree().items():
        (directory / name).write_bytes(data)
    return "images"


@pytest.fixture
def sealed(keys, others, images):
    """Sealed to `keys`; `others` can read its metadata."""
    seal_path(keys, images, "a.sealed", metadata=[others])
    return "a.sealed"


@pytest.fixture
def analyst(keys, others):
    return ["-i", others.identity_path, "--trust", keys.trust_path]


@pytest.fixture
def crit():
    """CRIU's own."""
    prefixes = crit_reference.prefixes()
    if not prefixes:
        pytest.skip("no crit of CRIU here (make criu)")

    def call(*arguments) -> str:
        done = subprocess.run(
            [prefixes[0] / "bin" / "crit", *arguments], capture_output=True, check=True
        )
        return done.stdout.decode()

    return call


def test_show_decode_and_info_print_what_crit_prints(cli, crit, images, sealed, opening):
    for name in ("core-10.img", "files.img", "pstree.img", "pagemap-11.img", "mm-12.img"):
        plain = f"{images}/{name}"
        for arguments in (["show"], ["decode", "--pretty"], ["decode"], ["info"]):
            command, *more = arguments
            expected = crit(command, *more, *(["-i"] if command == "decode" else []), plain)
            for place, keys in (
                (plain, ()),
                (f"{sealed}:{name}", opening),
                (f"{images}:{name}", ()),
            ):
                assert cli("crit", *arguments, place, *keys).out == expected


def test_explorers_print_what_crit_prints(cli, crit, images, sealed, opening):
    for what in ("ps", "fds", "mems", "rss"):
        expected = crit("x", images, what).replace("\x1b", r"\x1b")
        assert "12" in expected
        assert cli("crit", "x", images, what).out == expected
        assert cli("crit", "x", sealed, what, *opening).out == expected


def test_images_come_through_standard_input(program, images, sealed, opening):
    data = Path(images, "pstree.img").read_bytes()
    shown = program("crit", "decode", "-", input=data).out
    assert json.loads(shown)["magic"] == "PSTREE"
    from_sealed = program(
        "crit", "decode", *opening, "--", "-:pstree.img", input=Path(sealed).read_bytes()
    )
    assert from_sealed.out == shown


def test_a_metadata_identity_sees_the_tree_and_files_but_no_memory(cli, sealed, analyst, keys):
    tree = cli("crit", "x", sealed, "ps", *analyst)
    assert [line.split()[-1] for line in tree.out.splitlines()[1:]] == [
        "task10",
        "task11",
        "task12",
    ]
    files = cli("crit", "x", sealed, "fds", *analyst)
    assert "pipe[99]" in files.out
    assert "without fs-10.img" in files.err
    for arguments in (
        ("show", f"{sealed}:core-10.img"),
        ("x", sealed, "mems"),
        ("x", sealed, "rss"),
    ):
        refused = cli("crit", *arguments, *analyst)
        assert refused.code == 4
        assert "metadata only" in refused.err
        assert keys.fingerprint[:16] in refused.err


def test_an_edited_image_goes_into_a_new_sealed_file(cli, sealed, opening, sealing):
    assert cli("crit", "decode", f"{sealed}:core-11.img", "-o", "core.json", *opening).code == 0
    value = json.loads(Path("core.json").read_text())
    value["entries"][0]["tc"]["comm"] = "renamed"
    # what the table calls required, and this small image has not
    value["entries"][0]["tc"] |= {"exit_code": 0, "personality": 0, "flags": 0, "blk_sigset": 0}
    Path("core.json").write_text(json.dumps(value))
    done = cli(
        "crit",
        "encode",
        "core.json",
        "--into",
        f"{sealed}:core-11.img",
        "-o",
        "new.sealed",
        *opening,
        *sealing,
    )
    assert done.code == 0, done.err
    assert "renamed" in cli("crit", "x", "new.sealed", "ps", *opening).out
    assert "task10" in cli("crit", "x", "new.sealed", "ps", *opening).out
    told = json.loads(cli("info", "new.sealed", "--json", *opening).out)
    before = json.loads(cli("info", sealed, "--json", *opening).out)
    assert told["kind"] == "derived"
    assert told["captured"] == before["captured"]
    assert told["checkpoint"] != before["checkpoint"]
    assert told["processes"][1]["command"] == "renamed"
    assert {o["name"] for o in told["objects"]} == {o["name"] for o in before["objects"]}
    assert cli("verify", "new.sealed", *opening).code == 0
    again = cli(
        "crit",
        "encode",
        "core.json",
        "--into",
        f"{sealed}:core-11.img",
        "-o",
        "new.sealed",
        *opening,
        *sealing,
    )
    assert again.code == 2
    assert "exists" in again.err


def test_rewriting_takes_a_memory_identity_and_a_signer(
    cli, sealed, analyst, opening, sealing, keys, images
):
    Path("p.json").write_text(cli("crit", "decode", f"{images}/pstree.img").out)
    into = ("crit", "encode", "p.json", "--into", f"{sealed}:pstree.img", "-o", "new.sealed")
    refused = cli(*into, *analyst, *sealing)
    assert refused.code == 4
    assert keys.fingerprint[:16] in refused.err
    assert cli(*into, *opening, "-r", keys.recipient_path).code == 2
    assert (
        cli(
            "crit",
            "encode",
            "p.json",
            "--into",
            f"{images}:pstree.img",
            "-o",
            "new.sealed",
            *opening,
            *sealing,
        ).code
        == 2
    )
    assert (
        cli(
            "crit", "encode", "p.json", "--into", sealed, "-o", "new.sealed", *opening, *sealing
        ).code
        == 2
    )
    assert not Path("new.sealed").exists()


def test_encode_writes_a_plain_image_for_its_owner_only(cli, images):
    Path("p.json").write_text(cli("crit", "decode", f"{images}/pstree.img").out)
    assert cli("crit", "encode", "p.json", "-o", "p.img").code == 0
    assert Path("p.img").read_bytes() == Path(images, "pstree.img").read_bytes()
    assert Path("p.img").stat().st_mode & 0o777 == 0o600
    Path("p.json").write_text("{")
    refused = cli("crit", "encode", "p.json", "-o", "q.img")
    assert refused.code == 3
    assert "not JSON" in refused.err
    assert not Path("q.img").exists()


def test_recode_tells_what_does_not_come_out_as_it_was(cli, sealed, opening, sealing, images):
    # the small core images have not all fields that are required
    whole = cli("crit", "recode", f"{sealed}:files.img", *opening, "--json")
    assert set(json.loads(whole.out).values()) <= {"same", "damaged"}
    image = Path(images, "inventory.img")
    assert json.loads(cli("crit", "recode", f"{images}:inventory.img", "--json").out) == {
        "inventory.img": "same"
    }
    image.write_bytes(image.read_bytes()[:-1])
    refused = cli("crit", "recode", f"{images}:inventory.img")
    assert refused.code == 3
    assert "damaged" in refused.out


def test_raw_images_and_wrong_names_are_told_apart(cli, sealed, opening, images):
    raw = cli("crit", "show", f"{sealed}:pages-10.img", *opening)
    assert raw.code == 3
    assert "unknown magic" in raw.err
    assert cli("crit", "show", f"{sealed}:core-99.img", *opening).code == 3
    named = cli("crit", "show", sealed, *opening)
    assert named.code == 2
    assert "core-1.img" in named.err
    assert cli("crit", "show", "nowhere:core-1.img").code == 2
    assert cli("crit", "show", f"{images}/../images/core-10.img").code == 0


def test_damage_is_told_after_what_is_sound(cli, images):
    path = Path(images, "pstree.img")
    path.write_bytes(path.read_bytes() + b"\xff\xff\xff\x7f")
    shown = cli("crit", "show", str(path))
    assert shown.code == 3
    assert "only 0 are left" in shown.err
    assert len(json.loads(shown.out)["entries"]) == 3


def test_circles_in_the_process_tree_end(cli, images):
    entry = messages.message_class("pstree_entry")
    data = bytearray()
    hand.Writer("PSTREE", data.extend)
    for pid, parent in ((10, 12), (11, 10), (12, 11)):
        data += hand.raw_record(entry(pid=pid, ppid=parent, pgid=1, sid=1))
    Path(images, "pstree.img").write_bytes(data)
    assert [line.split()[0] for line in cli("crit", "x", images, "ps").out.splitlines()[1:]] == [
        "10",
        "11",
        "12",
    ]
    data += hand.raw_record(entry(pid=10, ppid=0, pgid=1, sid=1))
    Path(images, "pstree.img").write_bytes(data)
    twice = cli("crit", "x", images, "ps")
    assert twice.code == 3
    assert "task 10 is there twice" in twice.err
