"""`python -m livetrain`."""

from livetrain.cli.main import main

if __name__ == "__main__":
    main()
