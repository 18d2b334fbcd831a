"""What `receive` shows and removes in its directory: migrations, and nothing else that lies there."""

from __future__ import annotations

from pathlib import Path

import pytest

from sealpoint.errors import UsageError
from sealpoint.store import received

STRANGE = ["home", "lost+found", "20260101T000000Z", "x20260101T000000Z-a", ".hidden", "STATE"]


@pytest.mark.parametrize("name", STRANGE)
def test_a_directory_that_no_migration_made_is_not_listed_and_not_removed(
    tmp_path: Path, name: str
) -> None:
    inside = tmp_path / name / "below"
    inside.mkdir(parents=True)
    assert received.left(str(tmp_path)) == []
    with pytest.raises(UsageError, match="no migration"):
        received.remove(str(tmp_path), name)
    assert inside.is_dir()


@pytest.mark.parametrize("name", ["", ".", "..", "20260101T000000Z-a/../..", "/", "a\0b"])
def test_no_name_leads_out_of_the_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "keep" / "20260101T000000Z-a").mkdir(parents=True)
    with pytest.raises(UsageError, match="no migration"):
        received.remove(str(tmp_path / "keep"), name)
    assert (tmp_path / "keep" / "20260101T000000Z-a").is_dir()


def test_what_a_migration_made_is_listed_and_removed(tmp_path: Path) -> None:
    made = received.Received(str(tmp_path), "name")
    made.close()
    [left] = received.left(str(tmp_path))
    received.remove(str(tmp_path), Path(left.path).name)
    assert list(tmp_path.iterdir()) == []
