"""The former place of `model_server.server.gunicorn_conf`.

A master that was started before the move names this module to its successor; the first deployment after that needs it.
"""

from model_server.server.gunicorn_conf import *  # noqa: F403
