"""What the commands share: config flags by name, and bad input told in one line."""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

BAD_INPUT = 2  # exit code: nothing was started, and starting again would not help
STOPPED = 75  # exit code: stopped by a signal, all is saved; start again to go on

_PACKAGE = Path(__file__).resolve().parent


def define_config() -> flags.FlagHolder:
    """`--config=NAME_OR_PATH`, and `--config.key=value` for every key of it."""
    return config_flags.DEFINE_config_file(
        "config",
        None,
        f"Name of a shipped config ({', '.join(sorted(shipped_configs()))}) or path of a config "
        "file. Any key of it can be changed: --config.training.steps=2000",
    )


def require(*names: str) -> None:
    """Makes flags required."""
    for name in names:
        flags.register_validator(name, lambda value: value is not None, f"--{name} is required")


def shipped_configs() -> dict[str, Path]:
    """The configs that come with the library, by name."""
    # In a wheel they lie in the package, in a clone beside it.
    folders = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
    return {path.stem: path for folder in folders for path in folder.glob("*.py")}


def run(main: Callable[[], int]) -> None:
    """Parses the flags and exits with what `main` returns; --help prints the flags."""
    if {"-h", "--help"} & {*sys.argv[1:]}:
        app.usage(shorthelp=True, writeto_stdout=True)
        return
    logging.set_verbosity(logging.WARNING)
    app.run(lambda _: main(), argv=_with_config_paths(sys.argv), flags_parser=_parse)


@contextlib.contextmanager
def bad_input() -> Iterator[None]:
    """Within it, what the rooms refuse becomes one line on stderr and exit code 2.

    Only around what checks and reads input: an error of the computation keeps its traceback.
    """
    try:
        yield
    except (ValueError, FileNotFoundError, NotADirectoryError, ImportError) as error:
        refuse(error)


def refuse(error: object) -> None:
    """Prints one line and exits with code 2."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(BAD_INPUT)


def _parse(argv: list[str]) -> list[str]:
    """absl's parsing, its complaints and those of ml_collections in one line."""
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        # absl begins with "flag --x=None: " what a validator says.
        told = re.sub(r"flag --\S+=None: ", "", str(error).removeprefix("FATAL "))
        refuse(f"{'; '.join(told.split(chr(10)))} (--help tells the flags)")
    except (AttributeError, KeyError) as error:  # how ml_collections refuses an override
        refuse(f"unknown config key: {' '.join(str(error.args[0]).split())}")
    except (TypeError, ValueError) as error:
        refuse(" ".join(str(error).split()))
    if len(rest) > 1:
        refuse(f"unexpected argument {rest[1]!r}: flags begin with --")
    return rest


def _with_config_paths(argv: list[str]) -> list[str]:
    """Replaces `--config=NAME` by the path of that config."""
    out = list(argv)
    for i, word in enumerate(out):
        flag, equals, value = word.partition("=")
        if flag in ("--config", "-config"):
            if equals:
                out[i] = f"{flag}={_config_path(value)}"
            elif i + 1 < len(out):
                out[i + 1] = _config_path(out[i + 1])
    return out


def _config_path(name: str) -> str:
    shipped = shipped_configs()
    if name in shipped:
        return str(shipped[name])
    if not Path(name).is_file():
        refuse(f"--config={name}: no such file, and the shipped configs are {', '.join(shipped)}")
    return name
