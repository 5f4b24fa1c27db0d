"""``python -m finemoe_cli``."""

from finemoe_cli.app import main

if __name__ == "__main__":
    main()
