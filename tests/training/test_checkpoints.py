import errno
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_regression as toy
from absl import logging as absl_logging

from mdlm_jax.host import endings, parallel
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


def restore(directory):
    with checkpoints.open_checkpoints(directory) as checkpointer:
        return checkpoints.restore(checkpointer, toy.abstract(MESH))


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


def test_exported_parameters_are_read_as_such_and_not_trained_on(tmp_path, state):
    checkpoints.save_params(tmp_path, state.params, item="params", step=7)
    params, step = checkpoints.restore_params(tmp_path, params_abstract(), item="params")
    assert step == 7
    jax.tree.map(np.testing.assert_array_equal, params, state.params)
    with pytest.raises(ValueError, match="7 was exported: it holds only 'params'"):
        checkpoints.restore_params(tmp_path, params_abstract(), item="ema")
    with pytest.raises(ValueError, match="7 was exported: it holds only 'params'"):
        restore(tmp_path)


MOVE = """
import sys
import jax, jax.numpy as jnp
import toy_regression as toy
from mdlm_jax import distributed, parallel
from mdlm_jax.training import checkpoints

directory, axes, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
distributed.initialize()
mesh = parallel.make_mesh(*map(int, axes.split("x")))
with checkpoints.open_checkpoints(directory) as checkpointer:
    if checkpoints.latest_step(checkpointer) is None:
        state = jax.device_get(toy.state()._replace(step=jnp.int32(1)))
        state = jax.device_put(state, toy.shardings(mesh))
    else:
        state = checkpoints.restore(checkpointer, toy.abstract(mesh))
        assert jax.tree.map(lambda x: x.sharding, state) == toy.shardings(mesh)
        print("restored", int(state.step))
    while int(state.step) <= last:
        checkpoints.save(checkpointer, state)
        state = state._replace(step=state.step + 1)
        checkpointer.wait()
"""


def move(directory, axes, last, devices, processes=1):
    """Restores in other processes onto a mesh, saves until step `last`; what they print."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    job = {"COORDINATOR_ADDRESS": address, "NUM_PROCESSES": str(processes)}
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", MOVE, directory, axes, str(last)],
            env={**environment, **({**job, "PROCESS_ID": str(i)} if processes > 1 else {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    outputs = [process.communicate() for process in started]
    for process, (_, errors) in zip(started, outputs, strict=True):
        assert process.returncode == 0, errors
    return outputs


def assert_holds(directory, step, expected):
    restored = restore(directory)
    assert int(restored.step) == step
    jax.tree.map(np.testing.assert_array_equal, restored._replace(step=expected.step), expected)


@pytest.mark.slow
def test_a_checkpoint_moves_between_meshes_and_to_fewer_devices(tmp_path, state):
    move(tmp_path, "2x2x2", last=1, devices=8)
    assert_holds(tmp_path, 1, state)  # here is one device, not those that its files name
    assert move(tmp_path, "4x1x2", last=2, devices=8)[0][0] == "restored 1\n"
    assert_holds(tmp_path, 2, state)
    assert move(tmp_path, "1x1x1", last=3, devices=1)[0][0] == "restored 2\n"
    assert move(tmp_path, "1x2x4", last=4, devices=8)[0][0] == "restored 3\n"
    assert_holds(tmp_path, 4, state)


@pytest.mark.slow
def test_a_checkpoint_moves_between_numbers_of_processes(tmp_path, state):
    move(tmp_path, "1x2x1", last=3, devices=1, processes=2)
    assert_holds(tmp_path, 3, state)
    for path in (tmp_path / "3").glob("opt_state/d/*"):
        path.unlink()
    (first, told), (second, silence) = move(tmp_path, "2x2x1", last=4, devices=2, processes=2)
    assert first.endswith("restored 2\n") and second.endswith("restored 2\n")  # after Gloo's
    assert "3 is damaged" in told and "damaged" not in silence
    assert checkpoints.list_steps(tmp_path) == [2, 3, 4]
    assert (tmp_path / "3.damaged").is_dir()
    assert_holds(tmp_path, 4, state)
