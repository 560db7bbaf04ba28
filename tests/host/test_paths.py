"""What is written is whole or not there; pipes and devices are written to and stay what they are.

No test touches a device: named pipes and links to this process' own streams stand for them.
"""

import os
import stat
import subprocess
import sys
import threading

import pytest

from mdlm_jax.host import paths


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "a[1] é.txt"
    paths.write(file, "older")
    file.chmod(0o640)
    paths.write(file, "new é \ud800")
    assert file.read_text(encoding="utf-8") == "new é \\ud800"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    (tmp_path / "link").symlink_to(file)
    paths.write(str(tmp_path / "link"), b"linked")
    assert (tmp_path / "link").is_symlink() and file.read_bytes() == b"linked"
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        paths.write(tmp_path, "lost")
    with pytest.raises(NotADirectoryError):
        paths.write(file / "within", "lost")
    assert sorted(each.name for each in tmp_path.iterdir()) == [file.name, "link"]


def test_what_is_cut_short_leaves_the_older_file(tmp_path, monkeypatch):
    file = tmp_path / "file"
    paths.write(file, "older")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paths.Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        paths.write(file, "new")
    assert [each.name for each in tmp_path.iterdir()] == ["file"] and file.read_text() == "older"


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        read = []
        reader = threading.Thread(target=lambda read=read: read.append(pipe.read_bytes()))
        reader.start()
        paths.write(path, "whole")
        reader.join()
        assert read == [b"whole"] and stat.S_ISFIFO(pipe.stat().st_mode) and link.is_symlink()
    assert len([*tmp_path.iterdir()]) == 2


def test_devices_are_streams_and_files_and_folders_are_none(tmp_path):
    (tmp_path / "file").write_text("")
    assert paths.is_stream("/dev/null") and paths.is_stream("/dev/tty") is not None
    for path in (tmp_path, tmp_path / "file", tmp_path / "missing", "gs://bucket/file"):
        assert not paths.is_stream(path)


PRINTS = """
import os, sys
from mdlm_jax import paths
link, file = sys.argv[1:]
for _ in "to a pipe", "into a file":
    print("before")
    paths.check_output(link, kinds=(".html",))
    paths.write(link, "within\\n")
    print("behind", flush=True)
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), 1)
"""


def test_what_the_process_prints_to_is_written_between(tmp_path):
    """A link as /dev/stdout is one; where the shell sent it into a file nothing of it is cut."""
    link, file = tmp_path / "stdout", tmp_path / "printed"
    link.symlink_to("/proc/self/fd/1")
    done = subprocess.run([sys.executable, "-c", PRINTS, link, file], stdout=-1, check=True)
    assert done.stdout == file.read_bytes() == b"before\nwithin\nbehind\n"
    assert link.is_symlink()


OUTPUTS = {
    "folder": ("", "--html={}/: a folder is there, it must be a file"),
    "kind": ("c.pdf", "--html={}/c.pdf: what is written there is .html or .htm: name it so"),
    "no folder": ("gone/c.html", "--html={0}/gone/c.html: there is no folder {0}/gone"),
    "file for a folder": ("file/c.html", "--html={0}/file/c.html: there is no folder {0}/file"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_cannot_be_written_is_said_at_once(tmp_path, name):
    (tmp_path / "file").write_text("")
    path, told = OUTPUTS[name]
    with pytest.raises(ValueError) as error:
        paths.check_output(f"{tmp_path}/{path}", "--html", kinds=(".html", ".htm"))
    assert str(error.value) == told.format(tmp_path)


@pytest.mark.parametrize("path", ["new.html", "OLD.HTM", "pipe.pdf"])
def test_what_can_be_written_is_accepted(tmp_path, path):
    (tmp_path / "OLD.HTM").write_text("")
    os.mkfifo(tmp_path / "pipe.pdf")
    paths.check_output(tmp_path / path, kinds=(".html", ".htm"))
    paths.check_output("gs://bucket/page.html")


def test_letters_of_patterns_are_letters_of_a_folder(tmp_path):
    folder = paths.literal(tmp_path / "a[1]*?")
    folder.mkdir()
    (folder / "x1.txt").write_text("")
    (folder / "x[1].txt").write_text("")
    assert sorted(each.name for each in folder.glob("x*.txt")) == ["x1.txt", "x[1].txt"]
    assert [*(folder / "x[1].txt").parent.absolute().glob("x[1].*")] == [folder / "x1.txt"]
