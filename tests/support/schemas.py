"""The settings of each command whose flags do not depend on an algorithm."""

from polgrad.cli.evaluate import Evaluate
from polgrad.cli.export import Export
from polgrad.cli.listing import Listing
from polgrad.cli.report import Report
from polgrad.cli.run import RunExperiment
from polgrad.cli.sample import Sample
from polgrad.cli.sweep import Sweep
from polgrad.rehearsal import compiling

COMMANDS = {
    "sample": Sample,
    "evaluate": Evaluate,
    "export": Export,
    "run": RunExperiment,
    "sweep": Sweep,
    "report": Report,
    "compile": compiling.Rehearsal,
    "list": Listing,
}
