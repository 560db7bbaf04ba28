"""Memory that is freed is given out again, and not cleared and mapped anew each time."""

import platform
import subprocess
import sys

import jax
import pytest

from mdlm_jax.host import host_memory

FAULTS = """
import resource
import numpy as np
from mdlm_jax import host_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(40 * 2**20, np.uint8)  # more than glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
assert host_memory.keep_freed()
faults()
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_what_was_freed_is_given_out_without_page_faults():
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    before, after = map(int, run.stdout.split())
    assert after < before / 10


def test_elsewhere_than_on_cpus_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(host_memory.ctypes, "CDLL", None)
    assert not host_memory.keep_freed()
