"""Counts what jax traces and compiles."""

import contextlib

import jax

_OF_PROGRAMS = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def counted():
    """Yields a list that gets an entry for each program that is compiled, or read from a cache."""
    found = []

    def listen(event, seconds, **_):
        if event == _OF_PROGRAMS:
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
