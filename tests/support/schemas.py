"""The settings of each command whose flags do not depend on an algorithm."""

from polgrad import cli
from polgrad.rehearsal import compiling

COMMANDS = {
    "sample": cli.Sample,
    "evaluate": cli.Evaluate,
    "export": cli.Export,
    "run": cli.RunExperiment,
    "sweep": cli.Sweep,
    "report": cli.Report,
    "compile": compiling.Rehearsal,
    "list": cli.Listing,
}
