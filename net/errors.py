"""The one base class of everything that a user can cause and should read as a single line."""


class UserError(Exception):
    """Shown as ``error: <message>`` with exit code 1, never as a traceback.

    The message says what is wrong, in which file, and what to do.
    """
