"""MLflow's registry on a SQLite file, as it is."""

import json
import shutil
from pathlib import Path

import exported
import jax
import numpy as np
import pytest

import mdlm_jax
from mdlm_jax.serving.versions import references, registry, storage
from mdlm_jax.writing.requests import Options

pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return exported.write(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A database without versions: its tables take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        file = tmp_path_factory.mktemp("empty") / "mlflow.db"
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
        assert registry.list_versions(registry.connect()) == []
    return file


@pytest.fixture
def client(empty, tmp_path, monkeypatch):
    shutil.copy(empty, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return registry.connect()


@pytest.fixture(scope="module")
def with_three(empty, run_folder, tmp_path_factory):
    """A database with three versions: steps 1, 2 and 3."""
    file = Path(shutil.copy(empty, tmp_path_factory.mktemp("three")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
        for steps in (1, 2, 3):
            register(registry.connect(), run_folder, steps=steps)
    return file


@pytest.fixture
def three(with_three, tmp_path, monkeypatch):
    """A client of a copy; the artifacts stay where they are."""
    shutil.copy(with_three, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return registry.connect()


def register(client, folder, name="tiny", dtype=None, **options):
    return registry.register(client, name, str(folder), Options(**options), dtype=dtype)[0]


def find(client, text):
    return registry.find(client, references.parse(text))


def test_a_version_is_stored_and_found_again(client, run_folder, tmp_path):
    made, is_new = registry.register(
        client, "tiny", str(run_folder), Options(steps=3, temperature=0.5), dtype="bfloat16"
    )
    assert is_new and (made.name, made.number) == ("tiny", 1)
    found = find(client, "models:/tiny/1")
    assert found == made
    model = storage.load(client, found)
    assert model.encoder.dtype == "bfloat16"
    text = "wool [MASK] [MASK] honey"
    assert model.fill(text, steps=2, seed=3) == storage.load(client, made).fill(
        text, steps=2, seed=3
    )
    # Beside the database, wherever the command was started.
    assert storage.fetch(client, found).is_relative_to(tmp_path / "mlruns")


def test_the_same_version_keeps_its_number(three, run_folder, tmp_path):
    copied = tmp_path / "elsewhere"
    shutil.copytree(run_folder, copied)
    again, is_new = registry.register(three, "tiny", str(copied), Options(steps=3))
    assert not is_new and again == find(three, "models:/tiny/3")
    assert register(three, run_folder, name="other", steps=3).number == 1


def test_versions_of_one_model_share_what_is_stored(three, run_folder, with_three):
    half = register(three, run_folder, steps=3, dtype="bfloat16")
    made = registry.list_versions(three)
    assert made[-1] == half and [each.number for each in made] == [1, 2, 3, 4]
    assert len({each.version.digest for each in made}) == 4
    assert len({storage.fetch(three, each) for each in made}) == 1
    assert len([*(with_three.parent / "mlruns").iterdir()]) == 1


@pytest.mark.slow
def test_an_upload_that_was_cut_off_is_not_used(client, run_folder):
    made = register(client, run_folder, steps=1)
    client.update_run(made.run_id, status="RUNNING")
    assert register(client, run_folder, steps=2).run_id != made.run_id


def test_aliases_are_promoted_and_rolled_back(three):
    client = three
    with pytest.raises(ValueError, match="champion not found"):
        find(client, "models:/tiny")
    assert registry.promote(client, "tiny", 1) is None
    assert registry.promote(client, "tiny", 3) == 1
    assert registry.promote(client, "tiny", 3) == 3  # which is nothing to go back from
    assert registry.promote(client, "tiny", 2) == 3
    assert registry.promote(client, "tiny", 1, "challenger") is None
    assert find(client, "models:/tiny@champion").number == 2
    assert find(client, "models:/tiny").number == 2
    assert find(client, "models:/tiny@challenger").aliases == ("challenger",)
    assert registry.rollback(client, "tiny") == (2, 3)
    assert registry.rollback(client, "tiny") == (3, 1)
    assert find(client, "models:/tiny@champion").aliases == ("challenger", "champion")
    with pytest.raises(ValueError, match=r"tiny@champion is version 1, and was no other before"):
        registry.rollback(client, "tiny")
    registry.promote(client, "tiny", 2)
    assert registry.rollback(client, "tiny") == (2, 1)


def test_a_promotion_that_was_cut_off_is_none(three, monkeypatch):
    client = three
    registry.promote(client, "tiny", 1)
    registry.promote(client, "tiny", 2)

    class Killed(Exception):
        pass

    def killed(*_):
        raise Killed

    monkeypatch.setattr(client, "set_registered_model_alias", killed)
    with pytest.raises(Killed):
        registry.promote(client, "tiny", 1)
    monkeypatch.undo()
    assert find(client, "models:/tiny").number == 2
    assert registry.rollback(client, "tiny") == (2, 1)


def test_traffic_is_kept_with_the_name(three):
    client = three
    for number, alias in ((1, "champion"), (2, "challenger")):
        registry.promote(client, "tiny", number, alias)
    assert registry.names(client, "tiny").traffic == {}
    registry.split(client, "tiny", {"champion": 0.9, "challenger": 0.1})
    assert registry.names(client, "tiny") == (
        {"champion": 1, "challenger": 2},
        {"champion": 0.9, "challenger": 0.1},
    )
    with pytest.raises(ValueError, match="tiny has no alias 'other': there are ch"):
        registry.split(client, "tiny", {"other": 1.0})
    with pytest.raises(ValueError, match="all shares are 0"):
        registry.split(client, "tiny", {"champion": 0.0})
    registry.split(client, "tiny", {})
    assert registry.names(client, "tiny").traffic == {}


def test_all_versions_are_listed_in_order(three, run_folder):
    register(three, run_folder, name="first", steps=1)
    registry.promote(three, "tiny", 2)
    listed = registry.list_versions(three)
    wanted = [("first", 1), ("tiny", 1), ("tiny", 2), ("tiny", 3)]
    assert [(each.name, each.number) for each in listed] == wanted
    assert [each.aliases for each in listed] == [(), (), ("champion",), ()]
    assert [each.name for each in registry.list_versions(three, "first")] == ["first"]


def test_what_others_registered_is_left_alone(client, run_folder, tmp_path):
    client.create_registered_model("theirs")
    client.create_model_version("theirs", source=str(tmp_path))
    assert registry.list_versions(client) == []
    with pytest.raises(ValueError, match=r"models:/theirs/1 is not of mdlm_jax"):
        find(client, "models:/theirs/1")


def test_bytes_that_were_changed_are_refused(client, run_folder):
    made = register(client, run_folder, steps=1)
    folder = storage.fetch(client, made)
    config = json.loads((folder / "config.json").read_text())
    config["data"]["length"] = 12
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"tiny, version 1: its tokenizer or config in"):
        storage.load(client, made)
    (version,) = folder.parent.glob("versions/*/version.json")
    version.write_text(version.read_text().replace('"steps": 1', '"steps": 9'))
    with pytest.raises(ValueError, match=r"tiny, version 1: .*version.json is not what was regis"):
        find(client, "models:/tiny/1")


def test_a_checkpoint_of_hugging_face_is_registered(client):
    from interop import test_golden

    made = register(client, test_golden.GOLDEN / "bert", name="bert", steps=2)
    direct = mdlm_jax.load(test_golden.GOLDEN / "bert")
    loaded = storage.load(client, made)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, direct.params)
    assert loaded.model.framed and direct.model.framed


@pytest.mark.parametrize("name", ["", "a/b", "it's", "a b"])
def test_a_name_that_no_reference_could_hold_is_refused(name, client, run_folder):
    with pytest.raises(ValueError, match="name must be letters, digits, dots, - and _, not"):
        register(client, run_folder, name=name)


def test_a_run_that_is_not_there_registers_nothing(client, tmp_path):
    with pytest.raises((ValueError, OSError), match="none"):
        register(client, tmp_path / "none")
    assert not client.search_registered_models()


def test_a_server_that_is_away_is_told_in_one_line(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConnectionError, match=r"^MLflow at http://127.0.0.1:9 does not answer"):
        registry.list_versions(registry.connect())
