"""python -m amir_grpo"""

import signal


def main() -> None:
    """Run the command line; during the imports, Ctrl-C ends the program without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from amir_grpo import cli

    cli.main()


if __name__ == "__main__":
    main()
