"""``python -m matrix_ssl``: the command line, in the form that ``torchrun`` starts."""

from matrix_ssl.cli.main import main

if __name__ == "__main__":
    main()
