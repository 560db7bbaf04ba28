"""Prepared data that several machines share: made once, whole for each, whoever dies."""

import concurrent.futures
import errno
import fcntl
import itertools
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from buckets import serve_bucket
from fsspec.implementations.memory import MemoryFileSystem

from mdlm_jax import data
from mdlm_jax.data import cache, claims, stores
from mdlm_jax.data.tokens import encoding
from mdlm_jax.host import paths

NAME = "tiny-0123456789abcdef"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(claims, "POLL_SECONDS", 0.005)
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(claims, "SILENT_SECONDS", 5.0)


class Memory(MemoryFileSystem):
    """Objects in memory as a bucket has them: created and read whole by any number at once."""

    protocol = "memory"
    cachable = False
    one = threading.Lock()

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        with self.one:
            super().pipe_file(path, value, mode=mode, **kwargs)

    def get_file(self, rpath, lpath, **kwargs):  # Those that are open share one position.
        Path(lpath).write_bytes(self.cat_file(rpath))


@pytest.fixture
def bucket():
    system = Memory()
    system.store, system.pseudo_dirs = {}, [""]
    return stores.Store("memory://bucket/prepared", system, "/bucket/prepared", False)


def make(folder, contents=b"1 2 3", pause=0.0):
    """What a preparation leaves: files, and the card that tells their fingerprint."""
    (folder / "train-tokens.npy").write_bytes(contents)
    time.sleep(pause)
    (folder / "tokenizer.json").write_bytes(b"{}")
    card = {"fingerprint": data.prepared.fingerprint(folder), "format": 2}
    (folder / "data.json").write_text(json.dumps(card))


def whole(path):
    return (path / "data.json").is_file() and (path / "train-tokens.npy").read_bytes() == b"1 2 3"


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def at_once(*tasks):
    with concurrent.futures.ThreadPoolExecutor(len(tasks)) as pool:
        return [each.result(timeout=60) for each in [pool.submit(task) for task in tasks]]


@pytest.fixture(params=["bucket", "mounted"])
def machines(request, tmp_path, bucket, monkeypatch):
    """Four that share a bucket, or a folder on a file system without locks."""
    if request.param == "bucket":
        return [cache.Cache(tmp_path / str(host), bucket) for host in range(4)]

    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    return [cache.Cache(tmp_path, None)] * 4


def test_of_many_machines_one_makes_and_all_read(machines, bucket):
    made = []

    def slowly(folder):
        made.append(folder)
        make(folder, pause=0.2)

    paths = at_once(*(lambda host=host: host.obtain(NAME, slowly) for host in machines))
    assert len(made) == 1
    assert all(map(whole, paths))
    for folder in {host.folder for host in machines}:
        assert left(folder) == ["lock", NAME]
    assert not bucket.find("*.claim")


def test_what_one_machine_had_alone_is_given_to_all(tmp_path, bucket):
    alone = cache.Cache(tmp_path / "a", None)
    alone.obtain(NAME, make)
    cache.Cache(tmp_path / "a", bucket).obtain(NAME, lambda folder: pytest.fail("made again"))
    path = cache.Cache(tmp_path / "b", bucket).obtain(NAME, lambda folder: pytest.fail("made"))
    assert whole(path)


def test_the_bucket_wins_over_a_copy_that_differs(tmp_path, bucket):
    cache.Cache(tmp_path / "a", bucket).obtain(NAME, make)
    other = cache.Cache(tmp_path / "b", None).obtain(NAME, lambda folder: make(folder, b"4 5"))
    mapped = np.memmap(other / "train-tokens.npy", np.uint8, mode="r")
    assert whole(cache.Cache(tmp_path / "b", bucket).obtain(NAME, make))
    assert bytes(mapped) == b"4 5"  # A process that reads the old one is not disturbed.
    assert left(tmp_path / "b") == ["lock", NAME]


def test_an_upload_that_breaks_off_is_no_data(tmp_path, bucket, monkeypatch):
    host = cache.Cache(tmp_path / "a", bucket)
    with monkeypatch.context() as patch:
        put = stores.Store.put

        def breaking(store, source, name):
            if name.endswith("train-tokens.npy"):
                raise OSError("cannot write: the network is gone")
            put(store, source, name)

        patch.setattr(stores.Store, "put", breaking)
        with pytest.raises(OSError, match="the network is gone"):
            host.obtain(NAME, make)
    assert bucket.find(f"{NAME}/*") == [f"{NAME}/tokenizer.json"]
    made = []
    other = cache.Cache(tmp_path / "b", bucket)
    assert whole(other.obtain(NAME, lambda folder: (made.append(folder), make(folder))))
    assert made
    host.obtain(NAME, lambda folder: pytest.fail("made again"))


def test_a_damaged_bucket_is_told(tmp_path, bucket):
    cache.Cache(tmp_path / "a", bucket).obtain(NAME, make)
    bucket.write(f"{NAME}/train-tokens.npy", b"1 2 4")
    with pytest.raises(ValueError, match=rf"^memory://bucket/prepared/{NAME} is damaged: ") as told:
        cache.Cache(tmp_path / "b", bucket).obtain(NAME, make)
    assert "\n" not in str(told.value)
    assert left(tmp_path / "b") == ["lock"]


def test_a_machine_that_died_is_taken_over_from(tmp_path, bucket, monkeypatch, capsys):
    monkeypatch.setattr(claims, "SILENT_SECONDS", 0.1)
    bucket.create(f"{NAME}.claim", b"gone-1 token 3")
    assert whole(cache.Cache(tmp_path, bucket).obtain(NAME, make))
    told = capsys.readouterr().err
    assert "waiting for gone-1, which prepares data in memory://bucket/prepared" in told
    assert "gone-1 has gone silent" in told


def test_an_own_claim_of_before_a_kill_is_not_waited_for(tmp_path, bucket, capsys):
    tmp_path.joinpath("lock").write_text("abc")
    bucket.create(f"{NAME}.claim", f"{claims.host()}-abc token 3".encode())
    assert whole(cache.Cache(tmp_path, bucket).obtain(NAME, make))
    assert not capsys.readouterr().err


def test_a_holder_that_beats_is_waited_for(tmp_path, bucket, monkeypatch, capsys):
    """Time is counted in looks of who waits, so that a machine that stands still proves nothing."""
    looks = itertools.count()
    now = [0]

    def sleep(seconds):
        time.sleep(seconds)
        now[0] = next(looks)

    monkeypatch.setattr(claims, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now[0]))
    monkeypatch.setattr(claims, "SILENT_SECONDS", 30)
    hosts = [cache.Cache(tmp_path / "new" / name, bucket) for name in "ab"]
    begun = threading.Event()

    def slowly(folder):
        begun.set()
        for _ in range(6_000):
            if now[0] > 70:
                break
            time.sleep(0.01)
        make(folder)

    def second():
        assert begun.wait(60)
        return hosts[1].obtain(NAME, lambda folder: pytest.fail("taken over"))

    assert all(map(whole, at_once(lambda: hosts[0].obtain(NAME, slowly), second)))
    assert "silent" not in capsys.readouterr().err


def test_one_that_was_thought_dead_does_no_harm(machines, monkeypatch):
    monkeypatch.setattr(claims, "BEAT_SECONDS", 60)
    monkeypatch.setattr(claims, "SILENT_SECONDS", 0.1)
    first, second, *_ = machines
    begun, taken_over = threading.Event(), threading.Event()

    def stopped(folder):
        (folder / "train-tokens.npy").write_bytes(b"1")
        begun.set()
        assert taken_over.wait(60)
        make(folder)

    def take_over():
        assert begun.wait(60)
        path = second.obtain(NAME, make)
        taken_over.set()
        return path

    assert all(map(whole, at_once(lambda: first.obtain(NAME, stopped), take_over)))
    assert left(first.folder) == ["lock", NAME]


def test_what_killed_processes_left_is_removed_and_what_others_make_is_not(tmp_path):
    folder = tmp_path / "new" / "cache"
    folder.mkdir(parents=True)
    (folder / "lock").write_text("abc")
    mine, other = f"{claims.host()}-abc", "another-1"
    for name in (f"x.{mine}", f"{NAME}.{other}", NAME, f"x.{other}"):
        (folder / f"{name}.incomplete").mkdir()
    cache.Cache(folder, None).obtain(NAME, make)
    assert left(folder) == ["lock", NAME, f"x.{other}.incomplete"]


def test_work_that_was_done_while_it_was_claimed_is_not_done_again(tmp_path):
    answers = iter([False, True])
    store = stores.open_store(tmp_path)
    claim = claims.one_at_a_time(store, "x.claim", holder="me", done=lambda: next(answers))
    with claim as is_mine:
        assert not is_mine
    assert not left(tmp_path)


@pytest.fixture
def google(tmp_path, monkeypatch):
    """The client of Google Cloud Storage, whose server runs here."""
    import gcsfs

    gcsfs.GCSFileSystem.clear_instance_cache()
    with serve_bucket(tmp_path) as env:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        yield "gs://bucket/prepared"
    gcsfs.GCSFileSystem.clear_instance_cache()


def test_google_cloud_storage(tiny_config, tiny_corpus, tmp_path, monkeypatch, google, capsys):
    monkeypatch.setenv("MDLM_JAX_CACHE", google)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a"))
    first = data.prepare(tiny_config)
    assert first.path.parent == paths.cache_folder() == tmp_path / "a" / "mdlm_jax"

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    unreadable = tiny_corpus._replace(read=lambda cache_dir: pytest.fail("read again"))
    monkeypatch.setitem(data.SOURCES, "tiny", unreadable)
    second = data.prepare(tiny_config)
    assert second.path == tmp_path / "b" / "mdlm_jax" / first.path.name
    for path in first.path.iterdir():
        assert (second.path / path.name).read_bytes() == path.read_bytes()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert data.find_prepared("0" * 64) is None
    assert data.find_prepared(first.fingerprint).path.is_relative_to(tmp_path / "c")
    store = stores.open_store(google)
    assert store.create("x.claim", b"1") and store.find("*.claim") == ["x.claim"]
    store.remove("x.claim")
    store.remove("x.claim")  # Nobody minds that it is gone.
    with pytest.raises(OSError, match=r"^cannot write gs://nowhere/x/.*\.claim: "):
        data.prepare(tiny_config, "gs://nowhere/x")


@pytest.mark.parametrize(
    "place", ["~/a cache[1]", "file://{home}/a%20cache[1]", "{home}/a cache[1]"]
)
def test_a_folder_may_be_named_in_any_way(tmp_path, monkeypatch, place):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MDLM_JAX_CACHE", place.format(home=tmp_path))
    found = cache.open_cache(None)
    assert found == (tmp_path / "a cache[1]", None)
    path = found.obtain(NAME, make)
    assert whole(path) and [name for name, _ in found.names()] == [NAME]


def test_an_unknown_kind_of_bucket_is_told():
    with pytest.raises(ValueError, match=r"^cannot use nonsense://x: "):
        stores.open_store("nonsense://x")


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"line {number} of the text" for number in range(200)))
    config = data.Config(
        source="text_files", files=str(path), documents="line", tokenizer="bpe", vocab_size=300,
        length=16,
    )  # fmt: skip

    def encode(folder, splits, tokenizer):
        with path.open("a") as file:
            file.write("\none more")
        return encoding.encode_splits(folder, splits, tokenizer)

    with pytest.raises(ValueError, match=r"^source 'text_files' changed while it was read"):
        data.prepare(config, tmp_path / "cache", encode=encode)
    assert left(tmp_path / "cache") == ["lock"]
