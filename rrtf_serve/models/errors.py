"""The one error that models/ and convert/ raise for something the user can mend."""


class ModelError(Exception):
    """Says in one or two sentences what is wrong and what to do next; commands print it and exit 1."""
