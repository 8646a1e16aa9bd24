"""The command ``matrix-ssl``, and ``python -m matrix_ssl``, the form that ``torchrun`` starts."""

import sys

from matrix_ssl.errors import MissingPackage


def main() -> None:
    """Runs the command line; a package that is not installed is one sentence."""
    try:
        from matrix_ssl.cli.main import main as run

        run()
    except MissingPackage as error:
        missing = error
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "matrix_ssl":
            raise
        missing = MissingPackage(error.name)
    else:
        return
    sys.exit(f"error: {missing}")


if __name__ == "__main__":
    main()
