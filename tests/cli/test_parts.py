"""An archive with a sealed file in the place of images: what the drop-in leaves in an engine's archive."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

import pytest
import zstandard

from sealpoint.checkpoint import OpenedCheckpoint
from sealpoint.checkpoint.opening import parts
from sealpoint.format.statement import ParentRef
from tests.checkpoint.checkpoint_helpers import (
    a_pre_dump,
    attributes,
    make_tar,
    member,
    opened,
    read_tar,
    seal_objects,
)

PLACE = "checkpoint/inventory.img"
MEMORY = b"what lies in memory " * 5000
REST = {
    "spec.dump": b'{"process": {"env": ["A=b"]}}',
    "config.dump": b'{"id": "c"}',
    "checkpoint/descriptors.json": b'["/dev/null","pipe:[1]","pipe:[2]"]',
    "container.log": b"a line\n",
}


def sealed_file(cli, keys, tmp_path, memory=MEMORY, name="images"):
    """As the drop-in leaves one in its images directory."""
    images = tmp_path / name
    images.mkdir()
    for image, data in a_pre_dump(memory).items():
        (images / image).write_bytes(data)
    out = tmp_path / f"{name}.sealed"
    made = cli("seal", images, "-o", out, "-r", keys.recipient_path, "--sign", keys.signer_path)
    assert made.code == 0, made.err
    return out.read_bytes()


def archive(inside: bytes, place: str = PLACE, **more: bytes) -> bytes:
    files = REST | more | {place: inside}
    return make_tar(*(member(name, data) for name, data in files.items()))


def seal(cli, keys, tmp_path, data: bytes, name="archive.tar", **options):
    (tmp_path / name).write_bytes(data)
    out = tmp_path / f"{name}.sealed"
    made = cli(
        "seal", tmp_path / name, "-o", out, "-r", keys.recipient_path, "--sign", keys.signer_path
    )
    return made, out


def reading(keys, *trusted):
    trust = [word for k in (keys, *trusted) for word in ("--trust", k.trust_path)]
    return ["-i", keys.identity_path, *trust]


def by_hand(keys, tmp_path, inside: bytes | None, wanted: str, place: str = PLACE):
    """What a trusted sealer can make who means harm: any object, and any word of what it is."""
    objects = {name: (data, attributes()) for name, data in REST.items()}
    if inside is not None:
        objects[place] = (inside, attributes())
    out = tmp_path / "by-hand.sealed"
    told = {"layout": "archive", "compression": "none", "kind:checkpoint/": "sealed"}
    seal_objects(keys, out, objects, properties=told | {f"part:{place}": wanted})
    return out


def word(data: bytes, tmp_path) -> str:
    path = tmp_path / "word.sealed"
    path.write_bytes(data)
    from sealpoint.format.raw import Descriptor

    with path.open("rb") as file:
        found = parts.look(Descriptor(file.fileno()))
    return parts.properties({PLACE: found})[f"part:{PLACE}"]


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstandard.ZstdCompressor().compress])
def test_it_is_sealed_without_a_word_bound_and_comes_back_byte_by_byte(
    cli, keys, tmp_path, compress
):
    data = archive(sealed_file(cli, keys, tmp_path))
    made, out = seal(cli, keys, tmp_path, compress(data))
    assert made.code == 0, made.err
    with opened(keys, out) as outer:
        assert parts.names(outer) == (PLACE,)
        values = outer.manifests[next(iter(outer.manifests))].properties
        assert values["kind:checkpoint/"] == "sealed"
        assert values[f"part:{PLACE}"] == word((tmp_path / "images.sealed").read_bytes(), tmp_path)
    back = tmp_path / "back.tar"
    assert cli("open", out, "-o", back, *reading(keys)).code == 0
    assert read_tar(back.read_bytes()) == read_tar(data)


def test_one_that_comes_through_a_pipe_and_one_in_a_directory_are_the_same(
    cli, program, keys, tmp_path
):
    inside = sealed_file(cli, keys, tmp_path)
    data = archive(inside)
    directory = tmp_path / "unpacked"
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall(directory, filter="data")
    who = ["-r", keys.recipient_path, "--sign", keys.signer_path]
    assert cli("seal", directory, "-o", tmp_path / "a.sealed", *who).code == 0
    piped = program("seal", "-", "-o", tmp_path / "b.sealed", *who, input=data)
    assert piped.code == 0, piped.err
    for name in ("a.sealed", "b.sealed"):
        with opened(keys, tmp_path / name) as outer:
            assert parts.names(outer) == (PLACE,)
            assert outer.read_bytes(outer.entry(PLACE)) == inside


def test_a_large_one_is_streamed(cli, keys, tmp_path):
    import os

    inside = sealed_file(cli, keys, tmp_path, memory=os.urandom(17 * 1024 * 1024))
    data = archive(inside)
    for number, packed in enumerate((data, gzip.compress(data, 1))):
        made, out = seal(cli, keys, tmp_path, packed, name=f"{number}.tar")
        assert made.code == 0, made.err
        assert cli("verify", out, *reading(keys)).code == 0
        with opened(keys, out) as outer:
            entry = outer.entry(PLACE)
            assert b"".join(map(bytes, outer.read(entry))) == inside


def test_verify_reads_both_and_names_both_signers(cli, keys, others, tmp_path):
    made, out = seal(cli, keys, tmp_path, archive(sealed_file(cli, others, tmp_path)))
    assert made.code == 0, made.err
    intact = cli("verify", out, *reading(keys, others), "-i", others.identity_path)
    assert intact.code == 0, intact.err
    assert "every chunk of 1 sealed file inside it" in intact.out
    assert f"{PLACE} inside: signed by" in intact.out
    found = json.loads(cli("verify", "--json", out, *reading(keys, others)).out)["parts"]
    assert [(p["name"], [s["trusted"] for s in p["signers"]]) for p in found] == [(PLACE, [True])]
    # Without a key for what is inside, its frames can be compared all the same.
    assert "every frame of 1 sealed file" in cli("verify", out, *reading(keys, others)).out


@pytest.mark.parametrize("command", ["verify", "open", "inspect", "crit"])
def test_one_that_nobody_trusted_signed_is_refused_whoever_signed_the_rest(
    cli, keys, others, tmp_path, command
):
    _, out = seal(cli, keys, tmp_path, archive(sealed_file(cli, others, tmp_path)))
    arguments = {
        "open": ["open", out, "-o", tmp_path / "back.tar"],
        "crit": ["crit", "show", f"{out}:{PLACE}"],
    }.get(command, [command, out])
    refused = cli(*arguments, *reading(keys))
    assert refused.code == 5, refused
    assert PLACE in refused.err
    assert not (tmp_path / "back.tar").exists()
    assert cli(*arguments, *reading(keys, others)).code in ((0, 3) if command == "crit" else (0,))


def test_verify_without_trust_does_not_take_one_signer_for_the_other(cli, keys, others, tmp_path):
    _, out = seal(cli, keys, tmp_path, archive(sealed_file(cli, others, tmp_path)))
    assert cli("verify", out, "-i", keys.identity_path).code == 8


def test_one_that_is_exchanged_is_refused(cli, keys, tmp_path):
    first = sealed_file(cli, keys, tmp_path)
    second = sealed_file(cli, keys, tmp_path, b"another", "second")
    for wanted in (word(first, tmp_path), word(first, tmp_path)[:33] + word(second, tmp_path)[33:]):
        out = by_hand(keys, tmp_path, second, wanted)
        refused = cli("verify", out, *reading(keys))
        assert refused.code == 3, refused
        assert "not the one that was signed" in refused.err


def test_one_that_is_missing_is_refused(cli, keys, tmp_path):
    inside = sealed_file(cli, keys, tmp_path)
    refused = cli("verify", by_hand(keys, tmp_path, None, word(inside, tmp_path)), *reading(keys))
    assert refused.code == 3
    assert "is missing" in refused.err


@pytest.mark.parametrize("cut", [10, 5000, -1, -64])
def test_one_that_is_cut_is_refused_when_it_is_sealed_and_when_it_is_opened(
    cli, keys, tmp_path, cut
):
    inside = sealed_file(cli, keys, tmp_path)
    made, out = seal(cli, keys, tmp_path, archive(inside[:cut]))
    assert made.code == 3
    assert PLACE in made.err
    assert not out.exists()
    refused = cli(
        "verify", by_hand(keys, tmp_path, inside[:cut], word(inside, tmp_path)), *reading(keys)
    )
    assert refused.code == 3
    assert PLACE in refused.err


def test_one_with_a_changed_frame_is_refused_when_it_is_sealed_and_by_verify(cli, keys, tmp_path):
    inside = sealed_file(cli, keys, tmp_path)
    at = int.from_bytes(inside[12:16], "little") * 2 + 64 + 100
    damaged = inside[:at] + bytes([inside[at] ^ 1]) + inside[at + 1 :]
    made, out = seal(cli, keys, tmp_path, archive(damaged))
    assert made.code == 3
    assert not out.exists()
    refused = cli(
        "verify", by_hand(keys, tmp_path, damaged, word(inside, tmp_path)), *reading(keys)
    )
    assert refused.code == 3


@pytest.mark.parametrize(
    "wanted", ["", ":", "00" * 16, "00" * 16 + ":" + "00" * 31, "zz" * 16 + ":" + "00" * 32]
)
def test_a_word_that_names_nothing_is_refused(cli, keys, tmp_path, wanted):
    inside = sealed_file(cli, keys, tmp_path)
    refused = cli("verify", by_hand(keys, tmp_path, inside, wanted), *reading(keys))
    assert refused.code == 3
    assert "impossibly" in refused.err


def test_a_word_about_another_place_is_refused():
    wanted = parts.properties({"spec.dump": ParentRef(bytes(16), bytes(32))})
    with pytest.raises(Exception, match="impossibly"):
        parts.references(wanted)


def test_images_beside_it_are_no_dump(cli, keys, tmp_path):
    more = {"checkpoint/pages-1.img": bytes(4096)}
    made, _ = seal(cli, keys, tmp_path, archive(sealed_file(cli, keys, tmp_path), **more))
    assert made.code == 3
    assert "not a complete checkpoint" in made.err


def test_one_at_the_top_is_no_archive_of_an_engine(cli, keys, tmp_path):
    made, _ = seal(cli, keys, tmp_path, archive(sealed_file(cli, keys, tmp_path), "inventory.img"))
    assert made.code == 3


def test_its_images_are_shown_as_if_they_lay_in_the_archive(cli, keys, others, tmp_path):
    _, out = seal(cli, keys, tmp_path, archive(sealed_file(cli, others, tmp_path)))
    both = [*reading(keys, others), "-i", others.identity_path]
    shown = cli("crit", "show", f"{out}:checkpoint/pagemap-1.img", *both)
    assert shown.code == 0, shown.err
    assert json.loads(shown.out)["entries"]
    assert json.loads(cli("inspect", "--format", "json", out, *both).out)
    # Who has no key for it sees the rest.
    assert cli("crit", "show", f"{out}:checkpoint/pagemap-1.img", *reading(keys, others)).code == 3
    assert cli("inspect", out, *reading(keys, others)).code == 0


@pytest.mark.parametrize("place", [PLACE, "pod/c/checkpoint/inventory.img"])
def test_rekey_covers_all_of_a_set_or_nothing(cli, keys, others, tmp_path, place):
    inside = sealed_file(cli, keys, tmp_path)
    made, out = seal(cli, keys, tmp_path, archive(inside, place))
    assert made.code == 0, made.err
    before = out.read_bytes()
    refused = cli(
        "rekey", out, *reading(keys), "--sign", keys.signer_path, "--add", others.recipient_path
    )
    assert refused.code == 2
    assert place in refused.err
    assert out.read_bytes() == before


def test_an_image_inside_is_not_changed_behind_its_signature(cli, keys, tmp_path):
    _, out = seal(cli, keys, tmp_path, archive(sealed_file(cli, keys, tmp_path)))
    shown = cli("crit", "show", f"{out}:checkpoint/inventory.img", *reading(keys)).out
    (tmp_path / "new.json").write_text(shown)
    who = ["-r", keys.recipient_path, "--sign", keys.signer_path]
    refused = cli(
        *("crit", "encode", tmp_path / "new.json", "--into", f"{out}:{PLACE}"),
        *(
            "-o",
            tmp_path / "new.sealed",
            "--trust",
            keys.trust_path,
            "--identity",
            keys.identity_path,
        ),
        *who,
    )
    assert refused.code == 2, refused
    assert not (tmp_path / "new.sealed").exists()


def test_one_whose_rekey_was_interrupted_is_not_sealed(cli, keys, tmp_path):
    inside = sealed_file(cli, keys, tmp_path)
    rekeyed = tmp_path / "images.sealed"
    done = cli(
        *("rekey", rekeyed, *reading(keys), "--sign", keys.signer_path),
        *("--add", another_recipient(cli, tmp_path)),
    )
    assert done.code == 0, done.err
    # The new header beside the old one: as a kill between two writes leaves it.
    size = int.from_bytes(inside[12:16], "little")
    first, second = inside[64 : 64 + 2 * size], rekeyed.read_bytes()[64 : 64 + 2 * size]
    both = first[:size] + second[size:] if any(first[:size]) else second[:size] + first[size:]
    made, out = seal(cli, keys, tmp_path, archive(inside[:64] + both + inside[64 + 2 * size :]))
    assert made.code == 3, made
    assert "interrupted" in made.err
    assert not out.exists()


def another_recipient(cli, tmp_path):
    made = cli("keygen", tmp_path / "another")
    assert made.code == 0, made.err
    return tmp_path / "another" / "recipient.pub"


def test_verify_compares_the_frames_of_one_that_it_cannot_open(cli, keys, others, tmp_path):
    inside = sealed_file(cli, others, tmp_path)
    at = int.from_bytes(inside[12:16], "little") * 2 + 64 + 100
    damaged = inside[:at] + bytes([inside[at] ^ 1]) + inside[at + 1 :]
    out = by_hand(keys, tmp_path, damaged, word(inside, tmp_path))
    refused = cli("verify", out, *reading(keys, others))
    assert refused.code == 3, refused


def test_verify_names_nobody_for_an_unsigned_one_inside(cli, keys, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for image, data in a_pre_dump(MEMORY).items():
        (images / image).write_bytes(data)
    unsigned = tmp_path / "unsigned.sealed"
    assert cli("seal", images, "-o", unsigned, "-r", keys.recipient_path, "--unsigned").code == 0
    _, out = seal(cli, keys, tmp_path, archive(unsigned.read_bytes()))
    assert cli("verify", out, *reading(keys)).code == 5
    assert cli("verify", out, "-i", keys.identity_path).code == 8


def test_podman_restore_says_what_to_do_with_one_before_it_asks_podman(cli, keys, tmp_path):
    from sealpoint.errors import UsageError
    from sealpoint.keys import load_trust
    from sealpoint.podman.restore import ContainerRestore, restore

    _, out = seal(cli, keys, tmp_path, archive(sealed_file(cli, keys, tmp_path)))
    request = ContainerRestore(None, "criu", name="c")  # no podman: it is not asked
    with OpenedCheckpoint.open(
        str(out), trust=load_trust([keys.trust_path]), identities=[keys.identity]
    ) as checkpoint:
        with pytest.raises(UsageError, match=PLACE) as refused:
            restore(request, checkpoint, None)
    assert "sealpoint open" in refused.value.hint
