"""A stand-in for Grafana, for test machines that cannot reach Grafana's package repository.

It is not Grafana, and says so in its package, journal, pages and version. It has Grafana's package name, paths, user,
unit and port, reads the real configuration strictly, and answers what the role and the tests ask.
Python 3.8, standard library and PyYAML only, because it runs on the target.
"""

VERSION = "12.0.0-stand-in"
NOTICE = "This is a stand-in for Grafana, made for tests. It is not Grafana."


class ConfigurationError(Exception):
    """What is wrong with the configuration, in one sentence that a person can act on."""
