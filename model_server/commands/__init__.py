"""What a person runs: the commands of `model-server`."""


class CommandError(Exception):
    """A command that cannot be carried out; the message is one sentence."""
