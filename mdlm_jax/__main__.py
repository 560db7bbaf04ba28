"""`mdlm COMMAND`, which is `python -m mdlm_jax.COMMAND`; `mdlm --help` lists the commands."""

import ast
import pkgutil
import runpy
import sys
from pathlib import Path

from mdlm_jax.host import command_line, endings, nearest

_MAIN = 'if __name__ == "__main__":'


def commands() -> dict[str, str]:
    """Every command with the first line of its docstring; nothing is imported for it."""
    found = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        source = Path(__file__).with_name(f"{module.name}.py")
        if module.ispkg or module.name == "__main__":
            continue
        text = source.read_text(encoding="utf-8")
        if _MAIN in text:
            found[module.name] = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return found


def listing() -> str:
    """What `mdlm --help` prints."""
    known = commands()
    width = max(map(len, known))
    lines = [f"  {name:{width}}  {phrase}" for name, phrase in known.items()]
    return "\n".join(
        [
            "Masked diffusion language models in JAX.",
            "",
            "    mdlm COMMAND --help      the flags of a command",
            "    mdlm --version",
            "",
            "Commands:",
            "",
            *lines,
        ]
    )


def main() -> int:
    """Runs the command of the command line; returns the exit code where none was run."""
    endings.take_over()
    word = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if word in ("-h", "--help", "help"):
        print(listing())
        return 0
    if word == "--version":
        print(command_line.version())
        return 0
    name = word.replace("-", "_")
    known = commands()
    if name not in known:
        command_line.refuse(
            f"unknown command {word}{nearest.meant(name, known)}: there are {', '.join(known)}"
        )
    del sys.argv[1]
    runpy.run_module(f"mdlm_jax.{name}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
