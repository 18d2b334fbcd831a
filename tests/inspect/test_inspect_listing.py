"""Whose checkpoint a file of kubelet's is, whatever dashes its name has, and only where that is without doubt."""

from __future__ import annotations

import json

import pytest

from sealpoint.inspect.listing import Whose
from tests.checkpoint.checkpoint_helpers import make_tar, member, seal_path
from tests.inspect import small_dump

TIME = "2026-01-02T04:00:00Z"


def name_of(pod: str, namespace: str, container: str, time: str = TIME, end: str = "tar") -> str:
    return f"checkpoint-{pod}_{namespace}-{container}-{time}.{end}"


# (pod, namespace, container): what kubelet makes a name of, and what of it the name alone says
NAMES = [
    (("shop", "prod", "web"), ("web", "shop", "prod")),
    (("my-shop-5d9f", "prod", "web"), ("web", "my-shop-5d9f", "prod")),
    (("shop", "prod-eu", "web"), ("", "shop", "")),
    (("shop", "prod", "my-web"), ("", "shop", "")),
    (("a-b", "c-d", "e-f"), ("", "a-b", "")),
    (("shop", "prod", "web-2024"), ("", "shop", "")),
    (("shop.example", "prod", "web"), ("web", "shop.example", "prod")),
]
ENDS = ("tar", "tar.gz", "tar.zst", "tar.sealed", "tar.gz.sealed")
TIMES = (TIME, "2026-01-02T04:00:00+05:30", "2026-01-02T04:00:00-08:00", "2026-01-02T04:00:00.5Z")


@pytest.mark.parametrize(("parts", "alone"), NAMES)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("time", TIMES)
def test_what_a_name_says(parts, alone, end, time) -> None:
    pod, namespace, container = parts
    name = name_of(*parts, time, end)
    assert Whose().by_file_name(name) == alone
    whole = (container, pod, namespace)
    assert Whose(namespace=namespace).by_file_name(name) == whole
    assert Whose(container).by_file_name(name) == whole
    assert Whose(*whole).by_file_name("other.tar") == whole
    contradicted = Whose("other", "pod", "else").by_file_name(name)
    assert contradicted == ("other", "pod", "else")


@pytest.mark.parametrize(
    "name",
    ["checkpoint.tar", "checkpoint-a_b-c.tar", f"checkpoint-a_b-{TIME}.tar", f"checkpoint-a-b-c-{TIME}.tar",
     f"checkpoint-a_b_c-d-{TIME}.tar", f"checkpoint-_b-c-{TIME}.tar", f"checkpoint-a_b-c-{TIME}.img",
     "checkpoint-a_b-c-2026.tar", "\udcff", "checkpoint-\udcff_b-c-2026.tar"],
)  # fmt: skip
def test_other_names_say_nothing(name) -> None:
    assert Whose().by_file_name(name) == ("", "", "")


def test_engines_names_say_all() -> None:
    told = Whose("k8s_my-web_a-shop_prod-eu_0b1c-2d_0").by_engine()
    assert told == ("my-web", "a-shop", "prod-eu")
    for name in ("web", "k8s_web", "k8s_a_b_c_d_e", "k8s__b_c_d_1"):
        assert Whose(name).by_engine() == (name, "", "")


def container_of(pod: str, namespace: str, container: str, *, known: str) -> dict[str, bytes]:
    """The files of an archive.  known: where they say whose it is: "annotations", "name" or nowhere."""
    files = small_dump.a_container()
    config = json.loads(files["config.dump"])
    config["name"] = f"k8s_{container}_{pod}_{namespace}_1-2_0" if known == "name" else ""
    del files["config.dump"], files["spec.dump"]
    if known == "name":
        files["config.dump"] = json.dumps(config).encode()
    elif known in ("cri-o", "containerd"):
        keys = {
            "cri-o": ("io.kubernetes.pod.name", "io.kubernetes.pod.namespace", "io.kubernetes.container.name"),
            "containerd": ("io.kubernetes.cri.sandbox-name", "io.kubernetes.cri.sandbox-namespace",
                           "io.kubernetes.cri.container-name"),
        }  # fmt: skip
        said = dict(zip(keys[known], (pod, namespace, container), strict=True))
        files["spec.dump"] = json.dumps({"annotations": said}).encode()
    return files


@pytest.mark.parametrize("known", ["cri-o", "containerd", "name", ""])
@pytest.mark.parametrize("parts", [parts for parts, _ in NAMES])
def test_what_is_inside_knows_better_than_the_name(run_cli, keys, tmp_path, parts, known) -> None:
    files = container_of(*parts, known=known)
    place = tmp_path / "list"
    place.mkdir()
    archive = place / name_of(*parts)
    archive.write_bytes(make_tar(*(member(n, d) for n, d in files.items())))
    seal_path(keys, archive, place / (archive.name + ".sealed"))
    alone = next(said for other, said in NAMES if other == parts)
    told = json.loads(run_cli("list", place, "--json").out)
    pod, namespace, container = parts
    whole = (container, pod, namespace) if known else alone
    for one, expected in zip(
        told, (whole, alone), strict=True
    ):  # without a key, a sealed file's name alone
        assert (one.get("container", ""), one.get("pod", ""), one.get("namespace", "")) == expected
    opening = ["-i", keys.identity_path, "--trust", keys.trust_path]
    opened = json.loads(run_cli("list", place, "--json", *opening).out)[1]
    assert (
        opened.get("container", ""),
        opened.get("pod", ""),
        opened.get("namespace", ""),
    ) == whole
