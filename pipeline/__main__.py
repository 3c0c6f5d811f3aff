"""Commands over the experiments of this repository. Stages are run by DVC: `dvc repro`."""

import argparse
import sys
from importlib import import_module

from pipeline.errors import run

COMMANDS = {
    "compare": "compare experiments image by image; write reports/compare.html",
    "sample": "draw images from the model of an experiment",
    "likelihood": "measure -log p(x) by annealed importance sampling",
    "sweep": "search over parameters, on one machine or many",
    "reproduce": "execute a run again from its record and compare the results",
    "log-all": "upload every experiment that is missing or incomplete in MLflow",
    "doctor": "check the MLflow store against DVC's experiments",
}


def main() -> None:
    """Parse the command line and run the command. Only that command's module is imported."""
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    parser.set_defaults(main=lambda _: parser.print_help())
    subparsers = parser.add_subparsers(metavar="COMMAND")
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary)
        if name in sys.argv[1:2]:
            command = import_module(f"pipeline.commands.{name.replace('-', '_')}")
            subparser.description = command.__doc__
            subparser.formatter_class = argparse.RawDescriptionHelpFormatter
            subparser.set_defaults(main=command.main)
            command.add_arguments(subparser)
    arguments = parser.parse_args()
    arguments.main(arguments)


if __name__ == "__main__":
    run(main)
