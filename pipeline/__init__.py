"""The pipeline: from a model to a validated artifact.

A `BuildRequest` (`plan`) becomes a frozen `BuildPlan`, or every `Problem` at once. A `Run` (`run`) carries the plan out
in `Stage`s (`stages`), each done once for its inputs, whole or not at all. What comes out is an artifact, which
`runtime.artifact` defines; a `Gate` that fails keeps it from appearing.

Rooms, from the ground up; a room imports from those below it only: `progress` and `problem`, `paths`, `lanes` (what can
be asked for, and how good it must be), `settings`, `stages`, `embedded` (models and texts that the package carries),
`checkpoint` (what a model's files say of it), `source` (where models come from), `datasets` (texts to calibrate on),
`plan`, `quantize` and `build`, `validate`, `tuning` (engine options, measured), `publish`, `steps` (a
run's own, on one runner), `arguments` (the command line's options), the commands.
"""
