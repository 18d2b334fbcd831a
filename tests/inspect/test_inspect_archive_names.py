"""Names in archives are bytes: those that the format cannot hold are refused in clear words, wherever they stand."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import tarfile

import pytest

from tests.checkpoint.checkpoint_helpers import make_tar, member
from tests.inspect import small_dump

BAD = b"caf\xe9"
TEXT = os.fsdecode(BAD)
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def _file(**values):
    return member("other.img", b"x", **values)


PLACES = {
    "name": lambda: member(TEXT + ".img", b"x"),
    "directory": lambda: member(TEXT, kind=tarfile.DIRTYPE),
    "in a directory": lambda: member(f"{TEXT}/core-1.img", b"x"),
    "long": lambda: member("d/" * 60 + TEXT, b"x"),
    "link": lambda: member(TEXT, kind=tarfile.SYMTYPE, linkname="a"),
    "target": lambda: member("a", kind=tarfile.SYMTYPE, linkname=TEXT),
    "hard": lambda: member("a", kind=tarfile.LNKTYPE, linkname=TEXT),
    "user": lambda: _file(uname=TEXT),
    "group": lambda: _file(gname=TEXT),
}


def archive(tmp_path, place, form, compressed):
    """The small dump's archive with one such name in it."""
    files = [member(n, d) for n, d in small_dump.a_container().items()]
    data = make_tar(
        *files, PLACES[place](), format_=FORMATS[form], encoding="utf-8", errors="surrogateescape"
    )
    path = tmp_path / ("a.tar.gz" if compressed else "a.tar")
    path.write_bytes(gzip.compress(data) if compressed else data)
    return path


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
def test_a_name_that_is_not_utf8_is_refused_before_a_file_is_made(
    run_cli, keys, tmp_path, place, form, compressed
) -> None:
    path = archive(tmp_path, place, form, compressed)
    seal = ["-r", keys.recipient_path, "--sign", keys.signer_path]
    out = tmp_path / "out"
    out.mkdir()
    commands = {
        "seal": [*seal, "-o", out / "a.sealed"],
        "inspect": [],
        "show": [],
        "secrets": [],
        "report": ["-o", out / "a.html"],
        "coredump": ["--pid", "10", "-o", out / "core"],
    }
    for command, words in commands.items():
        if command == "seal" and compressed:
            continue  # it takes plain archives
        done = run_cli(command, path, *words)
        assert done.code == 3, (command, done)
        assert "is not UTF-8" in done.err, (command, done)
        assert r"\xe9" in done.err
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("place", ["name", "directory", "in a directory"])
def test_files_of_such_names_in_a_directory_are_refused(run_cli, keys, tmp_path, place) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    for name, data in small_dump.a_tree().items():
        (directory / name).write_bytes(data)
    bad = os.path.join(os.fsencode(directory), BAD)
    if place == "name":
        with open(bad, "wb") as file:
            file.write(b"x")
    else:
        os.mkdir(bad)
        if place == "in a directory":
            with open(bad + b"/core-1.img", "wb") as file:
                file.write(b"x")
    out = tmp_path / "a.sealed"
    seal = ["-r", keys.recipient_path, "--sign", keys.signer_path, "--as-files"]
    done = run_cli("seal", directory, *seal, "-o", out)
    assert done.code in (2, 3), done
    assert not out.exists()
    assert (
        run_cli("inspect", directory, "--files").code == 0
    )  # CRIU's images themselves have no such names


@pytest.mark.parametrize("field", ["name", "id", "rootfsImageName", "runtime"])
def test_a_container_s_name_is_any_bytes(run_cli, keys, opening, tmp_path, field) -> None:
    """JSON of an engine that is not UTF-8: shown without a loss, sealed or not."""
    files = small_dump.a_container()
    del files["spec.dump"]
    config = json.loads(files["config.dump"]) | {field: "MARK"}
    files["config.dump"] = json.dumps(config).encode().replace(b"MARK", BAD)
    path = tmp_path / "a.tar"
    path.write_bytes(make_tar(*(member(n, d) for n, d in files.items())))
    seal = ["-r", keys.recipient_path, "--sign", keys.signer_path]
    assert run_cli("seal", path, "--as-files", *seal, "-o", tmp_path / "a.sealed").code == 0
    key = {"name": "container_name", "rootfsImageName": "image"}.get(field, field)
    for place, words in ((path, []), (tmp_path / "a.sealed", opening)):
        (told,) = json.loads(run_cli("show", place, "--json", *words).out)
        assert told[key] == r"caf\xe9"
        assert told[f"{key}_base64"] == "Y2Fm6Q=="
        assert r"caf\xe9" in run_cli("inspect", place, *words).out
    done = run_cli("open", tmp_path / "a.sealed", "-o", tmp_path / "back.tar", *opening)
    assert done.code == 0
    subprocess.run(["tar", "-C", tmp_path, "-xf", tmp_path / "back.tar", "config.dump"], check=True)
    assert (tmp_path / "config.dump").read_bytes() == files["config.dump"]
