"""python -m mailfs: the same as the command."""

from mailfs.cli.main import console

if __name__ == "__main__":
    console()
