"""The errors that a person can act on."""


class UserError(ValueError):
    """Something the user can mend; its text is one line that says what is wrong and what to do."""
