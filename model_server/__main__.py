"""`python -m model_server`: the command line `model-server`, where it is not installed."""

from model_server.commands.cli import main

if __name__ == "__main__":
    main()
