"""What the commands share: config flags by name, and one line for what a person has to mend."""

import contextlib
import itertools
import platform
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import ml_collections
from absl import app, flags
from etils import epath
from ml_collections import config_flags

from mdlm_jax.host import compilation, distributed, endings, nearest, parallel, paths

flags.disclaim_key_flags()  # what is defined here is of the command that asks for it

BAD_INPUT = 2  # exit code: nothing was started, and starting again would not help
STOPPED = 75  # exit code: stopped by a signal, all is saved; start again to go on
NOT_FINITE = 76  # exit code: the updates stopped being finite, and would again
NOT_READ = 141  # exit code: nobody read what was printed, and there was nothing else to do

_PACKAGE = Path(__file__).resolve().parents[1]
_FLAG = ("--config", "-config")
_WORKDIR = ("--workdir", "-workdir")
_OF_RUN = _PACKAGE / "runs" / "config_of_run.py"
_PYTHON = platform.python_version()
_RAISED = "Error whilst parsing config file"  # in ml_collections' words for it


def define_config() -> flags.FlagHolder:
    """`--config=NAME_OR_PATH`, and `--config.key=value` for every key of it.

    The path is that of a Python file with `get_config()`, or of the config.json of a run. A key
    that is unknown is refused with those that there are.
    """
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        f"Name of a shipped config ({', '.join(sorted(shipped_configs()))}) or path of a config "
        "file, or of the config.json of a run. Any key of it can be changed: "
        "--config.training.steps=2000",
    )
    flag = flags.FLAGS[holder.name]
    flag.parser = _KnownKeys(flag.parser)
    return holder


def define_path(name: str, default: str | None, help: str) -> flags.FlagHolder:
    """A flag that names a file or folder: `~` and `file://` are written out."""
    return flags.DEFINE(_PathParser(), name, default, help, serializer=flags.ArgumentSerializer())


def chosen_config(holder: flags.FlagHolder) -> dict[str, Any]:
    """The config of the flag, as plain dicts.

    Raises:
      ValueError: the config file returned something else.
    """
    config = holder.value
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(
            f"get_config() of the config file returned {config!r}: it must begin with "
            "mdlm_jax.experiment.default_config() and return that"
        )
    return config.to_dict()


def given_keys(holder: flags.FlagHolder) -> frozenset[str]:
    """The keys of the config that the command line sets, as `training.steps`."""
    return frozenset(config_flags.get_override_values(flags.FLAGS[holder.name]))


def define_step() -> flags.FlagHolder:
    """`--step=N` or `--step=best`, of a run."""
    return flags.DEFINE_string(
        "step",
        None,
        "Of which checkpoint: the number of its step, or best, by validation; the newest by "
        "default.",
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


def version() -> str:
    """This version and what it runs on, in one line."""
    ours = sys.modules["mdlm_jax"].__version__  # of the package above, which imports all rooms
    return f"mdlm_jax {ours} (jax {jax.__version__}, Python {_PYTHON})"


def run(main: Callable[..., int], *, words: bool = False, goes_on: bool = False) -> None:
    """Parses the flags and exits with what `main` returns.

    --help prints the flags, --version the version.

    Args:
      main: called with nothing, or with the list of the words that are no flags.
      words: whether it takes such words.
      goes_on: whether `--workdir` of a run stands for `--config` of its config.json, where no
        config is given.
    """
    endings.take_over()
    if {"-h", "--help"} & {*sys.argv[1:]}:
        app.usage(shorthelp=True, writeto_stdout=True)
        print("\n\n--version prints the version, --helpfull the flags of the libraries too.")
        return
    if "--version" in sys.argv[1:]:
        print(version())
        return

    def parse(argv: list[str]) -> list[str]:
        rest = _parse(argv)
        if len(rest) > 1 and not words:
            refuse(f"unexpected argument {rest[1]!r}: flags begin with --")
        return rest

    # ml_collections looks for the keys of a config in `sys.argv` itself.
    sys.argv = _with_config_paths(_with_own_config(sys.argv) if goes_on else sys.argv)
    app.run(lambda argv: main(argv[1:]) if words else main(), flags_parser=parse)


def join_job(heartbeat_seconds: int = 100) -> None:
    """Joins the processes of a job, and has programs kept that are compiled from here on.

    Raises:
      ValueError: as `distributed.initialize`, or there is no device.
    """
    distributed.initialize(heartbeat_seconds)
    parallel.available_devices()
    compilation.keep()


def compiling() -> str:
    """What a command shows while it compiles, with the place where that is kept."""
    place = jax.config.jax_compilation_cache_dir
    return f"compiling (kept in {place})" if place else "compiling"


@contextlib.contextmanager
def bad_input() -> Iterator[None]:
    """Within it, what the rooms refuse becomes one line on stderr and exit code 2.

    Only around what checks and reads input: an error of the computation keeps its traceback.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        refuse(endings.one_line(error))


def refuse(error: object) -> NoReturn:
    """Prints one line and exits with code 2."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(BAD_INPUT)


class _UnknownKey(flags.Error):
    """A key that the config does not have."""


class _KnownKeys(flags.ArgumentParser):
    """Parses a config file as another parser does; refuses unknown keys of the command line."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser
        self.name = parser.name

    def parse(self, argument: str) -> Any:
        """The config of a path.

        Raises:
          _UnknownKey: the command line sets a key that it does not have.
        """
        config = self._parser.parse(argument)
        if isinstance(config, ml_collections.ConfigDict):
            for word in flags.FLAGS.read_flags_from_files(sys.argv[1:], force_gnu=False):
                if named := re.match(r"--?(?:no)?config\.([^=]+)", word):
                    _check_key(config, named[1])
        return config

    def flag_type(self) -> str:
        """For --help."""
        return self._parser.flag_type()


class _PathParser(flags.ArgumentParser):
    """A path as `paths.plain` has it."""

    syntactic_help = "a path"

    def parse(self, argument: str) -> str:
        """The path."""
        return paths.plain(argument)

    def flag_type(self) -> str:
        """For --help."""
        return "path"


def _check_key(config: ml_collections.ConfigDict, key: str) -> None:
    section = config
    for depth, part in enumerate(key.split(".")):
        place = ".".join(key.split(".")[:depth])
        if not isinstance(section, ml_collections.ConfigDict):
            raise _UnknownKey(f"unknown config key {key}: {place} is no section")
        if part not in section:
            names = [*_dotted(config)]
            same = [name for name in names if name.rpartition(".")[2] == key.rpartition(".")[2]]
            raise _UnknownKey(
                f"unknown config key {key}{nearest.meant(key, same or names)}: "
                f"{f'{place} has' if place else 'there are'} {', '.join(section)}"
            )
        section = section[part]


def _dotted(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[str]:
    """Every key of a config, as `training.steps`."""
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _parse(argv: list[str]) -> list[str]:
    """absl's parsing, its complaints and those of ml_collections in one line."""
    try:
        return flags.FLAGS(argv)
    except _UnknownKey as error:
        refuse(error)
    except flags.Error as error:
        refuse(f"{_flag_error(error, argv)} (--help lists the flags)")
    except Exception as error:  # of the user's config file, or how ml_collections refuses a key
        refuse(_config_error(error, argv))


def _flag_error(error: flags.Error, argv: list[str]) -> str:
    """What absl complains of; of a config file that raised, what and where."""
    if _RAISED in str(error):  # with a traceback
        cause: BaseException = error
        while _RAISED in str(cause) and cause.__context__ is not None:
            cause = cause.__context__
        # Of the file that reads a run's config, which the user never named, its words alone.
        of_run = str(_OF_RUN) in str(error)
        return endings.one_line(cause) if of_run else _config_error(cause, argv)
    # absl begins with "flag --x=None: " what a validator says.
    message = re.sub(r"flag --\S+=None: ", "", str(error).removeprefix("FATAL "))
    return "; ".join(message.split("\n"))


def _config_error(error: Exception, argv: list[str]) -> str:
    """What is wrong in the config file, with its line, or else the key that is unknown."""
    # ml_collections quotes its own message once more.
    message = str(error.args[0] if error.args else error).replace("\\n", " ").replace("\\'", "'")
    message = " ".join(message.split()).strip("'")
    if "no attribute 'get_config" in message:
        return "the config file defines no get_config()"
    if isinstance(error, SyntaxError):
        if error.filename is None:  # bytes that Python takes for no text
            return f"{_config_of(argv)} is no UTF-8 text: {error.msg}"
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    words = " ".join(argv)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.endswith(".py") and frame.filename in words:
            return f"{frame.filename}, line {frame.lineno}: {type(error).__name__}: {message}"
    return (
        f"unknown config key: {message}"
        if isinstance(error, AttributeError | KeyError)
        else message
    )


def _config_of(argv: list[str]) -> str:
    """What `--config` names."""
    words = filter(None, itertools.chain(*(word.partition("=")[::2] for word in argv)))
    return next((after for word, after in itertools.pairwise(words) if word in _FLAG), "--config")


def _with_own_config(argv: list[str]) -> list[str]:
    """With `--config` of the run in `--workdir`, where there is one and no config is given."""
    names = [word.partition("=")[0] for word in argv]
    if {*_FLAG} & {*names}:
        return argv
    words = [*itertools.chain(*(word.partition("=")[::2] for word in argv[1:]))]
    given = [after for word, after in itertools.pairwise(filter(None, words)) if word in _WORKDIR]
    if not given:
        return argv
    path = epath.Path(paths.plain(given[-1])) / "config.json"
    return [argv[0], f"--config={path}", *argv[1:]] if path.is_file() else argv


def _with_config_paths(argv: list[str]) -> list[str]:
    """Replaces `--config=NAME` by the path of that config."""
    out = list(argv)
    for i, word in enumerate(out):
        flag, equals, value = word.partition("=")
        if flag in _FLAG:
            if equals:
                out[i] = f"{flag}={_config_path(value)}"
            elif i + 1 < len(out):
                out[i + 1] = _config_path(out[i + 1])
    return out


def _config_path(name: str) -> str:
    shipped = shipped_configs()
    if name in shipped:
        return str(shipped[name])
    name = paths.plain(name)
    if Path(name).is_dir():
        refuse(f"--config={name}: a folder is there; of a run, give its config.json")
    if name.lower().endswith(".json") and epath.Path(name).is_file():
        return f"{_OF_RUN}:{name}"
    if not Path(name).is_file():
        refuse(f"--config={name}: no such file, and the shipped configs are {', '.join(shipped)}")
    return name
