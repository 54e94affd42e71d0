"""Runs ktp as `python -m ktp`; must do nothing but call the command line."""

from ktp.cli import main

if __name__ == "__main__":
    main()
