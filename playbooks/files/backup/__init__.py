"""Copies what the services of a host have collected, and puts such a copy back.

The playbooks backup.yml and restore.yml bring this package to the host and run `python3 -m backup COMMAND`.
"""


class BackupError(Exception):
    """A copy could not be made or put back; the message says why."""
