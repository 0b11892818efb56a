"""`python -m hone` is the command `hone`."""

from hone.cli import command

if __name__ == "__main__":
    command()
