"""`python -m regzoo`: the `regzoo` command without an installation, as in a packaged bundle."""

from regzoo.cli import main

if __name__ == "__main__":
    main()
