"""Errors that an operator sees without a traceback."""


class StackError(Exception):
    """The stack can't do what was asked; the message says why in one sentence."""
