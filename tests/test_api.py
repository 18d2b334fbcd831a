"""The face of the package: cheap to import, equal to its documentation, and never more trusting than it was told."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import sealpoint as sp
from sealpoint.keys.generate import generate, generate_signer

PAGE = Path(__file__).parents[1] / "docs/reference/api.md"
IMAGES = {"inventory.img": b"inventory", "stats": b"statistics"}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A directory with keys, images and a configuration that names nobody."""
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in ("keys", "others"):
        (tmp_path / name).mkdir()
        generate("x25519", str(tmp_path / name))
        generate_signer(str(tmp_path / name))
    (tmp_path / "images").mkdir()
    for name, data in IMAGES.items():
        (tmp_path / "images" / name).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sealing(**changes):
    given = {"recipients": ["keys/recipient.pub"], "signer": "keys/signer.key"}
    return sp.Sealing(**(given | changes))


@pytest.fixture
def sealed(home):
    sp.seal("images", "app.sealed", sealing(), as_files=True)
    return home


def configure(home, text):
    path = home / "home/sealpoint/config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_the_import_loads_nothing_but_the_face():
    code = (
        "import sys; before = set(sys.modules); import sealpoint; dir(sealpoint); sealpoint.__version__\n"
        "print(*sorted(set(sys.modules) - before - {'__future__', 'typing'}))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"sealpoint.", "cryptography", "google", "click", "blake3", "dataclasses", "subprocess"}
    loaded = set(done.stdout.split()) - {"sealpoint.version"}
    assert "sealpoint" in loaded
    assert not [m for m in loaded if any(m.startswith(h) for h in heavy)]


def test_the_documentation_names_exactly_what_is_public():
    tables = re.findall(r"^\| (`.*?`) \|", PAGE.read_text(), re.MULTILINE)
    named = [n for cell in tables for n in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == sorted(sp.__all__)
    assert set(sp.__all__) <= set(dir(sp))
    for name in sp.__all__:
        assert getattr(sp, name) is not None


def test_what_is_not_public_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        sp.absent  # noqa: B018


def test_what_was_sealed_opens_and_verifies(sealed):
    with sp.Checkpoint.open(
        Path("app.sealed"), trust=["keys/signer.pub"], identities=[Path("keys/identity.key")]
    ) as checkpoint:
        checkpoint.verify()
        assert checkpoint.images["inventory.img"].read() == IMAGES["inventory.img"]
        assert list(checkpoint.tree()) == []
        assert [s.trusted for s in checkpoint.signers] == [True]


UNTRUSTED = {
    "nobody": {},
    "an empty list": {"trust": []},
    "an empty policy": {"trust": "empty"},
    "another": {"trust": ["others/signer.pub"]},
}


@pytest.mark.parametrize("case", UNTRUSTED)
def test_without_a_trusted_signer_nothing_opens(sealed, case):
    given = UNTRUSTED[case]
    if given.get("trust") == "empty":
        given = {"trust": sp.TrustPolicy()}
    with pytest.raises(sp.PolicyError):
        sp.Checkpoint.open("app.sealed", **given)


def test_the_configuration_says_whom_to_believe_where_the_call_does_not(sealed):
    configure(
        sealed,
        f'trust = ["{sealed}/keys/signer.pub"]\nidentities = ["{sealed}/keys/identity.key"]\n',
    )
    with sp.Checkpoint.open("app.sealed") as checkpoint:
        checkpoint.verify()
    for trust in ([], sp.TrustPolicy(), ["others/signer.pub"]):
        with pytest.raises(sp.PolicyError):
            sp.Checkpoint.open("app.sealed", trust=trust)


@pytest.mark.parametrize("trust", [None, [], ["keys/signer.pub"]])
def test_unsigned_is_said_by_itself(home, trust):
    sp.seal("images", "app.sealed", sealing(signer=None, unsigned=True), as_files=True)
    with pytest.raises(sp.PolicyError):
        sp.Checkpoint.open("app.sealed", trust=trust)
    sp.Checkpoint.open("app.sealed", trust=trust, allow_unsigned=True).close()


ERRORS = {
    "absent file": (lambda: sp.Checkpoint.open("absent", trust=["keys/signer.pub"]), sp.SealpointError),
    "directory": (lambda: sp.Checkpoint.open("images", trust=["keys/signer.pub"]), sp.SealpointError),
    "not sealed": (lambda: sp.Checkpoint.open("images/stats", trust=["keys/signer.pub"]), sp.FileError),
    "absent signer": (lambda: sp.Checkpoint.open("app.sealed", trust=["absent.pub"]), sp.SealpointError),
    "text for a list": (lambda: sp.Checkpoint.open("app.sealed", trust="keys/signer.pub"), sp.UsageError),
    "text for identities": (
        lambda: sp.Checkpoint.open("app.sealed", trust=["keys/signer.pub"], identities="keys/identity.key"),
        sp.UsageError,
    ),
    "no identity": (
        lambda: sp.Checkpoint.open("app.sealed", trust=["keys/signer.pub"]).verify(), sp.UsageError,
    ),
    "another's identity": (
        lambda: sp.Checkpoint.open(
            "app.sealed", trust=["keys/signer.pub"], identities=["others/identity.key"]
        ).verify(),
        sp.IdentityError,
    ),
    "absent source": (lambda: sp.seal("absent", "x.sealed", sealing()), sp.SealpointError),
    "absent directory": (lambda: sp.seal("images", "absent/x.sealed", sealing()), sp.SealpointError),
    "it is no checkpoint": (lambda: sp.seal("images", "x.sealed", sealing()), sp.FileError),
    "it exists": (lambda: sp.seal("images", "app.sealed", sealing()), sp.UsageError),
    "no such process": (lambda: sp.dump(2**31 - 1, "x.sealed", sealing(), criu=sys.executable), sp.SealpointError),
    "another workload": (
        lambda: sp.Checkpoint.open("app.sealed", trust=["keys/signer.pub"], workloads=["web"]), sp.PolicyError,
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_of_the_public_tree_and_leave_nothing(sealed, case):
    call, kind = ERRORS[case]
    before = sorted(sealed.iterdir())
    with pytest.raises(kind):
        call()
    assert sorted(sealed.iterdir()) == before
