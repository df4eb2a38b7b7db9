"""From settings to a run.

`building` checks the settings and makes the `parts` of a run: `problems`, `policy`, `algorithm`,
`scorers`. `identity`, `fingerprints` and `run_files` compare a run that goes on with what it was before;
`ownership` and `directory` guard its folder; `footprint` and `planning` say what it will need.
"""
