import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_regression as toy
from absl import logging as absl_logging

from mdlm_jax import parallel
from mdlm_jax.training import checkpoints

MESH = parallel.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def state():
    return toy.state()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, state):
    """A folder with a checkpoint of step 3, whose EMA is twice the parameters."""
    directory = tmp_path_factory.mktemp("saved")
    state = at(state, 3)._replace(ema=jax.tree.map(lambda x: 2 * x, state.params))
    save_all(directory, [state])
    return directory


def at(state, step):
    return state._replace(step=jnp.int32(step))


def save_all(directory, states, **policy):
    with checkpoints.open_checkpoints(directory, **policy) as checkpointer:
        for state in states:
            checkpoints.save(checkpointer, state)


def params_abstract():
    return toy.abstract(MESH).params


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
    ema = checkpoints.restore_params(saved, params_abstract())
    np.testing.assert_array_equal(ema["kernel"], 2 * state.params["kernel"])


@pytest.mark.parametrize(("item", "factor"), [("ema", 2), ("params", 1)])
def test_parameters_are_read_without_the_optimizer(tmp_path, saved, state, item, factor):
    alone = tmp_path / "alone"
    for path in saved.rglob("*"):  # the checkpoint, less the optimizer's files
        if path.is_file() and "opt_state" not in path.parts:
            copy = alone / path.relative_to(saved)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    got = checkpoints.restore_params(alone, params_abstract(), item=item, step=3)
    np.testing.assert_array_equal(got["kernel"], factor * state.params["kernel"])


def test_parameters_are_cast_to_the_dtype_asked_for(saved, state):
    half = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding),
        params_abstract(),
    )
    got = checkpoints.restore_params(saved, half, item="params")
    np.testing.assert_array_equal(got["kernel"], state.params["kernel"].astype(jnp.bfloat16))


def test_no_checkpoint_is_said_in_one_line(tmp_path, saved):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*there is no such folder"):
        checkpoints.restore_params(tmp_path / "nowhere", params_abstract())
    assert not (tmp_path / "nowhere").exists()
    assert checkpoints.list_steps(tmp_path / "nowhere") == []
    with (
        checkpoints.open_checkpoints(tmp_path) as checkpointer,
        pytest.raises(FileNotFoundError, match=r"no checkpoint in .*\(steps there: \[\]\)"),
    ):
        checkpoints.restore(checkpointer, toy.abstract(MESH))
    with pytest.raises(FileNotFoundError, match=r"step 4 in .*\(steps there: \[3\]\)"):
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
    absl_logging.set_verbosity(absl_logging.INFO)
    try:
        save_all(tmp_path, [at(state, 1)])
        absl_logging.info("ours")
    finally:
        absl_logging.set_verbosity(level)
        logger.removeHandler(handler)
    assert seen == ["ours"]


@pytest.mark.parametrize("name", ["manifest.ocdbt", "_METADATA", "d/*"])
def test_a_damaged_checkpoint_is_named_in_one_line_with_the_way_out(tmp_path, state, name):
    save_all(tmp_path, [at(state, 2), at(state, 5)])
    for path in (tmp_path / "5").rglob(name):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with (
        checkpoints.open_checkpoints(tmp_path) as checkpointer,
        pytest.raises(
            ValueError, match=r"/5 is damaged \(.*remove it to go on from step 2"
        ) as error,
    ):
        checkpoints.restore(checkpointer, toy.abstract(MESH))
    assert "\n" not in str(error.value)
