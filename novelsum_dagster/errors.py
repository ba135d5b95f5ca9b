"""The one exception for mistakes that a user can mend.

Belongs here: `InputError`. Does not: programming errors, which keep their own types and tracebacks.
"""


class InputError(ValueError):
    """Bad input or settings. The message says what is wrong, where, and what to do.

    The command line prints it without a traceback (exit code 2); Dagster fails the step without retrying.
    """
