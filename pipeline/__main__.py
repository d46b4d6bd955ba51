"""`python -m pipeline`, and the console script."""


def main() -> None:
    """Run the command line; importing it takes a second or two, in which an interrupt ends it as quietly as later."""
    try:
        from pipeline import cli
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    cli.main()


if __name__ == "__main__":
    main()
