"""Errors of the app beyond `UserError`."""

from hyperbrush.errors import UserError


class NotThere(UserError):
    """What was asked for by name or number is not there: status 404."""
