"""The package's optional parts: which one a command needs, and how to install it.

Belongs here: refusing what needs an extra that is not installed. Does not: what the extras hold (pyproject.toml).
"""

from importlib.util import find_spec

from novelsum_dagster.common.errors import InputError


def lacks(*modules: str) -> list[str]:
    """Return those of the modules that are not installed; none is imported."""
    return [name for name in modules if find_spec(name) is None]


def install_command(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'novelsum-dagster[{extra}]'"


def require_extra(extra: str, user: str, *modules: str) -> None:
    """Refuse to go on where a module of an extra is not installed.

    Args:
        extra: of this package, as `ray`.
        user: the command or setting that needs it, for the message.
        modules: top-level modules that the extra brings.

    Raises:
        InputError: naming what is missing, and the command that installs it.
    """
    if missing := lacks(*modules):
        verb = "is" if len(missing) == 1 else "are"
        raise InputError(f"{user} needs {' and '.join(missing)}, which {verb} not installed: {install_command(extra)}")
