"""`python -m regzoo`: the `regzoo` command, where it is not installed, such as in a packaged bundle."""

from regzoo.cli import main

if __name__ == "__main__":
    main()
