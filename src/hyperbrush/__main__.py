"""`python -m hyperbrush`."""

from hyperbrush.cli import main

if __name__ == "__main__":
    main()
