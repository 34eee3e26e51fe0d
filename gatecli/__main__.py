"""python -m gatecli"""

from gatecli.cli.app import main

if __name__ == "__main__":
    main()
