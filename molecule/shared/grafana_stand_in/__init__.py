"""A stand-in for Grafana, for test machines that cannot reach Grafana's package repository.

It is not Grafana and says so everywhere: package description, log, pages, version. It has Grafana's
package name, paths, user, unit and port, reads the real configuration strictly (what Grafana would
silently ignore is an error here) and answers the few API calls that the tests use.
Python 3.8, standard library and PyYAML only, since it runs on the target.
"""

import logging

VERSION = "12.0.0-stand-in"
NOTICE = "This is a stand-in for Grafana, made for tests. It is not Grafana."

log = logging.getLogger("stand-in")


class ConfigurationError(Exception):
    """What is wrong with the configuration, in one sentence that a person can act on."""
