"""Errors that a user can mend, which the command line prints as one line; all others keep their traceback."""

from collections.abc import Iterator
import contextlib


class UserError(ValueError):
  """An input that the user can mend: a flag, a config field, a file's content."""


@contextlib.contextmanager
def user_errors(context: str = "") -> Iterator[None]:
  """Turns every ValueError raised inside into a UserError.

  For calls that check a user's input, and for which a bad argument is otherwise a mistake of the programmer. What
  computes stays outside, so that a ValueError raised by JAX keeps its traceback.

  Args:
    context: put in front of the message, such as the name of the file that was read.
  """
  try:
    yield
  except UserError:
    raise
  except ValueError as error:
    raise UserError(f"{context}: {error}" if context else str(error)) from error
