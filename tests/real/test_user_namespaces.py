"""Trees in user namespaces: through the drop-in as typed, and who may read the images while it restores one."""

from __future__ import annotations

import mmap
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.real import leaks, sealed, userns
from tests.real.typed import DropIn

StartTree = Callable[[str], userns.Tree]
maps = pytest.mark.parametrize("uid_map", [userns.MANY, userns.ONE], ids=["many", "one"])


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return userns.build(tmp_path_factory.mktemp("userns"))


@pytest.fixture
def tree(program: Path, ram_dir: Path) -> Iterator[StartTree]:
    started: list[userns.Tree] = []

    def start(uid_map: str) -> userns.Tree:
        started.append(userns.Tree(program, ram_dir, uid_map, f"secret-{secrets.token_hex(12)}"))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def dump(dropin: DropIn, running: userns.Tree, images: Path) -> None:
    status, said = dropin.run("dump", "-t", running.pid, "-D", images, *running.options)
    assert status == 0, said
    running.wait_gone()


@pytest.mark.alone
@maps
@pytest.mark.parametrize("how", [("-d",), ("-d", "--restore-sibling")], ids=" ".join)
def test_a_tree_with_its_own_users_comes_back_as_typed(
    tree: StartTree, dropin: DropIn, images: Path, tmp_path: Path, uid_map: str, how: tuple[str]
) -> None:
    running = tree(uid_map)
    assert len(set(running.users)) == (3 if uid_map == userns.MANY else 1)
    with leaks.FileWatcher({"secret": running.secret.encode()}, [tmp_path]) as watcher:
        dump(dropin, running, images)
        assert sorted(os.listdir(images)) == ["inventory.img", "stats-dump"]
        status, said = dropin.run("restore", *how, "-D", images, *running.options)
    assert status == 0, said
    running.assert_intact()
    assert watcher.leaks() == []


def test_who_waits_for_the_tree_gets_it_as_typed(
    tree: StartTree, dropin: DropIn, images: Path, tmp_path: Path
) -> None:
    running = tree(userns.MANY)
    dump(dropin, running, images)
    waits = dropin.start("restore", "-D", images, *running.options, log=tmp_path / "log")
    sealed.wait_until(lambda: len(running.processes()) == 3 or waits.poll() is not None, "it runs")
    running.assert_intact()
    running.close()
    waits.wait(60)


@maps
def test_a_tree_with_its_own_users_comes_back_by_stream(
    tree: StartTree, sealpoint: sealed.Sealpoint, keys: sealed.Keys, out: Path, uid_map: str
) -> None:
    running = tree(uid_map)
    sealpoint.run("dump", "-t", running.pid, "-o", out, *keys.seal, "--", *running.options).ok()
    running.wait_gone()
    sealpoint.run("restore", out, "-d", *keys.open, "--", *running.options).ok()
    running.assert_intact()


def stopped(directory: Path, action: str) -> Path:
    """An action script that waits, at `action`, between the files `waits` and `goes-on`."""
    text = (
        f'[ "$CRTOOLS_SCRIPT_ACTION" = {action} ] || exit 0\n'
        f"touch {directory}/waits\nwhile ! [ -e {directory}/goes-on ]; do sleep 0.01; done"
    )
    return sealed.script(directory / "script", text)


def attempts(directory: int, file: int) -> dict[str, Callable[[], object]]:
    """All that can be tried with a descriptor of the mount and one of an image."""
    return {
        "list": lambda: os.listdir(directory),
        "look at": lambda: os.stat("pstree.img", dir_fd=directory),
        "open": lambda: os.open("pstree.img", os.O_RDONLY, dir_fd=directory),
        "open by a path": lambda: os.open(f"/proc/self/fd/{directory}/pstree.img", os.O_RDONLY),
        "open anew": lambda: os.open(f"/proc/self/fd/{file}", os.O_RDONLY),
        "size": lambda: os.fstat(file),
        "space": lambda: os.fstatvfs(file),
        "read": lambda: os.pread(file, 4, 0),
        "send": lambda: os.sendfile(os.pipe()[1], file, 0, 4),
        "splice": lambda: os.splice(file, os.pipe()[1], 4),
        "enter": lambda: os.fchdir(directory),
        "map": lambda: mmap.mmap(file, 4, mmap.MAP_PRIVATE, mmap.PROT_READ)[:4],
    }


def test_nobody_else_reads_the_images_while_a_tree_comes_back(
    tree: StartTree, dropin: DropIn, images: Path, tmp_path: Path
) -> None:
    """Neither by a path in /proc nor by a descriptor of the mount or of an image that was passed on."""
    running = tree(userns.MANY)
    dump(dropin, running, images)
    script = stopped(tmp_path, "post-setup-namespaces")
    command = ["restore", "-d", "-D", images, "--action-script", script, *running.options]
    restoring = dropin.start(*command, log=tmp_path / "log")
    sealed.wait_until(
        lambda: (tmp_path / "waits").exists() or restoring.poll() is not None, "CRIU waits"
    )
    everybody = [int(each.name) for each in Path("/proc").glob("[0-9]*")]
    paths = list(userns.views(everybody))
    assert paths, (tmp_path / "log").read_text()
    directory = os.open(paths[0], os.O_RDONLY)
    file = os.open("pstree.img", os.O_RDONLY, dir_fd=directory)
    try:
        calls = attempts(directory, file)
        calls |= {path: lambda path=path: os.listdir(path) for path in paths}
        for name, (become, uid_map) in userns.STRANGERS.items():
            got = {what: userns.outcome(call, become, uid_map) for what, call in calls.items()}
            assert set(got.values()) <= {"EACCES", "SIGBUS"}, (name, got)
        # Last: what root splices, the kernel keeps in its cache for those who have that very descriptor.
        root = {what: userns.outcome(call, lambda: None) for what, call in calls.items()}
        assert set(root.values()) == {"done"}, root
    finally:
        os.close(file)
        os.close(directory)
        (tmp_path / "goes-on").touch()
    assert restoring.wait(60) == 0, (tmp_path / "log").read_text()
    running.assert_intact()


# What an action script of CRIU's does: as root of the tree's namespace it reads an image, and tells how that went.
_IN_THE_NAMESPACE = """#!{python} -I
import sys
sys.path.insert(0, {root!r})
import ctypes, os
from tests.real import userns
action = os.environ["CRTOOLS_SCRIPT_ACTION"]
if action in ("post-setup-namespaces", "pre-resume"):
    everybody = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    directory = os.open(next(userns.views(everybody)), os.O_RDONLY)
    namespace = os.open(f"/proc/{{os.environ['CRTOOLS_INIT_PID']}}/ns/user", os.O_RDONLY)
    def become():
        assert ctypes.CDLL(None).setns(namespace, 0) == 0
        userns.user(0)()
    got = userns.outcome(lambda: os.open("pstree.img", os.O_RDONLY, dir_fd=directory), become)
    as_root = userns.outcome(lambda: os.open("pstree.img", os.O_RDONLY, dir_fd=directory), lambda: None)
    with open({said!r}, "a") as file:
        file.write(f"{{action}}: {{got}}, root {{as_root}}\\n")
"""


def test_what_was_restored_reads_no_image_any_more_when_it_may_run(
    tree: StartTree, dropin: DropIn, images: Path, tmp_path: Path
) -> None:
    running = tree(userns.MANY)
    dump(dropin, running, images)
    script, said = tmp_path / "script", tmp_path / "said"
    root = str(Path(__file__).parents[2])
    script.write_text(_IN_THE_NAMESPACE.format(python=sys.executable, root=root, said=str(said)))
    script.chmod(0o755)
    command = ["restore", "-d", "-D", images, "--action-script", script, *running.options]
    status, log = dropin.run(*command)
    assert status == 0, log
    assert said.read_text().splitlines() == [
        "post-setup-namespaces: done, root done",
        "pre-resume: EACCES, root done",
    ]
    running.assert_intact()
