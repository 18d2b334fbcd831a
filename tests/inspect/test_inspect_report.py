"""A report says what the checkpoint holds, runs nothing of it, needs nothing else, and can be seen in a browser."""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from sealpoint.errors import SealpointError
from sealpoint.inspect import memory, memory_map, messages
from sealpoint.inspect.finding import open_source
from sealpoint.inspect.markup import el, page as markup_page
from sealpoint.inspect.memory import PAGE
from sealpoint.inspect.report import collect
from sealpoint.inspect.report_page import render
from sealpoint.inspect.source import Access, images
from tests.checkpoint.checkpoint_helpers import seal_path
from tests.inspect.made import PARENT, PRESENT, Made, image, page, space, vma
from tests.inspect.test_inspect_coredump import core_image
from tests.inspect.test_inspect_source import seal_increment
from tests.tools import need

A = 0x10000
EVIL = "<script>document.title='run'</script>\"'><img src=x onerror=\"document.title='run'\">"
DIRECTION = "invoice\N{RIGHT-TO-LEFT OVERRIDE}fdp.exe"


def a_tree(*, name: str = "app", path: str = "/var/log/app.log") -> Made:
    """Two processes, with files, sockets, shared memory, and pages of every sort."""
    made = Made()
    vmas = [
        vma(A, 700),
        vma(A + 1000 * PAGE, 4, memory.FILE_PRIVATE, shmid=4, prot=5),
        vma(A + 2000 * PAGE, 1 << 20, prot=0),
        vma(A + (3000 + (1 << 20)) * PAGE, 8, memory.ANON_SHARED, shmid=9),
    ]
    random = os.urandom(600 * PAGE)
    runs = [
        (A, PRESENT, random),
        (A + 650 * PAGE, PRESENT, page(b"x") * 20),
        (A + 1001 * PAGE, PRESENT, page()),
    ]
    for pid in (1, 2):
        made.task(pid, vmas, runs, mm_start_brk=A, mm_brk=A + 700 * PAGE)
        made.files[f"core-{pid}.img"] = core_image(pid).replace(b"app", name.encode()[:3])
        made.files[f"ids-{pid}.img"] = image(
            message_of("task_kobj_ids_entry", vm_id=pid, files_id=pid, fs_id=1, sighand_id=1),
            kind="IDS",
        )
        made.files[f"fdinfo-{pid}.img"] = image(
            *(
                message_of("fdinfo_entry", id=n, flags=0, type=kind, fd=n)
                for n, kind in ((4, 1), (5, 4), (6, 5))
            ),
            kind="FDINFO",
        )
    made.pagemap("shmem-9", [(0, PRESENT, page(b"shared") * 8)])
    made.files["pstree.img"] = image(
        message_of("pstree_entry", pid=1, ppid=0, pgid=1, sid=1, threads=[1, 11]),
        message_of("pstree_entry", pid=2, ppid=1, pgid=1, sid=1, threads=[2]),
        kind="PSTREE",
    )
    address = [int.from_bytes(bytes([127, 0, 0, 1]), "little")]
    made.files["files.img"] = image(
        message_of("file_entry", type=1, id=4, reg={"id": 4, "name": path.encode(), "pos": 17}),
        message_of(
            "file_entry", type=4, id=5,
            isk={"id": 5, "family": 2, "proto": 6, "state": 1, "src_port": 8080, "dst_port": 55555,
                 "src_addr": address, "dst_addr": address},
        ),
        message_of("file_entry", type=5, id=6, usk={"id": 6, "ino": 77, "name": b"\0control"}),
        kind="FILES",
    )  # fmt: skip
    made.files["inventory.img"] = b"inventory"
    return made


def message_of(name: str, /, **values):
    return messages.message_class(name)(**values)


def report_of(path, access=None):
    source = open_source(str(path), access or Access.of([], None)).source
    try:
        return collect(images(source))
    finally:
        source.close()


class Reader(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data + "\n"


@pytest.fixture
def sealed(keys, analyst, tmp_path):
    objects = {name: (data, None) for name, data in a_tree().files.items()}
    made = a_tree()
    made.write(tmp_path / "images")
    seal_path(keys, tmp_path / "images", tmp_path / "app.sealed", metadata=[analyst])
    assert objects
    return tmp_path / "app.sealed"


def test_it_says_what_is_there(sealed, access, keys):
    report = report_of(sealed, access)
    assert [
        (p.task.pid, p.depth, p.task.command, len(p.task.threads)) for p in report.processes
    ] == [
        (1, 0, "app", 2),
        (2, 1, "app", 1),
    ]
    stored = (600 + 20 + 1 + 8) * PAGE
    assert [p.memory for p in report.processes] == [stored, stored]
    files = {(f.kind, f.name, f.detail) for f in report.processes[0].files}
    assert files == {
        ("REG", "/var/log/app.log", "at 17"),
        ("INETSK", "127.0.0.1:8080 → 127.0.0.1:55555", "TCP ESTABLISHED"),
        ("UNIXSK", "@control", ""),
    }
    assert report.seal.signers[0][1:] == (keys.key_id, True)
    assert [opens for _, opens in report.seal.recipients] == [True, False]
    packed = {o.name: o for o in report.objects}
    assert packed["pages-1.img"].stored < packed["pages-1.img"].size
    assert report.notes == []
    text = Reader(render(report)).text
    for expected in (
        "/var/log/app.log",
        "@control",
        "trusted",
        "metadata only",
        keys.key_id,
        "pages-1.img",
    ):
        assert expected in text


def test_a_metadata_identity_gets_all_but_the_memory(sealed, analyst, keys):
    report = report_of(sealed, Access.of([analyst.identity], keys.policy))
    assert [(p.task.command, p.space) for p in report.processes] == [("app", None), ("app", None)]
    assert all(p.memory for p in report.processes)
    assert report.hidden[0] > 3
    text = Reader(render(report)).text
    assert "which this identity cannot open" in text
    assert keys.fingerprint[:16] in text
    assert "pages-1.img" not in text


def test_the_chain_of_increments_is_drawn_as_far_as_it_is_there(keys, access, tmp_path):
    first = a_tree()
    second = a_tree()
    second.files = dict(second.files)
    second.pagemap("1", [(A, PARENT, 600), (A + 650 * PAGE, PRESENT, page(b"new") * 20)])
    reference = seal_increment(keys, tmp_path / "1.sealed", first.files)
    seal_increment(
        keys, tmp_path / "2.sealed", second.files, reference, (reference.checkpoint_id, 1)
    )
    report = report_of(tmp_path / "2.sealed", access)
    assert [(link.label, link.this) for link in report.seal.chain] == [
        ("1.sealed", False),
        ("2.sealed", True),
    ]
    assert report.processes[0].band.parent == 600 * PAGE
    tags = Reader(render(report)).tags
    assert any(t == "rect" and a.get("class") == "parent" for t, a in tags)
    (tmp_path / "1.sealed").unlink()
    alone = report_of(tmp_path / "2.sealed", access)
    assert [link.label for link in alone.seal.chain] == ["2.sealed"]
    assert any("it is not beside it" in note for note in alone.notes)
    assert alone.processes[0].band is None
    assert alone.processes[1].band is not None


def test_plain_images_are_said_to_be_unprotected(tmp_path):
    text = Reader(render(report_of(a_tree().write(tmp_path / "images")))).text
    assert "Not sealed" in text
    assert "anybody could have changed them" in text


def test_nothing_of_a_checkpoint_becomes_markup(tmp_path):
    directory = a_tree(name="<b>", path=EVIL + DIRECTION).write(tmp_path / "images")
    (directory / "a<b>.img").write_bytes(b"")
    text = render(report_of(directory))
    reader = Reader(text)
    assert {
        t for t, _ in reader.tags if t in ("script", "img", "b", "iframe", "object", "link")
    } == {"script"}
    assert sum(t == "script" for t, _ in reader.tags) == 1
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in text
    assert EVIL in html.unescape(text)


def test_the_page_refers_to_nothing_but_itself(sealed, access):
    text = render(report_of(sealed, access))
    reader = Reader(text)
    for tag, attributes in reader.tags:
        for name in ("src", "href", "action", "data"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
        assert "style" not in attributes  # the policy would not have it
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text
    identifiers = [a["id"] for _, a in reader.tags if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    for tag, attributes in reader.tags:
        if tag == "a":
            assert attributes["href"][1:] in identifiers, attributes


def test_the_policy_allows_the_page_s_own_style_and_script_only(sealed, access):
    text = render(report_of(sealed, access))
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)
    policy = html.unescape(policy)
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_the_drawing_is_to_scale(tmp_path):
    found = space(a_tree().write(tmp_path / "images"))
    drawn = memory_map.band(found, lambda _, __, size: iter([(size, "")]))
    assert drawn.stored == 629 * PAGE
    svg = memory_map.draw(found, drawn, lambda m: m.name, "m-").render()
    rects = re.findall(
        r'<rect y="[\d.]+" height="26" class="(\w+)" x="[\d.]+" width="([\d.]+)">', svg
    )
    widths: dict[str, float] = {}
    for kind, width in rects:
        widths[kind] = widths.get(kind, 0) + float(width)
    # mapped: all but the reserved; of that, what is stored has its share
    assert widths["stored"] / widths["mapped"] == pytest.approx(629 / 712, rel=0.01)
    assert "reserved" in widths


def test_a_task_of_very_many_runs_makes_a_small_page(tmp_path):
    made = a_tree()
    runs = [(A + 2 * n * PAGE, PRESENT, page()) for n in range(3000)]
    made.task(1, [vma(A, 6000)], runs)
    made.write(tmp_path / "images")
    assert len(render(report_of(tmp_path / "images"))) < 2_000_000
    svg = memory_map.draw(
        found := space(tmp_path / "images"),
        memory_map.band(found, lambda _, __, size: iter([(size, "")])),
        lambda m: m.name,
        "m-",
    ).render()
    assert svg.count("<rect") < 2 * 2 * 14 * memory_map.WIDTH / 0.35


def test_damage_in_one_process_leaves_the_others(tmp_path):
    made = a_tree()
    made.files["mm-1.img"] = made.files["mm-1.img"][:40]
    report = report_of(made.write(tmp_path / "images"))
    assert report.processes[0].band is None
    assert report.processes[1].band is not None
    assert any("memory of process 1 cannot be shown" in note for note in report.notes)
    assert "memory of process 1 cannot be shown" in render(report)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_damaged_images_give_our_errors_only(tmp_path_factory, data):
    made = a_tree()
    names = [n for n in made.files if not n.startswith("pages")]
    name = data.draw(st.sampled_from(sorted(names)))
    raw = bytearray(made.files[name])
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    made.files[name] = bytes(raw)
    try:
        render(report_of(made.write(tmp_path_factory.mktemp("damaged"))))
    except SealpointError:
        pass


@given(st.text())
def test_text_is_escaped_whatever_it_is(text):
    document = markup_page(el("body", el("p", text, title=text)))
    reader = Reader(document)
    assert [t for t, _ in reader.tags] == ["html", "body", "p"]


def test_the_command_writes_for_its_owner_only_and_nothing_twice(
    run_cli, sealed, opening, tmp_path
):
    target = tmp_path / "app.html"
    made = run_cli("report", sealed, "-o", target, *opening)
    assert made.code == 0
    assert target.stat().st_mode & 0o777 == 0o600
    assert run_cli("report", sealed, "-o", target, *opening).code == 2
    assert run_cli("report", sealed, "-o", target, "--force", *opening).code == 0
    printed = run_cli("report", sealed, "-o", "-", *opening)
    assert printed.out.startswith("<!DOCTYPE html>")


# --- in a browser ---


def chromium(directory: Path, *arguments: str) -> str:
    (browser,) = need("chromium|chromium-browser")
    common = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars"
    )
    profile = directory / "profile"
    done = subprocess.run(
        [browser, *common.split(), f"--user-data-dir={profile}", *arguments],
        capture_output=True, text=True, timeout=180, env={**os.environ, "HOME": str(directory)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def pixels(path: Path) -> list[bytes]:
    """Rows of an RGB or RGBA image, as Chromium writes PNG (filters of PNG undone)."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, colour = (
        int.from_bytes(data[16:20]),
        int.from_bytes(data[20:24]),
        data[24],
        data[25],
    )
    assert depth == 8
    step = {2: 3, 6: 4}[colour]
    packed, at = b"", 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            packed += data[at + 8 : at + 8 + size]
        at += 12 + size
    raw, line = zlib.decompress(packed), width * step
    rows, above = [], bytes(line)
    for y in range(height):
        kind = raw[y * (line + 1)]
        row = bytearray(raw[y * (line + 1) + 1 : (y + 1) * (line + 1)])
        for x in range(line):
            left = row[x - step] if x >= step else 0
            corner = above[x - step] if x >= step else 0
            row[x] = (row[x] + _predict(kind, left, above[x], corner)) & 255
        rows.append(bytes(row))
        above = row
    return rows


def _predict(kind: int, left: int, up: int, corner: int) -> int:
    if kind == 4:
        guess = left + up - corner
        return min((left, up, corner), key=lambda v: abs(guess - v))
    return (0, left, up, (left + up) // 2)[kind]


@pytest.mark.slow
def test_a_browser_shows_it_and_runs_nothing_of_the_checkpoint(tmp_path):
    directory = a_tree(name="<b>", path=EVIL).write(tmp_path / "images")
    target = tmp_path / "report.html"
    target.write_text(render(report_of(directory)))
    shown = chromium(tmp_path, "--virtual-time-budget=2000", "--dump-dom", target.as_uri())
    assert "<title>images · sealpoint</title>" in shown
    # The page's own script ran: it shows the field that it needs.
    assert re.search(r'<input[^>]* id="filter"[^>]*>', shown)
    assert "hidden" not in re.search(r'<input[^>]* id="filter"[^>]*>', shown)[0]


@pytest.mark.slow
def test_it_is_light_or_dark_as_the_reader_likes(sealed, access, tmp_path):
    target = tmp_path / "report.html"
    target.write_text(render(report_of(sealed, access)))
    corner = {}
    for name, scheme in {"light": "1", "dark": "0"}.items():
        png = tmp_path / f"{name}.png"
        chromium(
            tmp_path, "--window-size=800,900", f"--blink-settings=preferredColorScheme={scheme}",
            f"--screenshot={png}", target.as_uri(),
        )  # fmt: skip
        rows = pixels(png)
        corner[name] = sum(rows[2][:3])
        # Text and bars stand out from the background, and there are colours.
        assert len({row[n : n + 3] for row in rows[::3] for n in range(0, len(row) - 3, 12)}) > 20
    assert corner["light"] > 600
    assert corner["dark"] < 200


@pytest.mark.parametrize("text", ['"><script>', "'><b>", "&amp;", "\u202e", "a\0b\x1b"])
def test_text_of_a_checkpoint_is_escaped_wherever_it_stands(text):
    """In attributes as well: no quote ends one, and nothing that cannot be seen is in the page."""
    page = el("p", text, title=text).render()
    assert page.count("<") == page.count(">") == 2
    assert page.partition(">")[0].count('"') == 2
    assert all(c.isprintable() for c in page)
    inner = page.removeprefix('<p title="').partition('">')
    assert html.unescape(inner[0]) == html.unescape(inner[2].removesuffix("</p>"))
