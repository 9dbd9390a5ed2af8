"""Errors that a user can mend."""


class UserError(ValueError):
  """Input that is not what it must be: the message says what is wrong, and the command prints it as one line."""
