"""Compiled programs on disk: a command that ran before does not compile the same again."""

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
_LEAST_SECONDS = 0.2  # what compiles faster is compiled again
_LARGEST = 4 * 2**30  # bytes; what was used longest ago goes first


def keep() -> str | None:
    """Has jax keep what it compiles; the folder, None where it does not.

    Before anything is compiled, and after the processes of a job have found each other. Where jax's
    own variables say it, they decide. Else it is `folder(os.environ)`, unless that cannot be made
    or written, which is no reason to end.
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
    """Where compiled programs are kept, None where they are not.

    `$MDLM_JAX_COMPILED` says so; by default `compiled` in `paths.cache_folder()`. Of several
    processes only the first would write, and the others would wait for what it had no need to
    compile: then only a folder is taken that somebody named. In it each kind of processor has a
    folder of its own, for what was compiled for one may crash another.
    """
    named = environment.get(VARIABLE)
    if named == "off" or (processes > 1 and not named):
        return None
    place = Path(named).expanduser() if named else paths.cache_folder() / "compiled"
    return place / _processor()


def _processor() -> str:
    """A name of the processor's kind and abilities."""
    told = {platform.machine(), platform.processor()}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        wanted = ("model name", "flags", "Features", "CPU part")
        told |= {line for line in cpuinfo.read_text().splitlines() if line.startswith(wanted)}
    return hashlib.sha256("\n".join(sorted(told)).encode()).hexdigest()[:12]
