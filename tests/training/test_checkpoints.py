"""Checkpoints: what is kept, what is read back, and what is refused."""

import errno
import logging
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_regression as toy
from absl import logging as absl_logging
from toy_checkpoints import MESH, at, params_abstract, restore, save_all

from mdlm_jax.host import endings
from mdlm_jax.training import checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory, state):
    """A folder with a checkpoint of step 3, whose EMA is twice the parameters."""
    directory = tmp_path_factory.mktemp("saved")
    state = at(state, 3)._replace(ema=jax.tree.map(lambda x: 2 * x, state.params))
    save_all(directory, [state])
    return directory


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ({"keep_last": 2}, [6, 7]),
        ({"keep_last": 1, "keep_every": 3}, [3, 6, 7]),
        ({"keep_last": 20}, [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_policies_keep_what_they_say(tmp_path, state, policy, kept):
    save_all(tmp_path, [at(state, step) for step in range(1, 8)], **policy)
    assert checkpoints.list_steps(tmp_path) == kept
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == kept


@pytest.mark.parametrize("policy", [{"keep_last": 0}, {"keep_every": 0}])
def test_policies_that_keep_nothing_are_refused(tmp_path, policy):
    refused = pytest.raises(ValueError, match="keep_last and keep_every must be at least 1")
    with refused, checkpoints.open_checkpoints(tmp_path, **policy):
        pass


def test_restore_gives_the_newest_state(tmp_path, state):
    newest = at(state, 5)._replace(bad_steps=jnp.int32(2))
    save_all(tmp_path, [at(state, 4), newest])
    with checkpoints.open_checkpoints(tmp_path) as checkpointer:
        assert checkpoints.latest_step(checkpointer) == 5
        restored = checkpoints.restore(checkpointer, toy.abstract(MESH))
    assert jax.tree.structure(restored) == jax.tree.structure(newest)
    jax.tree.map(np.testing.assert_array_equal, restored, newest)
    assert jax.tree.map(lambda x: x.sharding, restored) == toy.shardings(MESH)


# What globs, URLs and shells would read otherwise than it stands there.
FOLDERS = ("sweep[1]", "*", "a b#c%20d läuft-早 {x}?y=1&z")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_may_have_any_name(tmp_path, state, name):
    with checkpoints.open_checkpoints(tmp_path / name) as checkpointer:
        checkpoints.save(checkpointer, at(state, 3))
        checkpoints.read_back(checkpointer, at(state, 3))
    assert checkpoints.list_steps(tmp_path / name) == [3]
    got, _ = checkpoints.restore_params(tmp_path / name, params_abstract())
    np.testing.assert_array_equal(got["kernel"], state.params["kernel"])
    checkpoints.save_params(tmp_path / name / "alone", got, item="ema", step=3)
    got, _ = checkpoints.restore_params(tmp_path / name / "alone", params_abstract())
    np.testing.assert_array_equal(got["kernel"], state.params["kernel"])


@pytest.mark.parametrize("lost", ["3", "3/step/manifest.ocdbt"])
def test_what_cannot_be_read_back_is_said_when_it_was_saved(tmp_path, state, lost):
    told = re.escape("cannot be read back (")
    with (
        pytest.raises(OSError, match=rf"{told}.*: '{tmp_path}/3'"),
        checkpoints.open_checkpoints(tmp_path) as checkpointer,
    ):
        checkpoints.save(checkpointer, at(state, 3))
        checkpointer.wait()
        path = tmp_path / lost
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        checkpoints.read_back(checkpointer, at(state, 3))


@pytest.mark.parametrize(
    ("error", "processes", "kept"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, True),
        (ValueError("[file_system='posix', os_error_code='28']: write failed"), 1, True),
        (ValueError("shapes differ"), 1, False),  # a fault of ours, not the system's
        (OSError(errno.ENOSPC, "No space left on device"), 2, False),  # which hold a part each
    ],
)
def test_what_the_system_refuses_is_saved_elsewhere(
    tmp_path, state, monkeypatch, capsys, error, processes, kept
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    with checkpoints.open_checkpoints(tmp_path / "run" / "checkpoints") as checkpointer:
        monkeypatch.setattr("jax.process_count", lambda: processes)
        refused = pytest.raises(type(error))
        with refused, checkpoints.rescuing(checkpointer, lambda: at(state, 4)):
            raise error
        monkeypatch.undo()
    assert ("step 4 is saved in" in capsys.readouterr().err) == kept
    folders = list(elsewhere.iterdir())
    assert len(folders) == kept
    for folder in folders:
        params, step = checkpoints.restore_params(folder, params_abstract(), item="params")
        assert step == 4
        np.testing.assert_array_equal(params["kernel"], state.params["kernel"])


def test_what_a_killed_save_left_is_removed_by_the_next(tmp_path, state):
    save_all(tmp_path, [at(state, 3)])
    shutil.copytree(tmp_path / "3", tmp_path / "5.orbax-checkpoint-tmp")
    save_all(tmp_path, [at(state, 6)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "6"]


def test_a_saved_state_survives_the_donation_of_its_arrays(tmp_path):
    step, state = toy.step(), toy.state()
    with checkpoints.open_checkpoints(tmp_path) as checkpointer:
        before = jax.device_get(jax.tree.map(jnp.copy, state.params))
        checkpoints.save(checkpointer, at(state, 1))
        for batch in [toy.batch(0)] * 5:
            state, _ = step(state, batch)
        checkpointer.wait()
        restored = checkpoints.restore(checkpointer, toy.abstract(MESH))
    jax.tree.map(np.testing.assert_array_equal, restored.params, before)


def test_saving_the_same_step_again_does_nothing(saved, state):
    save_all(saved, [at(state, 3)])
    assert checkpoints.list_steps(saved) == [3]
    ema, _ = checkpoints.restore_params(saved, params_abstract())
    np.testing.assert_array_equal(ema["kernel"], 2 * state.params["kernel"])


@pytest.mark.parametrize(("item", "factor"), [("ema", 2), ("params", 1)])
def test_parameters_are_read_without_the_optimizer(tmp_path, saved, state, item, factor):
    alone = tmp_path / "alone"
    for path in saved.rglob("*"):  # the checkpoint, less the optimizer's files
        if path.is_file() and "opt_state" not in path.parts:
            copy = alone / path.relative_to(saved)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    got, _ = checkpoints.restore_params(alone, params_abstract(), item=item, step=3)
    np.testing.assert_array_equal(got["kernel"], factor * state.params["kernel"])


def test_parameters_are_cast_to_the_dtype_asked_for(saved, state):
    half = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding),
        params_abstract(),
    )
    got, _ = checkpoints.restore_params(saved, half, item="params")
    np.testing.assert_array_equal(got["kernel"], state.params["kernel"].astype(jnp.bfloat16))


def test_no_checkpoint_is_said_in_one_line(tmp_path, saved):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*nowhere"):
        checkpoints.restore_params(tmp_path / "nowhere", params_abstract())
    assert not (tmp_path / "nowhere").exists()
    assert checkpoints.list_steps(tmp_path / "nowhere") == []
    with (
        checkpoints.open_checkpoints(tmp_path) as checkpointer,
        pytest.raises(FileNotFoundError, match="no checkpoint in"),
    ):
        checkpoints.restore(checkpointer, toy.abstract(MESH))
    with pytest.raises(FileNotFoundError, match=r"step 4 in .*, but of \[3\]"):
        checkpoints.restore_params(saved, params_abstract(), step=4)


def test_another_item_is_refused(saved):
    with pytest.raises(ValueError, match="item must be 'ema' or 'params', not 'opt_state'"):
        checkpoints.restore_params(saved, params_abstract(), item="opt_state")


def test_leaves_that_do_not_fit_are_named(saved):
    good = params_abstract()
    wide = jax.ShapeDtypeStruct((4, 3), jnp.float32, sharding=good["kernel"].sharding)
    for abstract, message in (
        ({**good, "kernel": wide}, r"ema: 'kernel' has shape \(4, 2\) in the .* but \(4, 3\) in"),
        ({"kernel": good["kernel"]}, "ema: 'bias' is in the checkpoint but not in the model"),
        ({**good, "scale": wide}, "ema: 'scale' is not in the checkpoint"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            checkpoints.restore_params(saved, abstract)
        assert "\n" not in str(error.value)


def test_padding_is_added_and_cut_off_where_that_is_allowed(tmp_path, saved, state):
    def padded(rows):
        return jax.tree.map_with_path(
            lambda path, x: (
                jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=x.sharding)
                if "kernel" in jax.tree_util.keystr(path)
                else x
            ),
            toy.abstract(MESH),
        )

    with checkpoints.open_checkpoints(saved) as checkpointer:
        with pytest.raises(ValueError, match=r"'kernel' has shape \(4, 2\) .* but \(6, 2\)"):
            checkpoints.restore(checkpointer, padded(6), padded=("bias",))
        longer = checkpoints.restore(checkpointer, padded(6), padded=("kernel",))
    np.testing.assert_array_equal(longer.params["kernel"][:4], state.params["kernel"])
    np.testing.assert_array_equal(longer.params["kernel"][4:], np.zeros((2, 2)))
    save_all(tmp_path, [longer])
    params, _ = checkpoints.restore_params(
        tmp_path, params_abstract(), item="params", padded=("kernel",)
    )
    np.testing.assert_array_equal(params["kernel"], state.params["kernel"])


def test_a_half_written_checkpoint_is_not_seen_and_is_removed(tmp_path, saved, state):
    save_all(tmp_path, [at(state, 1)])
    # What a process killed while saving step 2 leaves.
    leftover = tmp_path / "2.orbax-checkpoint-tmp"
    for path in (saved / "3").rglob("*"):
        if path.is_file() and path.name not in ("commit_success.txt", "_CHECKPOINT_METADATA"):
            copy = leftover / path.relative_to(saved / "3")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    assert checkpoints.list_steps(tmp_path) == [1]
    with checkpoints.open_checkpoints(tmp_path) as checkpointer:
        assert int(checkpoints.restore(checkpointer, toy.abstract(MESH)).step) == 1
        checkpoints.save(checkpointer, at(state, 2))
    assert checkpoints.list_steps(tmp_path) == [1, 2]
    assert not leftover.exists()


def test_saving_says_nothing_at_level_info(tmp_path, state):
    seen = []

    class Handler(logging.Handler):
        def emit(self, record):
            seen.append(record.getMessage())

    logger, handler = absl_logging.get_absl_logger(), Handler()
    level = absl_logging.get_verbosity()
    logger.addHandler(handler)
    logger.addFilter(endings.is_worth_telling)
    absl_logging.set_verbosity(absl_logging.INFO)
    try:
        save_all(tmp_path, [at(state, 1)])
        absl_logging.info("ours")
    finally:
        absl_logging.set_verbosity(level)
        logger.removeHandler(handler)
        logger.removeFilter(endings.is_worth_telling)
    assert seen == ["ours"]


def test_exported_parameters_are_read_as_such_and_not_trained_on(tmp_path, state):
    checkpoints.save_params(tmp_path, state.params, item="params", step=7)
    params, step = checkpoints.restore_params(tmp_path, params_abstract(), item="params")
    assert step == 7
    jax.tree.map(np.testing.assert_array_equal, params, state.params)
    with pytest.raises(ValueError, match="7 was exported: it holds only 'params'"):
        checkpoints.restore_params(tmp_path, params_abstract(), item="ema")
    with pytest.raises(ValueError, match="7 was exported: it holds only 'params'"):
        restore(tmp_path)
