"""What `python -m gatecli` runs: the command line."""

from gatecli.cli.app import main

if __name__ == "__main__":
    main()
