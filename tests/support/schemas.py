"""The settings of each command whose flags do not depend on an algorithm."""

from polgrad import cli
from polgrad.training import rehearsal

COMMANDS = {
    "sample": cli.Sample,
    "evaluate": cli.Evaluate,
    "export": cli.Export,
    "run": cli.RunExperiment,
    "sweep": cli.Sweep,
    "report": cli.Report,
    "compile": rehearsal.Rehearsal,
    "list": cli.Listing,
}
