"""Compiled programs on disk, so that a command that ran before does not compile again."""

import hashlib
import importlib.util
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import jax

from mdlm_jax.host import paths

VARIABLE = "MDLM_JAX_COMPILED"  # a folder, or 'off'

_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
_SIZE = "JAX_COMPILATION_CACHE_MAX_SIZE"
_LEAST_SECONDS = 0.2  # programs that compile faster are not kept
_LARGEST = 4 * 2**30  # bytes; the least recently used goes first


def keep() -> str | None:
    """Makes jax keep what it compiles. Returns the folder, or None if nothing is kept.

    Call it before anything is compiled, and after the processes of a job have found each other. If
    jax's own variables are set, they decide. Otherwise it is `folder(os.environ)`, if that can be
    made and written; if not, the command goes on without.
    """
    if not jax.config.jax_enable_compilation_cache:
        return None
    if jax.config.jax_compilation_cache_dir:
        return jax.config.jax_compilation_cache_dir
    alone = not jax.distributed.is_initialized()  # and there need not be a device yet
    place = folder(os.environ, processes=1 if alone else jax.process_count())
    if place is None:
        return None
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(place, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(place))
    if not os.environ.get(_SECONDS):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    if not os.environ.get(_SIZE) and importlib.util.find_spec("filelock"):  # jax locks with it
        jax.config.update("jax_compilation_cache_max_size", _LARGEST)
    return str(place)


def folder(environment: Mapping[str, str], processes: int = 1) -> Path | None:
    """The folder of compiled programs, or None if they are not kept.

    It is `$MDLM_JAX_COMPILED`, or by default `compiled` in `paths.cache_folder()`. With several
    processes only the first would write, and the others could wait for a program that it does not
    compile. So there the folder must be named. Each kind of processor has its own folder within,
    because a program that was compiled for one may crash another.
    """
    named = environment.get(VARIABLE)
    if named == "off" or (processes > 1 and not named):
        return None
    place = Path(named).expanduser() if named else paths.cache_folder() / "compiled"
    return place / _processor()


def _processor() -> str:
    """A name for the processor's kind and features."""
    features = {platform.machine(), platform.processor()}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        wanted = ("model name", "flags", "Features", "CPU part")
        features |= {line for line in cpuinfo.read_text().splitlines() if line.startswith(wanted)}
    return hashlib.sha256("\n".join(sorted(features)).encode()).hexdigest()[:12]
