"""What an operator is told instead of a traceback."""


class StackError(Exception):
    """The stack can't do what was asked; says why in one sentence."""
