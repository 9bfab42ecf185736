"""The errors that a person can act on."""


class UserError(ValueError):
    """An error that the user can correct; its text is one line that says what is wrong and what to do."""
