"""`vlmend`: parses the command line, runs one command, turns errors into exit codes.

Exit codes: 0 done, 1 a bug of ours (with traceback), 2 something the user can mend, 130 Ctrl-C.
`--help` imports neither torch nor transformers: commands import what they need when they run.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from vlmend.cli import (
    ablate,
    audit,
    compare,
    data,
    demo,
    diagnose,
    doctor,
    export,
    judge,
    list_names,
    organism,
    relearn,
    repair,
    reward,
)
from vlmend.errors import VlmendError

_COMMANDS = (
    demo,
    audit,
    diagnose,
    repair,
    reward,
    relearn,
    ablate,
    compare,
    judge,
    export,
    data,
    organism,
    list_names,
    doctor,
)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="vlmend",
        description="Audit the safety of a vision-language model, mend it, and audit it again.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser


class _Version(argparse.Action):
    """Looks the version up only when asked: it takes longer than all of --help."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from importlib.metadata import version

        print(f"vlmend {version('vlmend')}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the console script exits with what it returns."""
    args = build_parser().parse_args(argv)
    # torchao, where it is installed, complains of GPU libraries and of torch as it is imported.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        code = args.run(args)
        # Here, where a reader that went away is handled, and not when the interpreter ends.
        sys.stdout.flush()
        return code
    except VlmendError as error:
        print(f"vlmend {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = "with --resume " if hasattr(args, "resume") else ""
        print(
            f"vlmend {args.command}: interrupted. What was written stays valid; run the same "
            f"command again {again}to go on.",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`vlmend list suites | head`); that is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"vlmend {args.command}: {error.strerror or error}{where}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
