"""`python -m novelsum_dagster` is the command `novelsum`."""

from novelsum_dagster.cli.main import main

if __name__ == "__main__":
    main()
