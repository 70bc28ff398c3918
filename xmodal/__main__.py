"""``python -m xmodal``."""

from xmodal.cli.app import main

if __name__ == "__main__":
    main()
