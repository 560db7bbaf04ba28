"""Damaged checkpoints: named, and the one before them used."""

import errno
import shutil
from pathlib import Path

import pytest
import toy_regression as toy
from toy_checkpoints import MESH, at, params_abstract, restore, save_all

from mdlm_jax.training import checkpoints

pytestmark = pytest.mark.slow  # writes and restores checkpoints


@pytest.fixture(scope="module")
def two(tmp_path_factory, state):
    """A folder with checkpoints of steps 2 and 5."""
    directory = tmp_path_factory.mktemp("two")
    save_all(directory, [at(state, 2), at(state, 5)])
    return directory


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    middle = path.stat().st_size // 2
    path.write_bytes(path.read_bytes()[:middle] + b"\xa5\xa5" + path.read_bytes()[middle + 2 :])


DAMAGES = [
    (halve, "opt_state/_METADATA"),
    (halve, "*/manifest.ocdbt"),
    (halve, "params/d/*"),
    (flip, "ema/d/*"),
    (flip, "step/manifest.ocdbt"),
    (Path.unlink, "params/_METADATA"),
    (Path.unlink, "params/manifest.ocdbt"),
    (Path.unlink, "opt_state/d/*"),
    (shutil.rmtree, "opt_state"),
    (shutil.rmtree, "step"),
    (shutil.rmtree, "*"),
]


@pytest.mark.parametrize(
    ("damage", "files"), DAMAGES, ids=[f"{d.__name__} {f}" for d, f in DAMAGES]
)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path, two, capfd, damage, files
):
    shutil.copytree(two, tmp_path / "run")
    for path in [
        p for p in (tmp_path / "run" / "5").glob(files) if damage != shutil.rmtree or p.is_dir()
    ]:
        damage(path)
    with checkpoints.open_checkpoints(tmp_path / "run") as checkpointer:
        assert int(checkpoints.restore(checkpointer, toy.abstract(MESH)).step) == 2
        assert checkpoints.latest_step(checkpointer) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"warning: checkpoint {tmp_path}/run/5 is damaged (")
    assert line.endswith("): going back to step 2") and len(line) < 400
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["2", "5.damaged"]


def test_the_step_of_a_damaged_checkpoint_is_saved_again(tmp_path, two, state):
    shutil.copytree(two, tmp_path / "run")
    (tmp_path / "run" / "5" / "params" / "_METADATA").unlink()
    with checkpoints.open_checkpoints(tmp_path / "run") as checkpointer:
        checkpoints.restore(checkpointer, toy.abstract(MESH))
        checkpoints.save(checkpointer, at(state, 5))
    assert int(restore(tmp_path / "run").step) == 5
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["2", "5", "5.damaged"]


@pytest.mark.parametrize("files", ["*/_sharding", "_CHECKPOINT_METADATA", "*/ocdbt.process_0/*"])
def test_a_checkpoint_that_lacks_only_what_is_not_needed_is_whole(tmp_path, two, files):
    shutil.copytree(two, tmp_path / "run")
    for path in (tmp_path / "run" / "5").glob(files):
        if path.is_file():
            halve(path)
    assert int(restore(tmp_path / "run").step) == 5


def test_readers_go_back_and_change_nothing(tmp_path, two, capfd):
    shutil.copytree(two, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "5" / "ema" / "d")
    before = sorted(tmp_path.rglob("*"))
    assert checkpoints.restore_params(tmp_path / "run", params_abstract())[1] == 2
    assert "5 is damaged" in capfd.readouterr().err
    assert checkpoints.restore_params(tmp_path / "run", params_abstract(), item="params")[1] == 5
    with pytest.raises(ValueError, match=r"5 is damaged .*there is none before it"):
        checkpoints.restore_params(tmp_path / "run", params_abstract(), step=5)
    assert sorted(tmp_path.rglob("*")) == before


def test_where_all_are_damaged_nothing_is_moved(tmp_path, two):
    shutil.copytree(two, tmp_path / "run")
    for path in (tmp_path / "run").rglob("manifest.ocdbt"):
        path.unlink()
    with pytest.raises(
        ValueError, match=r"5 is damaged .*; checkpoint .*2 is damaged .*: there is none before it"
    ) as error:
        restore(tmp_path / "run")
    assert "\n" not in str(error.value)
    assert checkpoints.list_steps(tmp_path / "run") == [2, 5]


def test_what_the_system_refuses_is_no_damage(tmp_path, two):
    """A full table of files, a server that is away: the newest checkpoint must not be given up."""
    shutil.copytree(two, tmp_path / "run")
    manifest = tmp_path / "run" / "5" / "params" / "manifest.ocdbt"
    manifest.unlink()
    manifest.symlink_to(manifest.name)
    with pytest.raises(OSError) as error:
        restore(tmp_path / "run")
    assert error.value.errno == errno.ELOOP
    assert checkpoints.list_steps(tmp_path / "run") == [2, 5]
