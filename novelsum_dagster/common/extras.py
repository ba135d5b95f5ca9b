"""The package's optional extras: which one a command needs, and how to install it.

Belongs here: the error for an extra that is not installed. Does not: the contents of the extras (pyproject.toml).
"""

from importlib.util import find_spec

from novelsum_dagster.common.errors import InputError


def lacks(*modules: str) -> list[str]:
    """Return the modules that are not installed, without importing any."""
    return [name for name in modules if find_spec(name) is None]


def install_command(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'novelsum-dagster[{extra}]'"


def require_extra(extra: str, user: str, *modules: str) -> None:
    """Require that the modules of an extra are installed.

    Args:
        extra: of this package, e.g. `ray`.
        user: the command or setting that needs it, for the message.
        modules: top-level modules of the extra.

    Raises:
        InputError: naming the missing modules, and the command that installs them.
    """
    if missing := lacks(*modules):
        verb = "is" if len(missing) == 1 else "are"
        raise InputError(f"{user} needs {' and '.join(missing)}, which {verb} not installed: {install_command(extra)}")
